//! Owns the counting of what a resolver has done. Never reads back what it counts.

use std::sync::atomic::{AtomicU64, Ordering};

use super::report::FaultCounters;

#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) faults: AtomicU64,
    pub(super) mmio: AtomicU64,
    pub(super) present: AtomicU64,
    pub(super) holes: AtomicU64,
    pub(super) told: AtomicU64,
    pub(super) dropped_writes: AtomicU64,
    pub(super) lost: AtomicU64,
    pub(super) armed: AtomicU64,
    pub(super) steps: AtomicU64,
    pub(super) stops: AtomicU64,
    pub(super) slowed: AtomicU64,
    pub(super) events_dropped: AtomicU64,
}

/// Adds one. The order among counters is nobody's business.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Tally {
    pub(super) fn read(&self) -> FaultCounters {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        FaultCounters {
            faults: value(&self.faults),
            mmio: value(&self.mmio),
            present: value(&self.present),
            holes: value(&self.holes),
            told: value(&self.told),
            dropped_writes: value(&self.dropped_writes),
            lost: value(&self.lost),
            armed: value(&self.armed),
            steps: value(&self.steps),
            stops: value(&self.stops),
            slowed: value(&self.slowed),
            events_dropped: value(&self.events_dropped),
        }
    }
}
