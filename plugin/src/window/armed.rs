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
mod tests {
    use std::io::{self, Write};
    use std::sync::Arc;

    use super::*;
    use crate::arena::faults::{self, Effect, Fault, Plan};
    use crate::arena::poison::can_poison;
    use crate::range::{GuestAddress, HUGE_2M, PAGE_SIZE};
    use crate::slots::{Slot, SlotNumbers, SlotProvider};
    use crate::source::{Protection, Source};
    use crate::window::options::WindowOptions;
    use crate::window::touch::{Touch, Touched};

    fn pages(start: u64, count: u64) -> PageRange {
        PageRange::new(start * PAGE_SIZE, count * PAGE_SIZE).unwrap()
    }

    #[test]
    fn what_is_taken_is_cut_out() {
        let all = pages(2, 8);
        assert_eq!(without(all, &[]), [all]);
        assert_eq!(without(all, &[pages(0, 2), pages(10, 1)]), [all]);
        assert_eq!(without(all, &[pages(0, 20)]), []);
        let cut = without(all, &[pages(4, 1), pages(1, 2), pages(9, 3), pages(5, 1)]);
        assert_eq!(cut, [pages(3, 1), pages(6, 3)]);
    }

    #[derive(Debug)]
    struct Nowhere;

    // SAFETY: there is no guest that could reach anything.
    #[expect(unsafe_code, reason = "the provider trait is unsafe to implement")]
    unsafe impl SlotProvider for Nowhere {
        unsafe fn register(&self, _: &Slot) -> io::Result<()> {
            Ok(())
        }

        fn unregister(&self, _: &Slot) -> io::Result<()> {
            Ok(())
        }
    }

    /// A window of two segments, the first of them with a slot, and a mapping at page 8.
    fn window(test: &str) -> Option<Window> {
        if let Err(errno) = can_poison(PAGE_SIZE) {
            let mut stderr = io::stderr();
            writeln!(stderr, "SKIP {test}: cannot poison memory: {errno}").unwrap();
            return None;
        }
        let options = WindowOptions::new(GuestAddress(4 << 30), 2 * HUGE_2M);
        let options = options.segment_size(HUGE_2M);
        let window = options.open(Arc::new(Nowhere), SlotNumbers::new(8..16));
        let window = window.unwrap();
        let source = Source::anonymous();
        window
            .map(pages(8, 2), &source, Protection::ReadWrite)
            .unwrap();
        Some(window)
    }

    /// The memory areas of the window's arena, as lines of `/proc/self/maps`.
    fn areas(window: &Window) -> Vec<String> {
        let (start, len) = (window.host_base(), window.len());
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let inside = |line: &&str| {
            let (from, _) = line.split_once('-').unwrap();
            let from = u64::from_str_radix(from, 16).unwrap();
            from >= start && from - start < len
        };
        maps.lines().filter(inside).map(str::to_owned).collect()
    }

    #[test]
    fn holes_with_a_slot_are_armed_and_are_holes_again() {
        let Some(window) = window("holes_with_a_slot_are_armed_and_are_holes_again") else {
            return;
        };
        let before = areas(&window);
        let (mark, end) = window.arm(0).unwrap().unwrap();
        assert_eq!(end, HUGE_2M, "the second segment has no slot");
        let armed = vec![pages(0, 8), pages(10, 502)];
        assert_eq!(window.state().substitutes.armed.live, [(mark, armed)]);
        assert_eq!(window.arm(0), Err(Errno::AGAIN), "all are armed");
        assert_eq!(window.arm(end), Ok(None));
        window.disarm(mark);
        assert_eq!(areas(&window), before);
        window.disarm(mark);
        assert_eq!(areas(&window), before);
    }

    #[test]
    fn holes_are_armed_though_others_are_taken_meanwhile() {
        let Some(window) = window("holes_are_armed_though_others_are_taken_meanwhile") else {
            return;
        };
        let planned = window.state().armable(0, window.len());
        let poison = |range: &PageRange| {
            let staged = Staged::poisoned(range.len(), window.shared.arena.site(*range));
            (*range, staged.unwrap())
        };
        let again = planned.iter().map(poison).collect();
        let staged = planned.iter().map(poison).collect();
        let source = Source::anonymous();
        let map = |range| window.map(range, &source, Protection::ReadWrite).unwrap();
        map(pages(0, 1));
        map(pages(20, 4));
        let before = areas(&window);
        let mark = window.place_poison(staged).unwrap();
        let armed = vec![pages(1, 7), pages(10, 10), pages(24, 488)];
        assert_eq!(window.state().substitutes.armed.live, [(mark, armed)]);
        assert_eq!(
            window.place_poison(again),
            Err(Errno::AGAIN),
            "none is left"
        );
        window.disarm(mark);
        assert_eq!(areas(&window), before);
    }

    #[test]
    fn what_is_mapped_over_armed_holes_stays() {
        let Some(window) = window("what_is_mapped_over_armed_holes_stays") else {
            return;
        };
        let (mark, _) = window.arm(0).unwrap().unwrap();
        let source = Source::anonymous();
        window
            .map(pages(20, 4), &source, Protection::ReadOnly)
            .unwrap();
        let rest = vec![pages(0, 8), pages(10, 10), pages(24, 488)];
        assert_eq!(window.state().substitutes.armed.live, [(mark, rest)]);
        window.unmap(pages(8, 2)).unwrap();
        window.disarm(mark);
        let after = areas(&window);
        assert_eq!(after.len(), 3, "a hole, a mapping, a hole: {after:?}");
        assert!(after[1].contains("r--s"), "{after:?}");
    }

    #[test]
    fn armed_hole_that_was_mapped_in_between_can_be_armed_by_others() {
        let test = "armed_hole_that_was_mapped_in_between_can_be_armed_by_others";
        let Some(window) = window(test) else {
            return;
        };
        let before = areas(&window);
        let (first, _) = window.arm(0).unwrap().unwrap();
        let source = Source::anonymous();
        window
            .map(pages(20, 1), &source, Protection::ReadOnly)
            .unwrap();
        window.unmap(pages(20, 1)).unwrap();
        let (second, end) = window.arm(0).unwrap().unwrap();
        assert_eq!(end, pages(20, 1).end());
        // Nothing is there to be unmapped, so it stays armed.
        window.unmap(pages(20, 2)).unwrap();
        assert_eq!(window.arm(0), Err(Errno::AGAIN), "all are armed");
        window.disarm(first);
        window.disarm(second);
        assert_eq!(areas(&window), before);
    }

    /// A vCPU that touched it could arm nothing as long as another one stayed in the guest, and was
    /// stopped for that.
    #[test]
    fn armed_hole_that_a_page_stood_in_for_can_be_armed_by_others() {
        let Some(window) = window("armed_hole_that_a_page_stood_in_for_can_be_armed_by_others")
        else {
            return;
        };
        let before = areas(&window);
        let (first, _) = window.arm(0).unwrap().unwrap();
        let touch = Touch {
            offset: pages(20, 1).start(),
            write: true,
            stand_in: true,
            own: &[],
            copy: &|_, _| Ok(()),
        };
        let Touched::Substituted(ticket, _) = window.touch(touch, &mut None) else {
            panic!("nothing stands in");
        };
        window.end_substitutes(&[ticket]);
        let (second, end) = window.arm(0).unwrap().unwrap();
        assert_eq!(end, pages(20, 1).end());
        window.disarm(second);
        window.disarm(first);
        assert_eq!(areas(&window), before);
    }

    #[test]
    fn arming_that_fails_half_way_arms_nothing() {
        let Some(window) = window("arming_that_fails_half_way_arms_nothing") else {
            return;
        };
        let before = areas(&window);
        let mut call = 0;
        loop {
            let errno = Errno::NOMEM;
            for effect in [Effect::Nothing, Effect::Unmapped] {
                faults::follow(&Plan::from([(call, Fault { errno, effect })]));
                let armed = window.arm(0);
                let reached = faults::made().len() as u64 > call;
                faults::follow(&Plan::new());
                if let Ok(Some((mark, _))) = armed {
                    // It was a call that nothing rests on, or the last was passed.
                    window.disarm(mark);
                }
                assert!(reached || armed.is_ok());
                assert_eq!(areas(&window), before, "call {call}, {effect:?}");
                assert!(!window.state().poisoned);
                if !reached {
                    assert!(call > 10, "{call}");
                    return;
                }
            }
            call += 1;
        }
    }
}
