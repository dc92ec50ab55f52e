//! Owns the report as text for a terminal of 100 columns. Never writes it anywhere.

use super::blob::Kind;
use super::report::{Cell, Report, Touches};
use super::rival::Role;
use crate::report::lines::{self, lines};
use crate::report::units;

const HEADER: [&str; 10] = [
    "\nmemory",
    "\nblob",
    "\ntouch",
    "\nplain",
    "\nmemslot",
    "\nfixed",
    "fixed,\nhost-read",
    "fixed,\nhost-write",
    "fixed,\nguest",
    "warm\nwalk",
];

/// One touch of the two.
type Pick = fn(&Touches) -> &Cell;

impl Report {
    /// The report as lines of text: the host, the times, the faults, the aims.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = lines::host(&self.host);
        text.push_str("\nmap call to last page touched, p50 in µs\n");
        text.push_str(&self.table(|cell| Some(units::micros(cell.ready_us?.p50))));
        text.push_str("\nguest faults meanwhile (pf_taken), median\n");
        text.push_str(&self.table(|cell| Some(cell.faults?.to_string())));
        let absent = units::ABSENT;
        text.push_str(&format!(
            "\n{absent} was not measured: this host does not offer it, or it was interrupted\n"
        ));
        text.push('\n');
        text.push_str(&lines::aims(&self.aims));
        text
    }

    /// One row for each kind, size and touch.
    fn table(&self, figure: impl Fn(&Cell) -> Option<String>) -> String {
        let mut table = lines::table();
        table.set_header(HEADER);
        let touches: [(&str, Pick); 2] =
            [("read", |both| &both.read), ("write", |both| &both.write)];
        for kind in Kind::ALL {
            for &len in &self.settings.blob_bytes {
                for (name, pick) in touches {
                    let cells = Role::ALL.map(|role| self.touches(role, kind, len).map(pick));
                    if cells.iter().all(Option::is_none) {
                        continue;
                    }
                    let mut row = vec![kind.name().to_owned(), units::bytes(len), name.to_owned()];
                    let shown = |cell: &Option<&Cell>| cell.and_then(&figure);
                    let absent = || units::ABSENT.to_owned();
                    row.extend(cells.iter().map(|cell| shown(cell).unwrap_or_else(absent)));
                    // The second walk is the same whoever mapped: the plain rival's stands for all.
                    let warm = cells.first().copied().flatten().map(|cell| Cell {
                        ready_us: cell.warm_us,
                        warm_us: None,
                        faults: None,
                    });
                    row.push(shown(&warm.as_ref()).unwrap_or_else(absent));
                    table.add_row(row);
                }
            }
        }
        lines(&mut table, |index| index == 0 || index == 2)
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;

    #[test]
    fn text_fits_100_columns_and_shows_the_figures() {
        let text = report(true).text();
        for line in text.lines().skip(2) {
            assert!(line.chars().count() <= 100, "{line}");
            assert_eq!(line, line.trim_end());
        }
        for part in [
            "memfd-warm",
            "2 MiB",
            "100.0",
            "40.0",
            "30.0",
            "512",
            "missed",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(!text.contains("hugetlb-2m"), "{text}");
    }
}
