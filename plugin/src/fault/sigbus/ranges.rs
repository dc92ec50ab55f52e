//! Owns the list of arenas in which holes may be armed, for a signal handler to read. Never waits in
//! the reading.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// How many windows can be armed in a process.
const MOST: usize = 256;

/// A range, and whether it is one: an end of 0 is none.
#[derive(Debug)]
struct Range {
    start: AtomicU64,
    end: AtomicU64,
}

static RANGES: [Range; MOST] = [const {
    Range {
        start: AtomicU64::new(0),
        end: AtomicU64::new(0),
    }
}; MOST];

/// Which of them somebody needs, and where to look for the next: round and round, so that a range
/// that nobody needs any more stays as long as possible, for a signal that comes late.
#[derive(Debug)]
struct Used {
    used: [bool; MOST],
    next: usize,
}

static USED: Mutex<Used> = Mutex::new(Used {
    used: [false; MOST],
    next: 0,
});

/// A range in which touches are taken, for as long as this lives.
#[derive(Debug)]
pub(in crate::fault) struct Guarded(usize);

impl Guarded {
    /// `None` where there are too many.
    pub(in crate::fault) fn new(start: u64, len: u64) -> Option<Self> {
        let mut used = USED.lock().unwrap_or_else(PoisonError::into_inner);
        let from = used.next;
        let mut order = (from..MOST).chain(0..from);
        let at = order.find(|at| used.used.get(*at) == Some(&false))?;
        let (taken, range) = (used.used.get_mut(at)?, RANGES.get(at)?);
        *taken = true;
        used.next = at.wrapping_add(1) % MOST;
        // A reader between these sees no range, or one that is too small or too large: what it
        // takes is looked up among the windows again.
        range.end.store(0, Ordering::SeqCst);
        range.start.store(start, Ordering::SeqCst);
        range.end.store(start.saturating_add(len), Ordering::SeqCst);
        Some(Self(at))
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let mut used = USED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = used.used.get_mut(self.0) {
            *taken = false;
        }
    }
}

/// Whether any range has `address`.
pub(super) fn contain(address: u64) -> bool {
    RANGES.iter().any(|range| {
        let end = range.end.load(Ordering::SeqCst);
        address < end && range.start.load(Ordering::SeqCst) <= address
    })
}
