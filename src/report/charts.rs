//! Owns the charts of the HTML page: horizontal bars, one per rival. Never
//! decides which rivals there are.

use super::canvas::{self, Canvas, Side, Words, palette};
use super::rows::{Row, rows};
use super::{Latencies, Quantiles, Report, Rival, units};

const WIDTH: f64 = 440.0;
pub(super) const TOP: f64 = 30.0;
const ROW: f64 = 30.0;
pub(super) const BAR: f64 = 16.0;
/// Bars begin here; the names stand before it.
pub(super) const LEFT: f64 = 122.0;
const RIGHT: f64 = 366.0;
pub(super) const NAME: Words = Words::new(13.0, palette::INK);
pub(super) const SMALL: Words = Words::new(11.5, palette::SOFT);
pub(super) const FIGURE: Words = Words::new(13.0, palette::INK).bold();

/// Which latency a chart shows.
pub(super) type Pick = fn(&Latencies) -> Option<Quantiles>;

/// Guest work kept, per rival.
pub(super) fn work_kept(report: &Report) -> anyhow::Result<String> {
    let bars = guest_bars(report, |rival| rival.work_kept, units::percent);
    linear(
        "guest work kept per rival",
        &bars,
        Some((1.0, "undisturbed")),
    )
}

/// Faults outside the remapped range, per rival.
pub(super) fn collateral(report: &Report) -> anyhow::Result<String> {
    let bars = guest_bars(
        report,
        |rival| rival.collateral_faults_per_op,
        units::per_op,
    );
    linear("guest faults outside the range per operation", &bars, None)
}

struct Bar {
    row: Row,
    value: Option<f64>,
    label: String,
}

/// A bar for each rival that has a guest.
fn guest_bars(
    report: &Report,
    value: fn(&Rival) -> Option<f64>,
    label: fn(f64) -> String,
) -> Vec<Bar> {
    rows(report)
        .into_iter()
        .take(4)
        .map(|row| {
            let value = row
                .rival
                .as_ref()
                .and_then(value)
                .filter(|figure| figure.is_finite());
            Bar {
                row,
                value,
                label: value.map_or_else(|| row.absent.to_owned(), label),
            }
        })
        .collect()
}

pub(super) fn height(rows: usize) -> (f64, u32) {
    let rows = u32::try_from(rows).unwrap_or(0);
    let bottom = TOP + ROW * f64::from(rows);
    (bottom, rows.saturating_mul(30).saturating_add(38))
}

/// The middle of each row, from top to bottom.
pub(super) fn middles() -> impl Iterator<Item = f64> {
    (0..16_u32).map(|row| TOP + ROW * (f64::from(row) + 0.5))
}

/// Bars from zero, their figures at their ends, perhaps with one marked line.
fn linear(title: &str, bars: &[Bar], mark: Option<(f64, &str)>) -> anyhow::Result<String> {
    let (bottom, height) = height(bars.len());
    let most = bars
        .iter()
        .filter_map(|bar| bar.value)
        .chain(mark.map(|(place, _)| place))
        .fold(f64::MIN_POSITIVE, f64::max);
    let place = |value: f64| LEFT + (RIGHT - LEFT) * value.max(0.0) / most;
    canvas::draw((440, height), title, |canvas| {
        canvas.line((LEFT, TOP), (LEFT, bottom), palette::LINE, 1)?;
        for (bar, y) in bars.iter().zip(middles()) {
            canvas.words((0.0, y), NAME, bar.row.name)?;
            let end = place(bar.value.unwrap_or(0.0));
            canvas.rect((LEFT, y - BAR / 2.0), (end - LEFT, BAR), bar.row.colour)?;
            let look = if bar.value.is_some() { FIGURE } else { SMALL };
            // A label must not sit on the marked line.
            let after = mark.map_or(end, |(at, _)| end.max(near(end, place(at))));
            canvas.words((after + 7.0, y), look, &bar.label)?;
        }
        if let Some((at, words)) = mark {
            let x = place(at);
            canvas.line((x, TOP - 4.0), (x, bottom), palette::SOFT, 1)?;
            canvas.words((x, TOP - 14.0), SMALL.side(Side::Middle), words)?;
        }
        Ok(())
    })
}

/// The marked line, if a label at `end` would run into it.
fn near(end: f64, line: f64) -> f64 {
    let label = 60.0;
    if end < line && end + label > line {
        line
    } else {
        end
    }
}

/// The median of one latency per rival on a logarithmic scale, with a mark at
/// the 99th percentile; the figures stand in two columns at the right.
pub(super) fn latency(report: &Report, title: &str, pick: Pick) -> anyhow::Result<String> {
    let rows = rows(report);
    let picked: Vec<(Row, Option<Quantiles>)> = rows
        .iter()
        .map(|row| (*row, row.latencies.as_ref().and_then(pick)))
        .collect();
    let (bottom, height) = height(picked.len());
    let scale = Log::over(report);
    canvas::draw((440, height), title, |canvas| {
        for (value, label) in scale.decades() {
            let x = scale.place(value);
            canvas.line((x, TOP), (x, bottom), palette::LINE, 1)?;
            canvas.words((x, TOP - 12.0), SMALL.side(Side::Middle), &label)?;
        }
        canvas.words((388.0, TOP - 12.0), SMALL.side(Side::Right), "p50")?;
        canvas.words((WIDTH, TOP - 12.0), SMALL.side(Side::Right), "p99 µs")?;
        for ((row, quantiles), y) in picked.iter().zip(middles()) {
            canvas.words((0.0, y), NAME, row.name)?;
            match quantiles {
                Some(quantiles) => log_bar(canvas, &scale, row, quantiles, y)?,
                None => canvas.words((LEFT + 7.0, y), SMALL, row.absent)?,
            }
        }
        Ok(())
    })
}

fn log_bar(
    canvas: &Canvas<'_>,
    scale: &Log,
    row: &Row,
    quantiles: &Quantiles,
    y: f64,
) -> anyhow::Result<()> {
    let (p50, p99) = (scale.place(quantiles.p50), scale.place(quantiles.p99));
    canvas.rect((LEFT, y - BAR / 2.0), (p50 - LEFT, BAR), row.colour)?;
    canvas.line((p50, y), (p99, y), palette::SOFT, 1)?;
    canvas.line((p99, y - 5.0), (p99, y + 5.0), palette::SOFT, 2)?;
    let right = |words: Words| words.side(Side::Right);
    canvas.words(
        (388.0, y),
        right(FIGURE),
        &units::micros_short(quantiles.p50),
    )?;
    canvas.words(
        (WIDTH, y),
        right(SMALL),
        &units::micros_short(quantiles.p99),
    )
}

/// A scale of whole decades, the same for all three operations of a report.
pub(super) struct Log {
    low: f64,
    high: f64,
}

/// Bars end here, so that the columns of figures have room.
const LOG_RIGHT: f64 = 322.0;

impl Log {
    fn over(report: &Report) -> Self {
        let all: Vec<Quantiles> = rows(report)
            .iter()
            .filter_map(|row| row.latencies)
            .flat_map(|latencies| [latencies.map_us, latencies.replace_us, latencies.unmap_us])
            .flatten()
            .filter(|quantiles| quantiles.p50 > 0.0 && quantiles.p99.is_finite())
            .collect();
        let medians = all.iter().map(|quantiles| quantiles.p50);
        let most = all.iter().map(|quantiles| quantiles.p99);
        Self::spanning(medians, most)
    }

    /// Covers all of `low` and of `high`, figures above 0.
    pub(super) fn spanning(
        low: impl Iterator<Item = f64>,
        high: impl Iterator<Item = f64>,
    ) -> Self {
        let (least, most) = (low.fold(10.0, f64::min), high.fold(100.0, f64::max));
        // A little below the fastest, so that its bar can be seen.
        Self {
            low: (least * 0.8).log10().floor().max(-3.0),
            high: most.log10().ceil().min(7.0),
        }
    }

    pub(super) fn place(&self, value: f64) -> f64 {
        let share = (value.max(f64::MIN_POSITIVE).log10() - self.low) / (self.high - self.low);
        LEFT + (LOG_RIGHT - LEFT) * share.clamp(0.0, 1.0)
    }

    /// Each power of ten of the scale with its label.
    pub(super) fn decades(&self) -> Vec<(f64, String)> {
        (-3..=7_i32)
            .filter(|&power| (self.low..=self.high).contains(&f64::from(power)))
            .map(|power| {
                // Every figure stands at its bar, so the scale can be short: 10000 is 10k.
                let (shown, unit) = match power {
                    6.. => (power.saturating_sub(6), "M"),
                    3.. => (power.saturating_sub(3), "k"),
                    _ => (power, ""),
                };
                (10_f64.powi(power), format!("{}{unit}", 10_f64.powi(shown)))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn log_scale_covers_every_figure_with_whole_decades() {
        let scale = Log::over(&sample::report());
        assert_eq!((scale.low, scale.high), (0.0, 4.0));
        let labels: Vec<String> = scale
            .decades()
            .into_iter()
            .map(|(_, label)| label)
            .collect();
        assert_eq!(labels, ["1", "10", "100", "1k", "10k"]);
        assert!(scale.place(6.2) > LEFT && scale.place(1410.7) < LOG_RIGHT);
        assert_eq!(scale.place(0.0), LEFT);
    }

    #[test]
    fn charts_carry_their_figures() {
        let report = sample::report();
        assert!(work_kept(&report).unwrap().contains("98.7 %"));
        assert!(collateral(&report).unwrap().contains("4186"));
        let map = latency(&report, "map", |latencies| latencies.map_us).unwrap();
        assert!(map.contains("43.1") && map.contains("fixed (peer)"));
    }

    #[test]
    fn charts_of_an_interrupted_run_say_what_is_absent() {
        let report = sample::interrupted();
        assert!(work_kept(&report).unwrap().contains("not measured"));
        let replace = latency(&report, "replace", |latencies| latencies.replace_us).unwrap();
        assert!(replace.contains("not measured") && !replace.contains("NaN"));
    }
}
