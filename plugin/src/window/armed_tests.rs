//! Owns the tests of arming: what is armed, what comes in between, and a kernel that fails. Never
//! runs a guest.

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
    let Some(window) = window("armed_hole_that_a_page_stood_in_for_can_be_armed_by_others") else {
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
