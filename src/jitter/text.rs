//! Owns the report as text for a terminal of 100 columns. Never writes it anywhere.

use super::report::{Report, Wakeups};
use crate::report::lines::{self, line, lines};
use crate::report::units;

const HEADER: [&str; 8] = [
    "\nbeside",
    "late\np50 µs",
    "\np99.9 µs",
    "\nmax µs",
    "times idle\np50",
    "\np99.9",
    "\nmax",
    "\nmissed",
];

impl Report {
    /// The report as lines of text: the host, the wake-ups, the aims.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = lines::host(&self.host);
        text.push('\n');
        for words in self.setting() {
            line(&mut text, &words);
        }
        text.push('\n');
        text.push_str(&self.table());
        let absent = units::ABSENT;
        line(
            &mut text,
            &format!(
                "\n{absent} was not measured: this host does not offer it, or it was interrupted"
            ),
        );
        text.push('\n');
        text.push_str(&lines::aims(&self.aims));
        text
    }

    /// What was done, in sentences.
    pub(super) fn setting(&self) -> [String; 3] {
        let settings = &self.settings;
        let quick = if settings.quick { ", quick" } else { "" };
        let plural = |n: usize| if n == 1 { "" } else { "s" };
        let n = self.idle.map_or(0, |idle| idle.n);
        [
            format!(
                "{} timer{} of {} µs, {}, each pinned to a CPU; the rival and the guest run anywhere",
                settings.cpus.len(),
                plural(settings.cpus.len()),
                settings.period_us,
                settings.priority,
            ),
            format!(
                "{} blob, {} map + unmap per second, {} vCPU{} walking {}",
                units::bytes(settings.blob_bytes),
                settings.rate_per_s,
                settings.vcpus,
                plural(settings.vcpus as usize),
                units::bytes(settings.working_set_bytes),
            ),
            format!(
                "{} s of each in {} rounds{quick}, n = {n} wake-ups",
                settings.duration_s, settings.rounds,
            ),
        ]
    }

    fn table(&self) -> String {
        let mut table = lines::table();
        table.set_header(HEADER);
        for (name, wakeups) in self.phases() {
            let mut row = vec![name.to_owned()];
            row.extend(cells(wakeups.as_ref()));
            table.add_row(row);
        }
        lines(&mut table, |index| index == 0)
    }
}

/// The figures of one row, also of the page.
pub(super) fn cells(wakeups: Option<&Wakeups>) -> [String; 7] {
    let absent = || units::ABSENT.to_owned();
    let micros =
        |pick: fn(&Wakeups) -> f64| wakeups.map_or_else(absent, |all| units::micros(pick(all)));
    let times = wakeups.and_then(|all| all.times_idle);
    let ratio = |ratio: Option<f64>| ratio.map_or_else(absent, |ratio| format!("{ratio:.2}"));
    [
        micros(|all| all.p50_us),
        micros(|all| all.p999_us),
        micros(|all| all.max_us),
        ratio(times.map(|times| times.p50)),
        ratio(times.map(|times| times.p999)),
        ratio(times.map(|times| times.max)),
        wakeups.map_or_else(absent, |all| all.missed.to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;

    #[test]
    fn text_fits_100_columns_and_shows_the_figures() {
        let text = report().text();
        for line in text.lines() {
            assert!(line.chars().count() <= 100, "{line}");
            assert_eq!(line, line.trim_end());
        }
        for part in [
            "idle",
            "memslot-precise",
            "40.00",
            "SCHED_FIFO 2",
            "n = 1000",
            ": met",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}
