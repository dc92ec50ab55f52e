//! Owns the numbers that the daemon gives at its end. Never acts on them.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// What one run of the daemon did.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    requests: AtomicU64,
    maps: AtomicU64,
    unmaps: AtomicU64,
    refused: AtomicU64,
    bytes: AtomicU64,
}

impl Counters {
    pub(crate) fn request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn mapped(&self, bytes: u64) {
        self.maps.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn unmapped(&self) {
        self.unmaps.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        write!(
            f,
            "{} requests, {} maps of {} bytes, {} unmaps, {} refused by the frontend",
            of(&self.requests),
            of(&self.maps),
            of(&self.bytes),
            of(&self.unmaps),
            of(&self.refused),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_is_told_in_one_line() {
        let counters = Counters::default();
        counters.request();
        counters.request();
        counters.mapped(8192);
        counters.unmapped();
        counters.refused();
        assert_eq!(
            counters.to_string(),
            "2 requests, 1 maps of 8192 bytes, 1 unmaps, 1 refused by the frontend"
        );
    }
}
