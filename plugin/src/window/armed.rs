//! Owns the holes that are armed: poisoned, so that a guest's touch tells its address. Never decides
//! when, and keeps none armed for longer than whoever asked for it.
//!
//! A poisoned page cannot be written and allocates nothing, but it takes an entry in the page
//! tables (16 bytes for 8 KiB of hole), and 35 to 40 µs for a MiB. So not more than [`MOST`] bytes
//! are armed at once for one vCPU.

use std::ops::ControlFlow;

use rustix::io::Errno;

use super::Window;
use super::shared::Shared;
use super::transaction::State;
use crate::arena::Staged;
use crate::error::StateAfter;
use crate::range::PageRange;

/// The most bytes of holes that are armed at once for one vCPU: 64 MiB, with 128 KiB of page tables.
const MOST: u64 = 64 << 20;
/// And the most holes: each is a memory area of its own meanwhile.
const MOST_HOLES: usize = 64;

/// The number of what was armed at once, never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark(u64);

/// What is armed in a window now.
#[derive(Debug, Default)]
pub(super) struct Armed {
    live: Vec<(Mark, Vec<PageRange>)>,
    /// What the kernel did not let us take back yet.
    left: Vec<PageRange>,
    next: u64,
}

impl Armed {
    /// Notes that something else lies at `range` now. Whoever had armed it may stay in the guest for
    /// long, and others need to know that it can be armed again once it is a hole.
    pub(super) fn cover(&mut self, range: PageRange) {
        for (_, ranges) in &mut self.live {
            if ranges
                .iter()
                .any(|armed| armed.intersection(range).is_some())
            {
                let rest = ranges.iter().flat_map(|armed| without(*armed, &[range]));
                *ranges = rest.collect();
            }
        }
    }

    /// Which of `ranges` [`cover`](Self::cover) has to hear of.
    pub(super) fn among(&self, ranges: impl Iterator<Item = PageRange>) -> Vec<PageRange> {
        let armed = |range: &PageRange| {
            let mut live = self.live.iter().flat_map(|(_, ranges)| ranges);
            live.any(|armed| armed.intersection(*range).is_some())
        };
        ranges.filter(armed).collect()
    }
}

impl Window {
    /// Arms the first holes that memslots have from the window's byte `from` on, and tells where
    /// the rest begins; `None` where there are no more. [`Errno::AGAIN`] where others have taken all
    /// of them meanwhile, or have armed all that there are.
    pub(crate) fn arm(&self, from: u64) -> rustix::io::Result<Option<(Mark, u64)>> {
        let (planned, others) = {
            let state = self.state();
            let others = state
                .substitutes
                .armed
                .live
                .iter()
                .flat_map(|(_, ranges)| ranges);
            let others = others.map(|range| range.end()).max();
            (state.armable(from, self.len()), others)
        };
        let Some(end) = planned.last().map(|last| last.end()) else {
            return match others {
                Some(end) if end > from => Err(Errno::AGAIN),
                _ => Ok(None),
            };
        };
        // What takes long is done outside the lock.
        let staged = |range: PageRange| {
            let staged = Staged::poisoned(range.len(), self.shared.arena.site(range))?;
            Ok((range, staged))
        };
        let staged = planned.into_iter().map(staged).collect::<Result<_, _>>()?;
        Ok(Some((self.place_poison(staged)?, end)))
    }

    /// Arms what is still a hole of what was planned.
    fn place_poison(&self, planned: Vec<(PageRange, Staged)>) -> rustix::io::Result<Mark> {
        let mut state = self.state();
        let mut placed = Vec::with_capacity(planned.len());
        for (range, mut staged) in planned {
            let mut at = range.start();
            let holes: Vec<_> = state.bare_of_others(range).collect();
            for hole in holes {
                if placed.len() >= MOST_HOLES {
                    break;
                }
                drop(staged.cut(hole.start().saturating_sub(at)));
                at = hole.end();
                if let Err(refused) = self.shared.arena.place(hole, staged.cut(hole.len())) {
                    if refused.state == StateAfter::Poisoned {
                        state.poison();
                    }
                    state.take_back(&self.shared, placed);
                    return Err(refused.errno);
                }
                placed.push(hole);
            }
        }
        if placed.is_empty() {
            return Err(Errno::AGAIN);
        }
        let mark = Mark(state.substitutes.armed.next);
        state.substitutes.armed.next = state.substitutes.armed.next.wrapping_add(1);
        state.substitutes.armed.live.push((mark, placed));
        Ok(mark)
    }

    /// How many changes were made or tried, arming not among them.
    pub(crate) fn changes(&self) -> u64 {
        self.state().changes
    }

    /// Makes holes again of what was armed by this mark.
    pub(crate) fn disarm(&self, mark: Mark) {
        let mut state = self.state();
        let live = &mut state.substitutes.armed.live;
        let Some(at) = live.iter().position(|(there, _)| *there == mark) else {
            return;
        };
        let (_, ranges) = live.swap_remove(at);
        state.take_back(&self.shared, ranges);
    }
}

impl State {
    /// The holes that can be armed from `from` on, as many as may be at once.
    fn armable(&self, from: u64, len: u64) -> Vec<PageRange> {
        let mut room = MOST;
        let mut found = Vec::new();
        let Some(rest) = PageRange::between(from, len) else {
            return found;
        };
        let _full = self.bare_of_others(rest).try_for_each(|hole| {
            let end = hole.end().min(hole.start().saturating_add(room));
            found.extend(PageRange::between(hole.start(), end));
            room = room.saturating_sub(hole.len());
            if room == 0 || found.len() >= MOST_HOLES {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        found
    }

    /// The holes in `rest` that memslots have and nobody has armed.
    fn bare_of_others(&self, rest: PageRange) -> impl Iterator<Item = PageRange> {
        let live = self.substitutes.armed.live.iter();
        let armed: Vec<PageRange> = live.flat_map(|(_, ranges)| ranges).copied().collect();
        let slots = self.slots.overlapping(rest).filter(|_| !self.poisoned);
        slots
            .filter_map(move |slot| slot.range.intersection(rest))
            .flat_map(|part| self.bare(part))
            .flat_map(move |hole| without(hole, &armed))
    }

    /// The parts of `range` where neither a mapping nor a substitute is.
    fn bare(&self, range: PageRange) -> Vec<PageRange> {
        let taken: Vec<PageRange> = self.substitutes.ranges().collect();
        let holes = self.layout.arena_holes(range).into_iter();
        holes.flat_map(|hole| without(hole, &taken)).collect()
    }

    /// Makes holes again of what is no mapping and no substitute by now.
    fn take_back(&mut self, shared: &Shared, ranges: Vec<PageRange>) {
        let mut ranges = ranges;
        ranges.append(&mut self.substitutes.armed.left);
        for range in ranges {
            for hole in self.bare(range) {
                // What lies in a poisoned window is not known.
                if self.poisoned {
                    return;
                }
                let Err(refused) = shared.arena.punch(hole) else {
                    continue;
                };
                log::warn!("cannot disarm the hole at {hole}: {}", refused.errno);
                match refused.state {
                    StateAfter::Unchanged => self.substitutes.armed.left.push(hole),
                    StateAfter::Hole => {}
                    StateAfter::Poisoned => self.poison(),
                }
            }
        }
    }
}

/// What is left of `range` without those of `taken`.
fn without(range: PageRange, taken: &[PageRange]) -> Vec<PageRange> {
    let mut left = vec![range];
    for taken in taken
        .iter()
        .filter(|taken| taken.intersection(range).is_some())
    {
        let cut = |part: PageRange| {
            let before = PageRange::between(part.start(), part.end().min(taken.start()));
            let after = PageRange::between(part.start().max(taken.end()), part.end());
            before.into_iter().chain(after)
        };
        left = left.into_iter().flat_map(cut).collect();
    }
    left
}

#[cfg(test)]
#[path = "armed_tests.rs"]
mod tests;
