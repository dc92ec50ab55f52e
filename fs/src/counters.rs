//! Owns the numbers that the daemon gives at its end, and what it complains of. Never acts on them.

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
    complaints: AtomicU64,
}

/// Complaints that are logged. A guest can give cause for any number, and a log has an end.
const LOUD: u64 = 32;

impl Counters {
    /// Says what went wrong for the guest, unless that has been said often.
    pub(crate) fn complain(&self, of: fmt::Arguments<'_>) {
        match self.complaints.fetch_add(1, Ordering::Relaxed) {
            earlier if earlier < LOUD => log::warn!("{of}"),
            LOUD => log::warn!("{of}; from now on, complaints are only counted"),
            _ => log::debug!("{of}"),
        }
    }

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
            "{} requests, {} maps of {} bytes, {} unmaps, {} refused by the frontend, {} complaints",
            of(&self.requests),
            of(&self.maps),
            of(&self.bytes),
            of(&self.unmaps),
            of(&self.refused),
            of(&self.complaints),
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
        counters.complain(format_args!("a test complains"));
        assert_eq!(
            counters.to_string(),
            "2 requests, 1 maps of 8192 bytes, 1 unmaps, 1 refused by the frontend, 1 complaints"
        );
    }
}
