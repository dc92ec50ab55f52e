//! Owns the choice of locks, threads and time that waiting is built from, so that a model checker
//! can put its own in their place. Never waits for anything in particular.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};
pub(crate) use std::thread::{ThreadId, current};

/// When waiting ends, at the latest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    pub(crate) fn after(limit: Duration) -> Self {
        // A limit past the end of the clock is none.
        Self(Instant::now().checked_add(limit))
    }

    pub(crate) fn has_passed(&self) -> bool {
        self.0.is_some_and(|end| end <= Instant::now())
    }

    /// Waits until `moved` is notified, until the deadline, or for no reason at all.
    pub(crate) fn wait<'a, T>(
        &self,
        moved: &Condvar,
        guard: MutexGuard<'a, T>,
    ) -> MutexGuard<'a, T> {
        let Some(end) = self.0 else {
            return moved.wait(guard).unwrap_or_else(PoisonError::into_inner);
        };
        let left = end.saturating_duration_since(Instant::now());
        let (guard, _) = moved
            .wait_timeout(guard, left)
            .unwrap_or_else(PoisonError::into_inner);
        guard
    }
}
