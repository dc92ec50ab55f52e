//! Owns the way of a change through the window: prepared without a lock, then made under it, once no
//! pin is in the way. Never says what a change is, nor how it is made.

use std::sync::PoisonError;
use std::time::Duration;

use super::Window;
use super::batch::Change;
use super::counters::{add, count};
use super::pins::OnPinned;
use super::prefault::Filled;
use super::prepare::{Prepared, Ready};
use super::recovery::OnFailure;
use super::transaction::State;
use crate::arena::areas::Room;
use crate::error::{Error, StateAfter};
use crate::range::PageRange;
use crate::sync::MutexGuard;

impl Window {
    pub(super) fn change(
        &self,
        changes: &[Change<'_>],
        on_failure: OnFailure,
    ) -> Result<(), Error> {
        self.change_when(changes, on_failure, self.shared.on_pinned)
    }

    pub(super) fn change_when(
        &self,
        changes: &[Change<'_>],
        on_failure: OnFailure,
        on_pinned: OnPinned,
    ) -> Result<(), Error> {
        let made = self
            .make_ready(changes)
            .and_then(|(ready, _room)| self.finish(ready, on_failure, on_pinned));
        if made.is_err() {
            count(&self.shared.tally.failures);
        }
        made
    }

    /// Until a batch is made, each of its sources is mapped once more; there is room for that.
    pub(super) fn make_ready<'fd>(
        &self,
        changes: &[Change<'fd>],
    ) -> Result<(Ready<'fd>, Option<Room>), Error> {
        // Unmaps need none: they must work where nothing else does any more.
        let maps = changes.iter().any(Change::makes_mapping);
        let room = match changes {
            [first, _, ..] if maps => {
                Some(self.shared.areas.room_for(changes.len(), first.range())?)
            }
            _ => None,
        };
        Ok((self.shared.prepare(changes)?, room))
    }

    pub(super) fn finish(
        &self,
        ready: Ready<'_>,
        on_failure: OnFailure,
        on_pinned: OnPinned,
    ) -> Result<(), Error> {
        let asked = |change: &&Prepared| change.filled != Filled::NotAsked;
        let filled: Vec<(PageRange, Filled)> = ready
            .changes
            .iter()
            .filter(asked)
            .map(|change| (change.range, change.filled))
            .collect();
        let joined = ready.joined;
        self.unpinned(&ready.changes, on_pinned)?
            .commit(&self.shared, ready, on_failure)?;
        add(&self.shared.tally.joined, joined);
        self.finish_prefault(&filled);
        Ok(())
    }

    /// The window's state, once no pin is in the way of `changes`.
    fn unpinned(
        &self,
        changes: &[Prepared],
        on_pinned: OnPinned,
    ) -> Result<MutexGuard<'_, State>, Error> {
        let ranges = changes.iter().map(|change| change.range);
        let turnstile = &self.shared.turnstile;
        let locked = turnstile.lock_unpinned(&self.state, &ranges, on_pinned);
        locked.map_err(|blocked| Error::Pinned {
            range: blocked.range,
            pinned: blocked.pinned,
            waited: match on_pinned {
                OnPinned::Refuse => Duration::ZERO,
                OnPinned::Wait(limit) => limit,
            },
        })
    }

    /// Makes calls that a failure, or a panic of who is called, can leave half-done.
    pub(super) fn guarded<T>(
        &self,
        calls: impl FnOnce(&mut State) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut state = self.state();
        if state.poisoned {
            return Err(Error::Poisoned);
        }
        state.poisoned = true;
        let called = calls(&mut state);
        state.slots.settle_dirty_log();
        state.poisoned = false;
        if called
            .as_ref()
            .is_err_and(|error| error.state_after() == StateAfter::Poisoned)
        {
            state.poison();
        }
        called
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // A change that did not come to its end has poisoned the window itself.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
