//! Owns the made-up trace of a virtio-fs DAX window. Never decides which file a range is of.

use std::collections::VecDeque;

use super::generate::{map, pause, replace, unmap};
use super::{Kind, Offset, Trace};

pub(super) const MODEL: [&str; 5] = [
    "modelled on a Linux guest that reads files through a virtio-fs DAX window of 1 GiB:",
    "it maps ranges of 2 MiB as it needs them, 20 to 300 a second in bursts and rests; when fewer",
    "than a fifth are free, it gives the ten back that were used longest ago, and where none is",
    "free in time it takes the one used longest ago over (Linux: fs/fuse/dax.c).",
    "It is no recording of a guest.",
];

const RANGE: u64 = 2 << 20;
const RANGES: u64 = 512;
/// Reclaim begins below this, and gives so many back at once.
const FREE_ENOUGH: usize = 102;
const RECLAIMED: usize = 10;
/// How long the guest's worker takes until it gets to it, in microseconds.
const WORKER: u64 = 20_000;
/// How long a burst or a rest is, in microseconds.
const PHASE: u64 = 500_000;

pub(super) fn trace(end: u64, mut random: fastrand::Rng) -> Trace {
    let mut steps = Vec::new();
    let mut free: VecDeque<u64> = (0..RANGES).collect();
    // The one used longest ago in front.
    let mut used: VecDeque<u64> = VecDeque::new();
    let (mut rate, mut phase_end) = (0, 0_u64);
    let mut reclaim_at = None;
    let mut at = 0_u64;
    while at < end {
        if at >= phase_end {
            rate = if random.bool() {
                random.u64(150..=300)
            } else {
                random.u64(20..=60)
            };
            phase_end = at.saturating_add(PHASE);
        }
        if reclaim_at.is_some_and(|due| at >= due) {
            for range in used.drain(..RECLAIMED.min(used.len())) {
                steps.push(unmap(at, range));
                free.push_back(range);
            }
            reclaim_at = None;
        }
        // Four of five accesses find their range mapped: it has been used just now.
        if random.u32(0..5) > 0 && !used.is_empty() {
            let range = used.remove(random.usize(0..used.len()));
            used.extend(range);
            continue;
        }
        if let Some(range) = free.pop_front() {
            let offset = Offset::At(range.saturating_mul(RANGE));
            steps.push(map(at, range, offset, RANGE, Kind::Peer));
            used.push_back(range);
        } else if let Some(range) = used.pop_front() {
            steps.push(replace(at, range, Kind::Peer));
            used.push_back(range);
        }
        if free.len() < FREE_ENOUGH && reclaim_at.is_none() {
            reclaim_at = Some(at.saturating_add(WORKER));
        }
        at = at.saturating_add(pause(&mut random, rate));
    }
    steps.extend(used.into_iter().map(|range| unmap(end, range)));
    Trace {
        window: RANGES.saturating_mul(RANGE),
        steps,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Operation;

    #[test]
    fn a_window_fills_up_and_is_reclaimed() {
        let trace = trace(30_000_000, fastrand::Rng::with_seed(3));
        let (mut live, mut most) = (0_i64, 0);
        let mut reclaims = 0;
        for step in &trace.steps {
            match step.operation {
                Operation::Map { offset, len, .. } => {
                    assert_eq!(len, RANGE);
                    assert!(matches!(offset, Offset::At(at) if at.is_multiple_of(RANGE)));
                    live += 1;
                }
                Operation::Unmap { .. } => {
                    live -= 1;
                    reclaims += usize::from(step.at_us < 30_000_000);
                }
                Operation::Replace { .. } => {}
            }
            most = most.max(live);
        }
        assert_eq!(live, 0);
        assert!((410..=512).contains(&most), "{most} ranges in use");
        assert!(reclaims > 500, "{reclaims} reclaimed");
    }
}
