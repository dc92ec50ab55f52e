//! Owns the report as text for a terminal of 100 columns. Never writes it anywhere.

use comfy_table::{ContentArrangement, Table, presets};

use super::report::{Backend, Report};
use super::rival::Role;
use crate::report::lines::{self, line, lines};
use crate::report::{Quantiles, units};

const HEADER: [&str; 10] = [
    "\n\nrival",
    "map\np50\nµs",
    "\np99\nµs",
    "replace\np50\nµs",
    "\np99\nµs",
    "unmap\np50\nµs",
    "\np99\nµs",
    "late\np50\nµs",
    "\np99\nµs",
    "guest\nwork\nkept",
];

impl Report {
    /// The report as lines of text: the host, the trace, the rivals, the aims.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = lines::host(&self.host);
        let settings = &self.settings;
        let quick = if settings.quick { ", quick" } else { "" };
        let plural = if settings.vcpus == 1 { "" } else { "s" };
        text.push_str(&format!(
            "\ntrace of {} operations in {:.1} s, window of {}\n{} vCPU{plural} walking {}, {} \
             replays by each rival{quick}\n\n",
            settings.operations,
            settings.duration_s,
            units::bytes(settings.window_bytes),
            settings.vcpus,
            units::bytes(settings.working_set_bytes),
            settings.rounds,
        ));
        text.push_str(&self.table());
        let absent = units::ABSENT;
        text.push_str(&format!(
            "\nlate: from when the operation was due until it began\n{absent} is not in the trace, \
             not offered by this host, or was interrupted\n"
        ));
        if !self.complete {
            line(&mut text, "interrupted before the last replay");
        }
        text.push('\n');
        text.push_str(&lines::aims(&self.aims));
        text
    }

    fn table(&self) -> String {
        let mut table = Table::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled)
            .set_header(HEADER);
        for role in Role::ALL {
            let name = role.name();
            let backend = self.backends.get(name).copied().flatten();
            table.add_row(row(name, backend.unwrap_or_default()));
        }
        lines(&mut table, |index| index == 0)
    }
}

fn row(name: &str, backend: Backend) -> Vec<String> {
    let absent = || units::ABSENT.to_owned();
    let latencies = backend.latencies;
    let all = [
        latencies.map_us,
        latencies.replace_us,
        latencies.unmap_us,
        backend.late_us,
    ];
    let figures = |quantiles: Option<Quantiles>| {
        [quantiles.map(|q| q.p50), quantiles.map(|q| q.p99)]
            .map(|us| us.map_or_else(absent, units::micros))
    };
    std::iter::once(name.to_owned())
        .chain(all.into_iter().flat_map(figures))
        .chain([backend.work_kept.map_or_else(absent, units::percent)])
        .collect()
}
