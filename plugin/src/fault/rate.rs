//! Owns the pace of one vCPU's faults. Never sleeps itself.

use std::time::{Duration, Instant};

/// Faults of one vCPU in a second that cost it nothing but themselves.
pub(super) const FREE: u32 = 2000;
/// What each one more of that second costs it.
pub(super) const PAUSE: Duration = Duration::from_millis(1);
const PERIOD: Duration = Duration::from_secs(1);

/// Counts the faults of the current second.
#[derive(Debug)]
pub(super) struct Pace {
    begun: Instant,
    faults: u32,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self {
            begun: Instant::now(),
            faults: 0,
        }
    }

    /// Counts one more fault; the pause that it costs.
    pub(super) fn fault(&mut self, now: Instant) -> Option<Duration> {
        if now.saturating_duration_since(self.begun) >= PERIOD {
            self.begun = now;
            self.faults = 0;
        }
        self.faults = self.faults.saturating_add(1);
        (self.faults > FREE).then_some(PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pace_charges_what_is_too_much_in_a_second_and_forgets_it_after() {
        let mut pace = Pace::new();
        let begun = pace.begun;
        assert!((0..FREE).all(|_| pace.fault(begun).is_none()));
        assert_eq!(pace.fault(begun), Some(PAUSE));
        assert_eq!(pace.fault(begun + PERIOD / 2), Some(PAUSE));
        assert_eq!(pace.fault(begun + PERIOD), None);
    }
}
