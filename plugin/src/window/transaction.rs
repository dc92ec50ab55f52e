//! Owns the second half of a change, under the window's lock: layout, slots and arena move
//! together, and come back together when the kernel refuses. Never checks a source.
//!
//! The order: slots that cannot rest go; new slots come where nothing changes under them; devices
//! lose what changes; memory changes; the other new slots come; devices get what is there now.
//! With `fixed`, in steady state and without devices, only the memory changes.
//!
//! What a failure leaves: a batch, and whatever fails before memory changes, leaves everything
//! as it was. A single change whose last step fails leaves a hole. Where even putting things
//! back fails, the window is poisoned.

use std::collections::BTreeSet;

use rustix::io::Errno;

use super::counters::count;
use super::huge::{Lost, Place};
use super::pins::{Pinned, Pins};
use super::plan::spans;
use super::prepare::{Placement, Prepared, Ready, Run};
use super::recovery::OnFailure;
use super::saved::Saved;
use super::shared::Shared;
#[cfg(feature = "fault")]
use super::substitute::Substitutes;
use crate::arena::Refused;
use crate::arena::areas::Need;
use crate::dma::table::DmaTable;
use crate::error::{Error, StateAfter};
use crate::layout::{Layout, Mapping, Undo};
use crate::range::PageRange;
use crate::slots::table::SlotTable;
use crate::source::descriptor::access_refused;

/// What changes while the window lives.
#[derive(Debug)]
pub(super) struct State {
    pub(super) layout: Layout,
    pub(super) slots: SlotTable,
    pub(super) dma: DmaTable,
    #[cfg(feature = "fault")]
    pub(super) substitutes: Substitutes,
    /// How many changes were made or tried.
    #[cfg(feature = "fault")]
    pub(super) changes: u64,
    pub(super) poisoned: bool,
    pub(super) pins: Pins,
}

impl Pinned for State {
    fn pins(&mut self) -> &mut Pins {
        &mut self.pins
    }
}

impl State {
    pub(super) fn commit(
        &mut self,
        shared: &Shared,
        ready: Ready<'_>,
        on_failure: OnFailure,
    ) -> Result<(), Error> {
        if self.poisoned {
            return Err(Error::Poisoned);
        }
        #[cfg(feature = "fault")]
        self.make_way(shared, ready.changes.iter().map(|change| change.range))?;
        let Ready {
            changes, mut runs, ..
        } = ready;
        // A hole that is made where the arena has nothing is no call.
        runs.retain(|run| run.makes_memory() || self.layout.has_memory(run.range));
        let whole = self.huge_pages_first(&runs);
        runs.splice(0..0, whole);
        let saved = match on_failure {
            OnFailure::Hole => Saved::default(),
            OnFailure::PutBack => {
                let fails_late = !shared.backend.slots_rest() || !self.dma.is_empty();
                Saved::before(shared, &self.layout, &runs, fails_late)?
            }
        };
        let before = self.layout.len();
        let undos = self.enter(&changes)?;
        let place = Place {
            guest: self.slots.base().0,
            host: shared.arena.address(0),
            logs_dirty_pages: self.slots.logs_dirty_pages(),
        };
        let lost = Lost::by(&changes, &undos, place);
        #[cfg(feature = "fault")]
        let armed = self
            .substitutes
            .armed
            .among(runs.iter().map(|run| run.range));
        // What is unmapped is given back when it is gone.
        let charged = self.added_since(before).max(0);
        if let Err(error) = take_areas(shared, charged, &changes) {
            self.leave(undos);
            return Err(error);
        }
        let changing = self.to_report(&undos);
        // Whatever a hypervisor that panics leaves behind, nobody goes on with.
        self.poisoned = true;
        let mut placed = false;
        let made = self.make(shared, runs, &undos, &mut placed);
        let result =
            made.map_err(|error| self.recover(shared, undos, saved, (on_failure, placed), error));
        self.report(&changing, placed);
        let added = self.added_since(before);
        shared.areas.give_back(charged.saturating_sub(added));
        let poisons = |error: &Error| error.state_after() == StateAfter::Poisoned;
        self.poisoned = result.as_ref().is_err_and(poisons);
        if result.is_ok() {
            #[cfg(feature = "fault")]
            armed
                .into_iter()
                .for_each(|range| self.substitutes.armed.cover(range));
            lost.count(&shared.tally);
            count_made(shared, &changes);
        }
        result
    }

    /// Ends the substitutes that are in the way of changes of `ranges`.
    #[cfg(feature = "fault")]
    pub(super) fn make_way(
        &mut self,
        shared: &Shared,
        ranges: impl Iterator<Item = PageRange>,
    ) -> Result<(), Error> {
        self.changes = self.changes.wrapping_add(1);
        let mut ranges = ranges.peekable();
        let Some(first) = ranges.peek().copied() else {
            return Ok(());
        };
        let ended = self.end_in_the_way(shared, ranges);
        ended.map_err(|refused| refusal(first, &refused))
    }

    /// How many mappings there are more than `before`.
    fn added_since(&self, before: usize) -> isize {
        self.layout.len().wrapping_sub(before).cast_signed()
    }

    /// Enters the changes into the layout, all or none.
    fn enter(&mut self, changes: &[Prepared]) -> Result<Vec<Undo>, Error> {
        let mut undos = Vec::with_capacity(changes.len());
        for change in changes {
            let range = change.range;
            if change.into_hole {
                let occupied = self.layout.overlapping(range).next().map(|old| old.range);
                if let Some(occupied) = occupied {
                    self.leave(undos);
                    return Err(Error::Occupied { range, occupied });
                }
            }
            if let Some(error) = self.huge_page_cut(range) {
                self.leave(undos);
                return Err(error);
            }
            undos.push(self.layout.set(range, change.mapping.clone()));
        }
        Ok(undos)
    }

    /// What is wrong with changing `range`, where it cuts a mapping inside a huge page. The kernel
    /// refuses that as well, with different errors (Linux: `mm/hugetlb.c`, `hugetlb_vm_op_split`).
    fn huge_page_cut(&self, range: PageRange) -> Option<Error> {
        let mut met = self.layout.overlapping(range);
        met.find_map(|old| huge_page_cut(old, range))
    }

    /// Holes for the huge pages that `runs` cut one by one and cover together: the kernel takes a
    /// huge page away whole or not at all.
    fn huge_pages_first(&self, runs: &[Run<'_>]) -> Vec<Run<'static>> {
        let cut = |run: &Run<'_>| {
            let met = self.layout.overlapping(run.range);
            met.filter_map(|old| old.huge_pages_cut_by(run.range))
                .collect::<Vec<_>>()
        };
        let whole: BTreeSet<PageRange> = runs.iter().flat_map(cut).collect();
        let hole = |range| Run {
            range,
            placement: Placement::Hole,
        };
        whole.into_iter().map(hole).collect()
    }

    pub(super) fn leave(&mut self, mut undos: Vec<Undo>) {
        while let Some(undo) = undos.pop() {
            self.layout.restore(undo);
        }
    }

    /// Makes the changes that the layout has already; stops at the first failure.
    fn make(
        &mut self,
        shared: &Shared,
        runs: Vec<Run<'_>>,
        undos: &[Undo],
        placed: &mut bool,
    ) -> Result<(), Error> {
        let plan = self.plan(shared, undos);
        let added = plan.before.len().saturating_add(plan.after.len());
        self.slots.has_room(added, plan.delete.len())?;
        self.slots.unregister_all(&plan.delete)?;
        self.slots.register_all(&plan.before)?;
        self.unmap_dma(undos)?;
        *placed = true;
        for run in runs {
            place(shared, run)?;
        }
        self.slots
            .register_all(&plan.after)
            .and_then(|()| match self.dma.is_empty() {
                true => Ok(()),
                false => self.map_dma(shared, &spans(undos)),
            })
            .map_err(|error| error.with_state(StateAfter::Hole))
    }
}

/// The error for a change of `range` that cuts `mapping` inside a huge page.
pub(super) fn huge_page_cut(mapping: &Mapping, range: PageRange) -> Option<Error> {
    Some(Error::HugePageCut {
        range,
        mapping: mapping.range,
        page_size: mapping.cut_inside_huge_page(range)?,
    })
}

/// Counts what has become of the changes.
fn count_made(shared: &Shared, changes: &[Prepared]) {
    for change in changes {
        count(match (&change.mapping, change.into_hole) {
            (Some(_), true) => &shared.tally.maps,
            (Some(_), false) => &shared.tally.replaces,
            (None, _) => &shared.tally.unmaps,
        });
        let mapping = change.mapping.as_ref();
        let in_place = mapping.is_some_and(|mapping| mapping.in_place().is_some());
        if in_place && shared.backend.slots_rest() {
            count(&shared.tally.fallbacks);
        }
        match change.collapsed {
            Some(true) => count(&shared.tally.collapsed),
            Some(false) => count(&shared.tally.collapse_failures),
            None => {}
        }
    }
}

/// Takes the areas that a change needs.
fn take_areas(shared: &Shared, added: isize, changes: &[Prepared]) -> Result<(), Error> {
    let maps = changes.iter().find(|change| change.mapping.is_some());
    let need = if maps.is_some() { Need::Map } else { Need::Cut };
    let Some(first) = maps.or(changes.first()) else {
        return Ok(());
    };
    shared.areas.take(added, need, first.range)
}

/// Makes one change of memory.
fn place(shared: &Shared, run: Run<'_>) -> Result<(), Error> {
    let range = run.range;
    let refused = |refused: Refused| refusal(range, &refused);
    match run.placement {
        Placement::Staged(staged) => {
            shared.arena.place(range, staged).map_err(refused)?;
            count(&shared.tally.staged);
        }
        Placement::Direct {
            fd,
            offset,
            protection,
        } => {
            let placed = shared.arena.place_directly(range, fd, offset, protection);
            placed.map_err(|refused| {
                let judged =
                    (refused.errno, refused.state) == (Errno::ACCESS, StateAfter::Unchanged);
                let access = judged.then(|| access_refused(fd, range, protection));
                access.flatten().unwrap_or_else(|| refusal(range, &refused))
            })?;
            count(&shared.tally.direct);
        }
        Placement::Hole => shared.arena.punch(range).map_err(refused)?,
    }
    Ok(())
}

pub(super) fn refusal(range: PageRange, refused: &Refused) -> Error {
    Error::Place {
        range,
        state: refused.state,
        source: refused.errno.into(),
    }
}
