//! Owns the report as text for a terminal of 100 columns. Never writes it anywhere.

use super::SIZES;
use super::files::Files;
use super::report::{Cell, Operations, Report};
use crate::report::lines::{self, lines};
use crate::report::{Quantiles, units};

const HEADER: [&str; 10] = [
    "\nmemory",
    "\nchanges",
    "\noperation",
    "single\np50",
    "\np99",
    "batch\np50",
    "\np99",
    "\nshare",
    "flushes\nsingle",
    "\nbatch",
];

/// One operation of the three.
type Pick = fn(&Operations) -> Cell;

const OPERATIONS: [(&str, Pick); 3] = [
    ("map", |all| all.map),
    ("replace", |all| all.replace),
    ("unmap", |all| all.unmap),
];

impl Report {
    /// The report as lines of text: the host, the times and flushes, the aims.
    #[must_use]
    pub fn text(&self) -> String {
        let each = units::bytes(self.settings.change_bytes);
        let mut text = lines::host(&self.host);
        text.push_str(&format!(
            "\nchanges of {each} side by side, one call each or one batch: µs of CPU time for all\n"
        ));
        text.push_str(&self.table());
        text.push('\n');
        text.push_str(&lines::aims(&self.aims));
        text
    }

    fn table(&self) -> String {
        let mut table = lines::table();
        table.set_header(HEADER);
        for files in Files::ALL {
            for (count, _) in SIZES {
                let Some(all) = self.operations(files, count) else {
                    continue;
                };
                for (name, pick) in OPERATIONS {
                    let mut row = vec![files.name().to_owned(), count.to_string(), name.to_owned()];
                    row.extend(figures(&pick(all)));
                    table.add_row(row);
                }
            }
        }
        lines(&mut table, |index| index == 0 || index == 2)
    }
}

fn figures(cell: &Cell) -> [String; 7] {
    let time = |all: Option<Quantiles>, of: fn(Quantiles) -> f64| all.map(|q| units::micros(of(q)));
    let count = |flushes: Option<u64>| flushes.map(|flushes| flushes.to_string());
    let (single, batch) = (cell.single, cell.batch);
    [
        time(single.cpu_us, |q| q.p50),
        time(single.cpu_us, |q| q.p99),
        time(batch.cpu_us, |q| q.p50),
        time(batch.cpu_us, |q| q.p99),
        cell.share.map(|share| format!("{share:.2}")),
        count(single.flushes),
        count(batch.flushes),
    ]
    .map(|figure| figure.unwrap_or_else(|| units::ABSENT.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;

    #[test]
    fn text_fits_100_columns_and_shows_the_figures() {
        let text = report().text();
        for line in text.lines().skip(2) {
            assert!(line.chars().count() <= 100, "{line}");
            assert_eq!(line, line.trim_end());
        }
        for part in ["one-file-peer", "64 KiB", "1000.", "0.20", "256", "met"] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}
