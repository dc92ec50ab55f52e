//! Owns the report as text for a terminal of 100 columns. Never writes it anywhere.

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
        let mut table = lines::table();
        table.set_header(HEADER);
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::report::Settings;
    use super::*;
    use crate::report::{Host, KvmFacts, Latencies};

    fn report() -> Report {
        let quantiles = |p50: f64| {
            Some(Quantiles {
                p50,
                p99: p50 + 100_000.0,
                max: 1e6,
                n: 9,
            })
        };
        let fixed = Backend {
            latencies: Latencies {
                map_us: quantiles(18.5),
                replace_us: None,
                unmap_us: quantiles(7.5),
            },
            late_us: quantiles(61.0),
            work_kept: Some(0.987),
        };
        Report {
            host: Host::read(KvmFacts {
                module: "kvm_amd".into(),
                tdp_mmu: None,
                zap: "unknown".into(),
                slot_zap_all_quirk: false,
                nr_memslots: 32764,
            }),
            settings: Settings {
                operations: 2962,
                duration_s: 10.0,
                window_bytes: 2 << 30,
                working_set_bytes: 64 << 20,
                vcpus: 1,
                rounds: 3,
                quick: false,
            },
            backends: BTreeMap::from([("fixed", Some(fixed)), ("memslot-precise", None)]),
            aims: Vec::new(),
            complete: false,
        }
    }

    #[test]
    fn text_fits_100_columns_and_shows_the_figures() {
        let text = report().text();
        for line in text.lines() {
            assert!(line.chars().count() <= 100, "{line}");
            assert_eq!(line, line.trim_end());
        }
        for part in [
            "trace of 2962 operations in 10.0 s, window of 2 GiB",
            "18.5",
            "100061.0",
            "98.7 %",
            "interrupted before the last replay",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}
