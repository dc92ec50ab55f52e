//! Owns the one compact picture of a report, made for a README: it has its
//! own paper, so that it reads on white and on black. Never says more than
//! the two figures a visitor should keep.

use super::canvas::{self, Canvas, Colour, Side, Words, palette};
use super::rows::{self, Row};
use super::{Report, units};

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 360.0;
const FIRST: f64 = 112.0;
const ROW: f64 = 44.0;
const BAR: f64 = 24.0;
const WORK: Panel = Panel {
    left: 216.0,
    right: 454.0,
};
const TRIP: Panel = Panel {
    left: 560.0,
    right: 798.0,
};
/// Letters that fit into the last line, even in a wide font.
const FOOTER: usize = 120;
const TITLE: Words = Words::new(17.0, palette::INK).bold();
const HEAD: Words = Words::new(14.0, palette::INK).bold();
const NAME: Words = Words::new(15.0, palette::INK).bold();
const NOTE: Words = Words::new(11.5, palette::SOFT);
const FIGURE: Words = Words::new(15.0, palette::INK).bold();

#[derive(Clone, Copy)]
struct Panel {
    left: f64,
    right: f64,
}

struct Bar {
    value: Option<f64>,
    label: String,
    note: &'static str,
    colour: Colour,
}

/// A picture of 900 by 360 pixels: guest work kept and the median of map +
/// unmap, per rival, side by side.
///
/// # Errors
/// When drawing fails, which no report should cause.
pub fn svg(report: &Report) -> anyhow::Result<String> {
    let rows: Vec<Row> = rows::rows(report)
        .into_iter()
        .filter(|row| row.name != "fixed (peer)")
        .collect();
    let title = "guest work kept and map + unmap latency per rival";
    canvas::draw((900, 360), title, |canvas| {
        paper(canvas)?;
        heading(canvas, report)?;
        names(canvas, &rows)?;
        let work: Vec<Bar> = rows.iter().map(work_bar).collect();
        panel(canvas, WORK, &work, 1.0)?;
        let trips: Vec<Bar> = rows.iter().map(trip_bar).collect();
        panel(canvas, TRIP, &trips, 0.0)?;
        footer(canvas, report)
    })
}

fn paper(canvas: &Canvas<'_>) -> anyhow::Result<()> {
    canvas.rect((0.0, 0.0), (WIDTH, HEIGHT), palette::LINE)?;
    canvas.rect((1.0, 1.0), (WIDTH - 2.0, HEIGHT - 2.0), palette::PAPER)
}

fn heading(canvas: &Canvas<'_>, report: &Report) -> anyhow::Result<()> {
    let settings = &report.settings;
    let title = format!(
        "A guest at work while a {} blob is mapped and unmapped {} times a second",
        units::bytes(settings.blob_bytes),
        settings.rate_per_s
    );
    canvas.words((24.0, 30.0), TITLE, &title)?;
    canvas.words((WORK.left, 70.0), HEAD, "guest work kept")?;
    canvas.words((TRIP.left, 70.0), HEAD, "map + unmap, median µs")?;
    canvas.words((WORK.right, 70.0), NOTE.side(Side::Right), "more is better")?;
    canvas.words(
        (WIDTH - 24.0, 70.0),
        NOTE.side(Side::Right),
        "less is better",
    )
}

/// The middle of each row, from top to bottom.
fn middles() -> impl Iterator<Item = f64> {
    (0..5_u32).map(|row| FIRST + ROW * f64::from(row))
}

fn names(canvas: &Canvas<'_>, rows: &[Row]) -> anyhow::Result<()> {
    for (row, y) in rows.iter().zip(middles()) {
        canvas.words((24.0, y - 8.0), NAME, row.name)?;
        canvas.words((24.0, y + 9.0), NOTE, row.short)?;
    }
    Ok(())
}

fn work_bar(row: &Row) -> Bar {
    let value = row.rival.and_then(|rival| rival.work_kept);
    // No guest uses what the floor maps, so none can lose work.
    let note = if row.name == "bare" {
        "no memslot"
    } else {
        row.absent
    };
    bar(row, value, units::percent, note)
}

fn trip_bar(row: &Row) -> Bar {
    let value = row
        .latencies
        .and_then(|latencies| latencies.round_trip_us());
    bar(row, value, units::micros_short, row.absent)
}

fn bar(row: &Row, value: Option<f64>, label: fn(f64) -> String, note: &'static str) -> Bar {
    let value = value.filter(|figure| figure.is_finite());
    Bar {
        value,
        label: value.map(label).unwrap_or_default(),
        note,
        colour: row.colour,
    }
}

/// Bars from zero to the largest value, or to `least` if that is more.
fn panel(canvas: &Canvas<'_>, panel: Panel, bars: &[Bar], least: f64) -> anyhow::Result<()> {
    let most = bars
        .iter()
        .filter_map(|bar| bar.value)
        .fold(least.max(f64::MIN_POSITIVE), f64::max);
    let (top, bottom) = (FIRST - ROW / 2.0 + 4.0, FIRST + ROW * 4.5 - 4.0);
    canvas.line((panel.left, top), (panel.left, bottom), palette::LINE, 1)?;
    for (bar, y) in bars.iter().zip(middles()) {
        let Some(value) = bar.value else {
            canvas.words((panel.left + 10.0, y), NOTE, bar.note)?;
            continue;
        };
        let length = (panel.right - panel.left) * value.max(0.0) / most;
        canvas.rect((panel.left, y - BAR / 2.0), (length, BAR), bar.colour)?;
        canvas.words((panel.left + length + 8.0, y), FIGURE, &bar.label)?;
    }
    Ok(())
}

/// Who measured this: the machine at the left, the run at the right. Only the
/// name of the machine may be cut, so that the two never meet.
fn footer(canvas: &Canvas<'_>, report: &Report) -> anyhow::Result<()> {
    let host = &report.host;
    let mut run = format!("n = {}, vm-remap bench", rows::calls(report));
    if report.settings.quick {
        run.insert_str(0, "quick, ");
    }
    if !report.complete {
        run.insert_str(0, "interrupted, ");
    }
    let rest = format!(
        ", kernel {}, {}, TDP MMU {}",
        host.kernel,
        host.kvm_module,
        rows::tdp_mmu(host.tdp_mmu)
    );
    let used = run.chars().count().saturating_add(rest.chars().count());
    let mut machine = cut(&host.machine, FOOTER.saturating_sub(used));
    machine.push_str(&rest);
    canvas.words((24.0, HEIGHT - 20.0), NOTE, &machine)?;
    canvas.words((WIDTH - 24.0, HEIGHT - 20.0), NOTE.side(Side::Right), &run)
}

/// The text, or its beginning and a sign that there was more.
fn cut(text: &str, letters: usize) -> String {
    if text.chars().count() <= letters {
        return text.to_owned();
    }
    let mut start: String = text.chars().take(letters.saturating_sub(1)).collect();
    start.truncate(start.trim_end().len());
    start.push('…');
    start
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn svg_names_each_rival_and_its_figures() {
        let picture = svg(&sample::report()).unwrap();
        for name in ["memslot", "memslot-precise", "plain", "fixed", "bare"] {
            assert!(picture.contains(&format!(">\n{name}\n")), "{name}");
        }
        for figure in ["1.2 %", "98.7 %", "257", "26.2", "20.1"] {
            assert!(picture.contains(figure), "{figure}");
        }
        assert!(picture.contains("Example CPU &lt;9000&gt; &amp; Co"));
    }

    #[test]
    fn svg_says_why_the_precise_rival_is_absent() {
        let mut report = sample::report();
        report.backends.memslot_precise = None;
        report.host.slot_zap_all_quirk = false;
        let picture = svg(&report).unwrap();
        assert_eq!(picture.matches("not offered by this host").count(), 2);
    }

    #[test]
    fn svg_cuts_the_name_of_the_machine_and_nothing_else() {
        let mut report = sample::report();
        report.host.machine = "Very Long Name ".repeat(20);
        report.settings.quick = true;
        let picture = svg(&report).unwrap();
        assert!(picture.contains("…, kernel 6.18.0-example, kvm_example, TDP MMU off"));
        assert!(picture.contains("quick, n = 4200"));
        assert_eq!(cut("short", 5), "short");
        assert_eq!(cut("a longer one", 3), "a…");
    }

    #[test]
    fn svg_of_an_interrupted_run_says_so() {
        let picture = svg(&sample::interrupted()).unwrap();
        assert!(picture.contains("interrupted") && picture.contains("not measured"));
        assert!(!picture.contains("NaN"));
    }
}
