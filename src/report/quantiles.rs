//! Owns the four figures that stand for a distribution of latencies. Never
//! holds a mean: one slow call in a thousand would hide in it.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Median, 99th percentile and maximum in microseconds, of `n` calls.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Quantiles {
    /// Half of the calls took at most this many microseconds.
    pub p50: f64,
    /// 99 of 100 calls took at most this many microseconds.
    pub p99: f64,
    /// The slowest call, in microseconds.
    pub max: f64,
    /// How many calls were measured.
    pub n: u64,
}

/// The longest time that is told apart, in nanoseconds: an hour.
const LONGEST: u64 = 3_600_000_000_000;

impl Quantiles {
    /// The same of times one by one; `None` when there are none.
    pub(crate) fn of_times(times: impl Iterator<Item = Duration>) -> Option<Self> {
        let mut histogram = Histogram::<u64>::new_with_max(LONGEST, 3).ok()?;
        for time in times {
            histogram.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        }
        Self::of(&histogram)
    }

    /// Reads a histogram of **nanoseconds**; `None` when nothing was recorded.
    #[must_use]
    pub fn of(nanoseconds: &Histogram<u64>) -> Option<Self> {
        if nanoseconds.is_empty() {
            return None;
        }
        Some(Self {
            p50: micros(nanoseconds.value_at_quantile(0.50)),
            p99: micros(nanoseconds.value_at_quantile(0.99)),
            max: micros(nanoseconds.max()),
            n: nanoseconds.len(),
        })
    }
}

fn micros(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_a_known_histogram() {
        let mut histogram = Histogram::<u64>::new_with_bounds(1, 10_000_000, 5).unwrap();
        for value in 1..=100_u64 {
            histogram.record(value * 1000).unwrap();
        }
        let quantiles = Quantiles::of(&histogram).unwrap();
        assert_eq!(quantiles.n, 100);
        assert!((quantiles.p50 - 50.0).abs() < 0.01, "{quantiles:?}");
        assert!((quantiles.p99 - 99.0).abs() < 0.01, "{quantiles:?}");
        assert!((quantiles.max - 100.0).abs() < 0.01, "{quantiles:?}");
    }

    #[test]
    fn quantiles_of_an_empty_histogram_is_none() {
        let histogram = Histogram::<u64>::new(3).unwrap();
        assert_eq!(Quantiles::of(&histogram), None);
    }

    #[test]
    fn quantiles_of_one_value_are_that_value() {
        let mut histogram = Histogram::<u64>::new(3).unwrap();
        histogram.record(1500).unwrap();
        let quantiles = Quantiles::of(&histogram).unwrap();
        assert_eq!((quantiles.p50, quantiles.p99), (1.5, 1.5));
        assert_eq!((quantiles.max, quantiles.n), (1.5, 1));
    }
}
