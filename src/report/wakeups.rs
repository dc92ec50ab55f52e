//! Owns the chart of late wake-ups: one bar for each phase of a run. Never measures.

use super::canvas::{self, Canvas, Colour, Side, Words, palette};
use super::charts::{BAR, FIGURE, LEFT, Log, NAME, SMALL, TOP, height, middles};
use super::units;

/// How the chart is read.
pub(crate) const NOTE: &str =
    "µs, log scale; bar: median, thick mark: 99.9th percentile, thin mark: the latest";
const WIDTH: u32 = 520;
/// What title and explanation take below the chart.
const TITLE_ROOM: u32 = 44;
/// Where the columns of figures end.
const COLUMNS: [f64; 3] = [388.0, 448.0, 516.0];
const HEADS: [&str; 3] = ["p50", "p99.9", "max µs"];

/// A phase of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bar {
    pub(crate) name: &'static str,
    /// Median, 99.9th percentile and maximum, in microseconds; `None` where it was not measured.
    pub(crate) figures: Option<[f64; 3]>,
}

/// The chart, for a page.
pub(crate) fn chart(title: &str, bars: &[Bar]) -> anyhow::Result<String> {
    let (_, height) = height(bars.len());
    canvas::draw((WIDTH, height), title, |canvas| paint(canvas, bars))
}

/// The same on paper of its own, with its title and how it is read.
pub(crate) fn picture(title: &str, bars: &[Bar]) -> anyhow::Result<String> {
    let (bottom, height) = height(bars.len());
    let height = height.saturating_add(TITLE_ROOM);
    let size = (f64::from(WIDTH), f64::from(height));
    canvas::draw((WIDTH, height), title, |canvas| {
        canvas.rect((0.0, 0.0), size, palette::PAPER)?;
        paint(canvas, bars)?;
        canvas.words((0.0, bottom + 20.0), NAME, title)?;
        canvas.words((0.0, bottom + 38.0), SMALL, NOTE)
    })
}

fn paint(canvas: &Canvas<'_>, bars: &[Bar]) -> anyhow::Result<()> {
    let (bottom, _) = height(bars.len());
    let all = || bars.iter().filter_map(|bar| bar.figures);
    let above_0 = |figure: &f64| *figure > 0.0 && figure.is_finite();
    let scale = Log::spanning(
        all().map(|[p50, _, _]| p50).filter(above_0),
        all().map(|[_, _, max]| max).filter(above_0),
    );
    for (value, label) in scale.decades() {
        let x = scale.place(value);
        canvas.line((x, TOP), (x, bottom), palette::LINE, 1)?;
        canvas.words((x, TOP - 12.0), SMALL.side(Side::Middle), &label)?;
    }
    for (x, head) in COLUMNS.into_iter().zip(HEADS) {
        canvas.words((x, TOP - 12.0), SMALL.side(Side::Right), head)?;
    }
    for (bar, y) in bars.iter().zip(middles()) {
        canvas.words((0.0, y), NAME, bar.name)?;
        match bar.figures {
            Some(figures) => row(canvas, &scale, colour(bar.name), figures, y)?,
            None => canvas.words((LEFT + 7.0, y), SMALL, "not measured")?,
        }
    }
    Ok(())
}

fn row(
    canvas: &Canvas<'_>,
    scale: &Log,
    colour: Colour,
    figures: [f64; 3],
    y: f64,
) -> anyhow::Result<()> {
    let [p50, p999, max] = figures.map(|figure| scale.place(figure));
    canvas.rect((LEFT, y - BAR / 2.0), (p50 - LEFT, BAR), colour)?;
    canvas.line((p50, y), (max, y), palette::SOFT, 1)?;
    canvas.line((p999, y - 6.0), (p999, y + 6.0), palette::SOFT, 3)?;
    canvas.line((max, y - 4.0), (max, y + 4.0), palette::SOFT, 1)?;
    let looks: [Words; 3] = [SMALL, FIGURE, SMALL];
    for ((x, figure), words) in COLUMNS.into_iter().zip(figures).zip(looks) {
        let words = words.side(Side::Right);
        canvas.words((x, y), words, &units::micros_short(figure))?;
    }
    Ok(())
}

/// The colour that the rival has in every chart.
fn colour(name: &str) -> Colour {
    match name {
        "memslot" => palette::RED,
        "memslot-precise" => palette::ORANGE,
        "plain" => palette::SKY,
        "fixed" => palette::BLUE,
        _ => palette::GREY,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bars() -> [Bar; 3] {
        let bar = |name, figures| Bar { name, figures };
        [
            bar("idle", Some([4.0, 31.0, 240.0])),
            bar("memslot", Some([9.0, 8123.4, 51_000.0])),
            bar("memslot-precise", None),
        ]
    }

    #[test]
    fn chart_and_picture_carry_their_figures() {
        for svg in [
            chart("wake-ups", &bars()).unwrap(),
            picture("wake-ups", &bars()).unwrap(),
        ] {
            for part in ["idle", "4.00", "8123", "51000", "10k", "not measured"] {
                assert!(svg.contains(part), "{part}");
            }
        }
    }

    #[test]
    fn figures_of_zero_are_drawn() {
        let zero = [Bar {
            name: "idle",
            figures: Some([0.0; 3]),
        }];
        assert!(!chart("wake-ups", &zero).unwrap().contains("NaN"));
    }
}
