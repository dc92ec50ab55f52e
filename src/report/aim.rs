//! Owns the project's aims and how a report is judged by them. Never counts
//! an aim as met that nothing was measured for.

use super::{Backends, Latencies};
use serde::Serialize;

/// One aim, and what the run says about it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Aim {
    /// What is judged, with its unit.
    pub name: &'static str,
    /// The figure; `None` when it was not measured.
    pub measured: Option<f64>,
    /// What the figure should be.
    pub aim: Bound,
    /// Whether it is; `None` when it was not measured.
    pub met: Option<bool>,
}

/// The side on which a figure has to lie. The bound itself is good enough.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// The figure or more.
    AtLeast(f64),
    /// The figure or less.
    AtMost(f64),
}

impl Bound {
    fn holds(self, measured: f64) -> bool {
        match self {
            Self::AtLeast(bound) => measured >= bound,
            Self::AtMost(bound) => measured <= bound,
        }
    }
}

impl Aim {
    pub(crate) fn judged(name: &'static str, aim: Bound, measured: Option<f64>) -> Self {
        let measured = measured.filter(|figure| figure.is_finite());
        Self {
            name,
            measured,
            aim,
            met: measured.map(|figure| aim.holds(figure)),
        }
    }

    /// `met`, `missed` or `not measured`.
    #[must_use]
    pub fn verdict(&self) -> &'static str {
        match self.met {
            Some(true) => "met",
            Some(false) => "missed",
            None => "not measured",
        }
    }
}

/// Judges vm-remap's own rival against the aims, in the order of the table.
pub(super) fn judge(backends: &Backends) -> Vec<Aim> {
    let fixed = &backends.fixed.rival;
    let bare = &backends.bare;
    let mut aims = vec![
        Aim::judged(
            "guest work kept during churn (share)",
            Bound::AtLeast(0.98),
            fixed.work_kept,
        ),
        Aim::judged(
            "guest faults outside the range (per operation)",
            Bound::AtMost(0.0),
            fixed.collateral_faults_per_op,
        ),
        Aim::judged(
            "vCPU exits and stale reads while replacing (count)",
            Bound::AtMost(0.0),
            gap(backends),
        ),
        Aim::judged(
            "memslot calls in steady state (per operation)",
            Bound::AtMost(0.0),
            fixed.slot_calls_per_op,
        ),
        Aim::judged(
            "map + unmap of own memory (times the bare calls)",
            Bound::AtMost(1.5),
            ratio(&fixed.latencies, bare),
        ),
        Aim::judged(
            "map + unmap of a peer's descriptor (times the bare calls)",
            Bound::AtMost(2.5),
            ratio(&backends.fixed.peer, bare),
        ),
    ];
    for (name, times, rival) in [
        (
            "map + unmap (times faster than memslot-precise)",
            3.0,
            backends.memslot_precise,
        ),
        (
            "map + unmap (times faster than memslot)",
            7.0,
            backends.memslot,
        ),
    ] {
        let faster = rival.and_then(|rival| ratio(&rival.latencies, &fixed.latencies));
        aims.push(Aim::judged(name, Bound::AtLeast(times), faster));
    }
    aims
}

/// Both ways a guest can notice a replace; nothing if none was watched.
fn gap(backends: &Backends) -> Option<f64> {
    let fixed = &backends.fixed.rival;
    fixed.gap_replaces.filter(|&watched| watched > 0)?;
    Some(fixed.gap_exits? as f64 + fixed.gap_stale_reads? as f64)
}

fn ratio(of: &Latencies, to: &Latencies) -> Option<f64> {
    let floor = to.round_trip_us().filter(|&floor| floor > 0.0)?;
    Some(of.round_trip_us()? / floor)
}

#[cfg(test)]
mod tests {
    use super::super::{Quantiles, sample};
    use super::*;

    fn aim(backends: &Backends, name: &str) -> Aim {
        *judge(backends)
            .iter()
            .find(|aim| aim.name.contains(name))
            .unwrap()
    }

    fn trip(map: f64, unmap: f64) -> Latencies {
        let quantiles = |p50| {
            Some(Quantiles {
                p50,
                p99: p50,
                max: p50,
                n: 1,
            })
        };
        Latencies {
            map_us: quantiles(map),
            replace_us: None,
            unmap_us: quantiles(unmap),
        }
    }

    #[test]
    fn aims_of_the_sample_are_all_judged() {
        let aims = judge(&sample::report().backends);
        assert_eq!(aims.len(), 8);
        assert!(aims.iter().all(|aim| aim.met.is_some()), "{aims:?}");
    }

    #[test]
    fn aims_of_nothing_are_not_measured() {
        for aim in judge(&Backends::default()) {
            assert_eq!((aim.measured, aim.met), (None, None));
            assert_eq!(aim.verdict(), "not measured");
        }
    }

    #[test]
    fn work_kept_just_met_and_just_missed() {
        let mut backends = Backends::default();
        backends.fixed.rival.work_kept = Some(0.98);
        assert_eq!(aim(&backends, "work kept").verdict(), "met");
        backends.fixed.rival.work_kept = Some(0.979_999);
        assert_eq!(aim(&backends, "work kept").verdict(), "missed");
        backends.fixed.rival.work_kept = Some(f64::NAN);
        assert_eq!(aim(&backends, "work kept").verdict(), "not measured");
    }

    #[test]
    fn counts_are_met_by_zero_only() {
        let mut backends = Backends::default();
        backends.fixed.rival.collateral_faults_per_op = Some(0.0);
        backends.fixed.rival.slot_calls_per_op = Some(0.001);
        assert_eq!(aim(&backends, "outside the range").met, Some(true));
        assert_eq!(aim(&backends, "memslot calls").met, Some(false));
    }

    #[test]
    fn gap_needs_a_watched_replace_and_counts_stale_reads() {
        let mut backends = Backends::default();
        backends.fixed.rival.gap_exits = Some(0);
        backends.fixed.rival.gap_stale_reads = Some(0);
        backends.fixed.rival.gap_replaces = Some(0);
        assert_eq!(aim(&backends, "stale reads").met, None);
        backends.fixed.rival.gap_replaces = Some(1);
        assert_eq!(aim(&backends, "stale reads").met, Some(true));
        backends.fixed.rival.gap_stale_reads = Some(1);
        assert_eq!(aim(&backends, "stale reads").met, Some(false));
    }

    #[test]
    fn ratios_just_met_and_just_missed() {
        let mut backends = Backends {
            bare: trip(6.0, 4.0),
            ..Backends::default()
        };
        backends.fixed.rival.latencies = trip(10.0, 5.0);
        backends.fixed.peer = trip(20.0, 5.0);
        assert_eq!(aim(&backends, "own memory").met, Some(true));
        assert_eq!(aim(&backends, "peer's").met, Some(true));
        backends.fixed.rival.latencies = trip(10.0, 5.01);
        backends.fixed.peer = trip(20.0, 5.01);
        assert_eq!(aim(&backends, "own memory").met, Some(false));
        assert_eq!(aim(&backends, "peer's").met, Some(false));
    }

    #[test]
    fn rivals_just_beaten_just_missed_and_absent() {
        let rival = |map, unmap| {
            Some(super::super::Rival {
                latencies: trip(map, unmap),
                ..Default::default()
            })
        };
        let mut backends = Backends {
            memslot: rival(60.0, 10.0),
            ..Backends::default()
        };
        backends.fixed.rival.latencies = trip(6.0, 4.0);
        assert_eq!(aim(&backends, "memslot-precise").met, None);
        assert_eq!(aim(&backends, "than memslot)").met, Some(true));
        backends.memslot = rival(60.0, 9.9);
        assert_eq!(aim(&backends, "than memslot)").met, Some(false));
        backends.memslot_precise = rival(20.0, 10.0);
        assert_eq!(aim(&backends, "memslot-precise").met, Some(true));
    }

    #[test]
    fn a_floor_of_zero_is_not_measured() {
        let mut backends = Backends {
            bare: trip(0.0, 0.0),
            ..Backends::default()
        };
        backends.fixed.rival.latencies = trip(1.0, 1.0);
        assert_eq!(aim(&backends, "own memory").met, None);
    }
}
