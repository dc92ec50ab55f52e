//! Owns what a rival's turns have shown so far. Never measures and never rounds.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::report::{Latencies, Quantiles, Rival};

/// Figures of one rival, over all its turns.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) map: Histogram<u64>,
    pub(super) replace: Histogram<u64>,
    pub(super) unmap: Histogram<u64>,
    /// Guest work during churn as a share of the same turn's undisturbed work.
    pub(super) kept: Vec<f64>,
    pub(super) churn_ops: u64,
    pub(super) churn_faults: Option<u64>,
    pub(super) slot_calls: u64,
    pub(super) gap: Option<Gap>,
}

/// What a guest saw that spun on a page while it was replaced.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Gap {
    pub(super) replaces: u64,
    pub(super) exits: u64,
    pub(super) stale: u64,
}

impl Tally {
    pub(super) fn new() -> anyhow::Result<Self> {
        let histogram = || Histogram::new_with_max(LONGEST, 3);
        Ok(Self {
            map: histogram()?,
            replace: histogram()?,
            unmap: histogram()?,
            kept: Vec::new(),
            churn_ops: 0,
            churn_faults: None,
            slot_calls: 0,
            gap: None,
        })
    }

    pub(super) fn latencies(&self) -> Latencies {
        Latencies {
            map_us: Quantiles::of(&self.map),
            replace_us: Quantiles::of(&self.replace),
            unmap_us: Quantiles::of(&self.unmap),
        }
    }

    pub(super) fn rival(&self) -> Rival {
        let per_op =
            |count: u64| (self.churn_ops > 0).then(|| count as f64 / self.churn_ops as f64);
        Rival {
            latencies: self.latencies(),
            work_kept: median(&self.kept),
            collateral_faults_per_op: self.churn_faults.and_then(per_op),
            gap_exits: self.gap.map(|gap| gap.exits),
            gap_replaces: self.gap.map(|gap| gap.replaces),
            gap_stale_reads: self.gap.map(|gap| gap.stale),
            slot_calls_per_op: per_op(self.slot_calls),
        }
    }
}

/// The longest latency that a histogram holds, in nanoseconds: an hour.
pub(crate) const LONGEST: u64 = 3_600_000_000_000;

/// Records a latency.
pub(crate) fn record(histogram: &mut Histogram<u64>, took: Duration) {
    histogram.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
}

/// The value in the middle, of an even number the mean of the two in the middle.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = values.get(middle)?;
    if values.len().is_multiple_of(2) {
        let lower = values.get(middle.checked_sub(1)?)?;
        return Some(f64::midpoint(*lower, *upper));
    }
    Some(*upper)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_the_middle_and_none_of_nothing() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), Some(3.0));
    }

    #[test]
    fn a_tally_without_turns_measures_nothing() {
        let rival = Tally::new().unwrap().rival();
        assert_eq!(rival, Rival::default());
    }

    #[test]
    fn a_latency_is_found_again() {
        let mut tally = Tally::new().unwrap();
        record(&mut tally.map, Duration::from_micros(250));
        let found = tally.latencies().map_us.unwrap();
        assert!((found.p50 - 250.0).abs() < 0.5, "{found:?}");
        record(&mut tally.map, Duration::MAX);
        assert_eq!(tally.latencies().map_us.unwrap().n, 2);
    }

    #[test]
    fn figures_are_per_operation() {
        let mut tally = Tally::new().unwrap();
        tally.churn_ops = 4;
        tally.slot_calls = 6;
        tally.churn_faults = Some(2);
        let rival = tally.rival();
        assert_eq!(rival.slot_calls_per_op, Some(1.5));
        assert_eq!(rival.collateral_faults_per_op, Some(0.5));
    }
}
