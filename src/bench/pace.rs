//! Owns the rate at which a rival churns. Never knows what a step is.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Steps at a fixed rate until an end.
#[derive(Debug)]
pub(crate) struct Pace {
    next: Instant,
    end: Instant,
    step: Duration,
}

impl Pace {
    pub(crate) fn new(length: Duration, step: Duration) -> Self {
        let next = Instant::now();
        Self {
            next,
            end: next.checked_add(length).unwrap_or(next),
            step,
        }
    }

    pub(crate) fn goes_on(&self, stop: &AtomicBool) -> bool {
        Instant::now() < self.end && !stop.load(Ordering::Relaxed)
    }

    /// Waits for the next step. One that is late already is not made up for.
    pub(crate) fn step(&mut self) {
        let now = Instant::now();
        let next = self.next.checked_add(self.step).unwrap_or(now);
        self.next = next.max(now);
        std::thread::sleep(next.saturating_duration_since(now));
    }
}

/// Waits, not much longer than until `stop` is set.
pub(crate) fn wait(length: Duration, stop: &AtomicBool) {
    let mut pace = Pace::new(length, Duration::from_millis(10));
    while pace.goes_on(stop) {
        pace.step();
    }
}
