//! Owns the way back from a change that failed: to what was there, to a hole, or to a poisoned
//! window. Never begins a change.

use super::merge;
use super::plan::spans;
use super::saved::Saved;
use super::shared::Shared;
use super::transaction::{State, refusal};
use crate::arena::Refused;
use crate::error::{Error, StateAfter};
use crate::layout::Undo;
use crate::range::PageRange;

/// How a change that fails after memory has changed is recovered from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnFailure {
    /// The range becomes a hole: no mapping is saved before, which would cost each change.
    Hole,
    /// Everything is put back.
    PutBack,
}

impl State {
    /// After a failure: back to a state with a name, by the way that was chosen before.
    pub(super) fn recover(
        &mut self,
        shared: &Shared,
        undos: Vec<Undo>,
        saved: Saved,
        (on_failure, placed): (OnFailure, bool),
        error: Error,
    ) -> Error {
        let spans = spans(&undos);
        // No memory is put back, or taken away, under a device.
        let stuck = placed && self.dma.unmap(&spans).is_err();
        let error = match on_failure {
            _ if stuck => {
                self.leave(undos);
                error.with_state(StateAfter::Poisoned)
            }
            _ if !placed => {
                self.leave(undos);
                error
            }
            OnFailure::Hole => self.recover_as_hole(shared, undos, error),
            OnFailure::PutBack => self.put_back(shared, undos, saved, error),
        };
        let settled = match error.state_after() {
            // Nothing must come over memory that is not known.
            StateAfter::Poisoned => Ok(()),
            _ => self
                .settle(shared, &spans)
                .and_then(|()| self.map_dma(shared, &spans)),
        };
        self.judge(error, settled)
    }

    /// Makes the slots agree with the layout again.
    fn settle(&mut self, shared: &Shared, spans: &[PageRange]) -> Result<(), Error> {
        let plan = self.plan_over(shared, spans, &[]);
        self.slots.unregister_all(&plan.delete)?;
        self.slots.register_all(&plan.before)
    }

    /// After a single change failed: nothing has changed yet, or the range becomes a hole.
    fn recover_as_hole(&mut self, shared: &Shared, undos: Vec<Undo>, error: Error) -> Error {
        if error.state_after() != StateAfter::Hole {
            self.leave(undos);
            return error;
        }
        let placed = matches!(error, Error::Slot { .. } | Error::Dma { .. });
        for undo in undos {
            let range = undo.range();
            self.layout.set(range, None);
            if placed && let Err(refused) = shared.arena.punch(range) {
                return refusal(
                    range,
                    &Refused {
                        state: StateAfter::Poisoned,
                        ..refused
                    },
                );
            }
        }
        error
    }

    /// After a batch failed: everything is put back.
    fn put_back(&mut self, shared: &Shared, undos: Vec<Undo>, saved: Saved, error: Error) -> Error {
        let ranges = merge::without_seams(undos.iter().map(Undo::range).collect());
        self.leave(undos);
        if let Error::Place { range, state, .. } = error {
            // A stranger's memory may lie in the arena: nothing is put over it. What was not saved
            // was not to be lost.
            if state == StateAfter::Poisoned || (state == StateAfter::Hole && saved.lacks(range)) {
                return error.with_state(StateAfter::Poisoned);
            }
        }
        let put_back = saved.put_back(&shared.arena);
        let holes = || {
            ranges
                .iter()
                .flat_map(|range| self.layout.arena_holes(*range))
        };
        let punched = || {
            holes().try_for_each(|hole| shared.arena.punch(hole).map_err(|refused| (hole, refused)))
        };
        match put_back.and_then(|()| punched()) {
            Ok(()) => error.with_state(StateAfter::Unchanged),
            Err((range, refused)) => refusal(
                range,
                &Refused {
                    state: StateAfter::Poisoned,
                    ..refused
                },
            ),
        }
    }

    /// Poisons the window where a failure, or the recovery from it, could not be undone.
    fn judge(&mut self, error: Error, settled: Result<(), Error>) -> Error {
        let poisoned = error.state_after() == StateAfter::Poisoned || settled.is_err();
        if !poisoned {
            return error;
        }
        if let Err(second) = settled {
            log::warn!("cannot put memslots and DMA back: {second}");
        }
        self.poison();
        error.with_state(StateAfter::Poisoned)
    }

    /// Takes the whole window away from devices and the guest, as far as they let it.
    pub(super) fn poison(&mut self) {
        self.poisoned = true;
        if let Err(error) = self.dma.unmap_what_goes() {
            log::error!("cannot take a poisoned window away from devices: {error}");
        }
        if let Err(error) = self.slots.unregister_what_goes() {
            log::error!("cannot take a poisoned window away from the guest: {error}");
        }
    }
}
