//! Owns the report as text for a terminal of 100 columns. Never writes it
//! anywhere and uses no colour.

use super::lines::{line, lines};
use super::rows::{self, Row, SENTENCES};
use super::{Quantiles, Report, units};
use comfy_table::{ContentArrangement, Table, presets};

const COLUMNS: u16 = 100;
const HEADER: [&str; 11] = [
    "\n\nrival",
    "map\np50\nµs",
    "\np99\nµs",
    "replace\np50\nµs",
    "\np99\nµs",
    "unmap\np50\nµs",
    "\np99\nµs",
    "guest\nwork\nkept",
    "outside\nfaults\nper op",
    "gap\nexits/\nstale",
    "slot\ncalls\nper op",
];

const QUICK: &str =
    "This was a quick run: a first look, too short to judge by. Leave out --quick for verdicts.";

/// The report as lines of text: the host, the rivals, the aims.
#[must_use]
pub fn text(report: &Report) -> String {
    let mut text = facts(report);
    text.push('\n');
    text.push_str(&rivals(report));
    text.push('\n');
    for (name, sentence) in SENTENCES {
        line(&mut text, &format!("{name:<17}{sentence}"));
    }
    if report.backends.memslot_precise.is_none() && !report.host.slot_zap_all_quirk {
        line(
            &mut text,
            "memslot-precise was not run: this host's KVM does not offer it (kernel 6.12 or later does)",
        );
    }
    if !report.complete {
        line(
            &mut text,
            &format!("interrupted: {} is what was not measured", units::ABSENT),
        );
    }
    text.push('\n');
    text.push_str(&aims(report));
    if report.settings.quick {
        line(&mut text, QUICK);
    }
    text
}

/// A long value goes on in the next line.
fn facts(report: &Report) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(COLUMNS);
    for (label, value) in rows::facts(report) {
        table.add_row([label, &value]);
    }
    lines(&mut table, |_| true)
}

fn rivals(report: &Report) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(HEADER);
    for row in rows::rows(report) {
        table.add_row(cells(&row));
    }
    lines(&mut table, |index| index == 0)
}

fn cells(row: &Row) -> Vec<String> {
    let latencies = row.latencies.unwrap_or_default();
    let rival = row.rival.unwrap_or_default();
    let absent = || units::ABSENT.to_owned();
    let mut cells = vec![row.name.to_owned()];
    for quantiles in [latencies.map_us, latencies.replace_us, latencies.unmap_us] {
        let figure = |read: fn(Quantiles) -> f64| {
            quantiles.map_or_else(absent, |quantiles| units::micros(read(quantiles)))
        };
        cells.push(figure(|quantiles| quantiles.p50));
        cells.push(figure(|quantiles| quantiles.p99));
    }
    cells.push(rival.work_kept.map_or_else(absent, units::percent));
    cells.push(
        rival
            .collateral_faults_per_op
            .map_or_else(absent, units::per_op),
    );
    cells.push(units::gap(&rival));
    cells.push(rival.slot_calls_per_op.map_or_else(absent, units::per_op));
    cells
}

fn aims(report: &Report) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "aim of vm-remap (fixed)",
        "measured",
        "aim",
        "verdict",
    ]);
    for aim in report.aims() {
        table.add_row([
            aim.name.to_owned(),
            units::measured(&aim),
            units::bound(aim.aim),
            aim.verdict().to_owned(),
        ]);
    }
    lines(&mut table, |index| index != 1)
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn text_fits_100_columns_and_names_every_rival() {
        for report in [sample::report(), sample::interrupted()] {
            let text = text(&report);
            for line in text.lines() {
                assert!(line.chars().count() <= 100, "{line}");
                assert_eq!(line, line.trim_end());
            }
            for (name, sentence) in SENTENCES {
                assert!(text.contains(sentence), "{name}");
            }
        }
    }

    #[test]
    fn text_wraps_what_a_host_says_at_length() {
        let mut report = sample::report();
        report.host.zap = "a long story ".repeat(20);
        let text = text(&report);
        assert!(
            text.lines().all(|line| line.chars().count() <= 100),
            "{text}"
        );
        assert_eq!(text.matches("story").count(), 20);
    }

    #[test]
    fn text_columns_line_up() {
        let text = rivals(&sample::report());
        let lengths: Vec<usize> = text
            .lines()
            .filter(|line| line.starts_with("memslot") || line.starts_with("plain"))
            .map(|line| line.chars().count())
            .collect();
        assert_eq!(lengths.len(), 3);
        assert!(lengths.windows(2).all(|pair| pair[0] == pair[1]), "{text}");
    }

    #[test]
    fn text_shows_figures_and_verdicts() {
        let text = text(&sample::report());
        for part in ["43.1", "88.4", "1.2 %", "4186", "TDP MMU off", "n = 4200"] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(
            text.contains("  met") && text.contains("  missed"),
            "{text}"
        );
    }

    #[test]
    fn text_of_a_quick_run_says_so() {
        let mut report = sample::report();
        assert!(!text(&report).contains(QUICK));
        report.settings.quick = true;
        assert!(text(&report).ends_with(&format!("{QUICK}\n")));
    }

    #[test]
    fn text_of_an_interrupted_run_says_so() {
        let text = text(&sample::interrupted());
        assert!(text.contains("interrupted") && text.contains("not measured"));
        assert!(!text.contains("NaN") && !text.contains("  met\n"), "{text}");
    }

    #[test]
    fn text_says_why_the_precise_rival_is_absent() {
        let mut report = sample::report();
        report.backends.memslot_precise = None;
        report.host.slot_zap_all_quirk = false;
        assert!(text(&report).contains("does not offer it"));
    }
}
