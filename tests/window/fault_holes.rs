//! Owns the tests of what holes cost a host whose guest touches all of them: no memory, no memory
//! area for good, and no vCPU that faults at full speed without end.

use std::fs;

use vm_remap::BackendKind::Fixed;
use vm_remap::Protection::{ReadOnly, ReadWrite};
use vm_remap::fault::Event;
use vm_remap::{HolePolicy, Window};
use vm_remap_cli::guest::{Access, Touch};

use crate::fault::{Resolved, open_resolved};
use crate::support::*;

/// The pages of the first segment behind its one mapping.
const FIRST: u64 = 1;
const HOLES: u64 = SEGMENT_PAGES - FIRST;

/// Memory areas that lie in the window's arena.
pub(crate) fn areas(on: &Resolved) -> usize {
    areas_of(&on.window)
}

/// The same, for a window whose first page is mapped.
pub(crate) fn areas_of(window: &Window) -> usize {
    let first = window.lookup(vm_remap::GuestAddress(BASE)).unwrap();
    let start = first.host_address;
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let inside = |line: &&str| {
        let (from, _) = line.split_once('-').unwrap();
        (start..start + LEN).contains(&u64::from_str_radix(from, 16).unwrap())
    };
    maps.lines().filter(inside).count()
}

/// Bytes of memory that the arena's areas hold.
pub(crate) fn resident(on: &Resolved) -> u64 {
    let start = on
        .window
        .lookup(vm_remap::GuestAddress(BASE))
        .unwrap()
        .host_address;
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    let mut total = 0;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        match words.next().unwrap() {
            "Rss:" | "Swap:" if inside => total += words.next().unwrap().parse::<u64>().unwrap(),
            range if !range.ends_with(':') => {
                let (from, _) = range.split_once('-').unwrap();
                inside = (start..start + LEN).contains(&u64::from_str_radix(from, 16).unwrap());
            }
            _ => {}
        }
    }
    total << 10
}

fn walk_all_holes(test: &str, policy: HolePolicy) {
    let Some(on) = open_resolved(test, 1, options(Fixed).holes(policy)) else {
        return;
    };
    on.guest.write_u64(0, at(0), 1).unwrap();
    // The first fault makes the pattern that all later ones share.
    on.guest.write_u64(0, at(FIRST), 1).unwrap();
    let before = (areas(&on), resident(&on));
    for kind in [Touch::Read, Touch::Write, Touch::Read] {
        let touched = on.guest.touch(0, at(FIRST), HOLES * 4096, kind).unwrap();
        assert_eq!(touched, Access::Done(HOLES), "{policy:?} {kind:?}");
    }
    assert_eq!((areas(&on), resident(&on)), before, "{policy:?}");
    let counters = on.resolver().counters();
    let answered = match policy {
        HolePolicy::Zero => 1 + HOLES,
        _ => 1 + 3 * HOLES,
    };
    assert_eq!(
        (counters.holes, counters.stops),
        (answered, 0),
        "{counters:?}"
    );
    assert_eq!(counters.events_dropped, 0);
}

#[test]
fn walk_of_all_trapping_holes_leaves_nothing_behind() {
    let test = "walk_of_all_trapping_holes_leaves_nothing_behind";
    walk_all_holes(test, HolePolicy::Trap);
}

#[test]
fn walk_of_all_zero_holes_leaves_nothing_behind() {
    let test = "walk_of_all_zero_holes_leaves_nothing_behind";
    walk_all_holes(test, HolePolicy::Zero);
}

#[test]
fn walk_of_writes_to_read_only_memory_leaves_nothing_behind() {
    let test = "walk_of_writes_to_read_only_memory_leaves_nothing_behind";
    let Some(on) = open_resolved(test, 1, options(Fixed)) else {
        return;
    };
    let blob = Blob::new(Seal::Unsealed, 64, 1000);
    on.window
        .map(pages(8, 64), &blob.source(), ReadOnly)
        .unwrap();
    assert_eq!(view(&on.guest, 8..72), words(&blob));
    let before = (areas(&on), resident(&on));
    let touched = on.guest.touch(0, at(8), 64 * 4096, Touch::Write).unwrap();
    assert_eq!(touched, Access::Done(64));
    assert_eq!(view(&on.guest, 8..72), words(&blob));
    assert_eq!((areas(&on), resident(&on)), before);
    assert_eq!(blob.bytes(), blob.expected());
}

#[test]
fn vcpu_that_faults_without_end_is_slowed_and_told_once() {
    let test = "vcpu_that_faults_without_end_is_slowed_and_told_once";
    let Some(on) = open_resolved(test, 1, options(Fixed)) else {
        return;
    };
    // More than a second's free ones, in however many seconds: slowing needs a fast enough host.
    for _ in 0..10 {
        on.guest
            .touch(0, at(FIRST), HOLES * 4096, Touch::Read)
            .unwrap();
    }
    let counters = on.resolver().counters();
    assert_eq!(counters.faults, 10 * HOLES, "{counters:?}");
    let told = on.resolver().events().into_iter();
    let told = told.filter(|event| *event == Event::Slowed).count();
    assert_eq!(told, usize::from(counters.slowed > 0), "{counters:?}");
    // The vCPU goes on all the same.
    on.window
        .replace(pages(1, 1), &vm_remap::Source::anonymous(), ReadWrite)
        .unwrap();
    on.guest.write_u64(0, at(1), 3).unwrap();
    assert_eq!(on.guest.read_u64(0, at(1)).unwrap(), Access::Done(3));
}
