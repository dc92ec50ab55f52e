//! Owns the tests of the arena that need no window. Never reads memory of an arena.

use super::*;
use crate::range::{HUGE_2M, PAGE_SIZE};

#[test]
fn arena_is_congruent_with_the_guest_wherever_it_lies() {
    for base in [0, PAGE_SIZE, (2 << 20) + PAGE_SIZE, 5 * HUGE_1G - PAGE_SIZE] {
        let arena = Arena::reserve(3 * PAGE_SIZE, GuestAddress(base)).unwrap();
        assert_eq!(arena.address(0) % HUGE_1G, base % HUGE_1G);
        let skew = base % HUGE_1G;
        let anywhere = Arena::reserve_anywhere(3 << 12, skew).unwrap();
        assert_eq!(anywhere.address(0) % HUGE_1G, skew);
        let all = PageRange::new(0, 3 * PAGE_SIZE).unwrap();
        assert!(!anywhere.has_gap(all) && !arena.has_gap(all));
    }
}

#[test]
fn reserve_of_more_than_the_address_space_is_an_error() {
    Arena::reserve(1 << 60, GuestAddress(0)).unwrap_err();
}

#[test]
fn a_placement_that_fails_leaves_no_gap() {
    let arena = Arena::reserve(4 * PAGE_SIZE, GuestAddress(0)).unwrap();
    let all = PageRange::new(0, 4 * PAGE_SIZE).unwrap();
    // A mapping that is gone cannot be moved. Before 6.17 the kernel unmaps the target first.
    let mut gone = Arena::reserve(4 * PAGE_SIZE, GuestAddress(0)).unwrap();
    unmap(gone.base, gone.len);
    gone.set_leaked(true);
    let staged = Staged {
        address: gone.base,
        len: gone.len,
    };
    let refused = arena.place(all, staged).unwrap_err();
    assert_ne!(refused.state, StateAfter::Poisoned);
    assert!(!arena.has_gap(all));
}

#[test]
fn a_gap_that_a_failure_left_is_filled() {
    let arena = Arena::reserve(4 * PAGE_SIZE, GuestAddress(0)).unwrap();
    let part = PageRange::new(PAGE_SIZE, 2 * PAGE_SIZE).unwrap();
    unmap(arena.base + 4096, 8192);
    assert_eq!(arena.after(part, Errno::NOMEM).state, StateAfter::Hole);
    assert!(!arena.has_gap(part));
    assert_eq!(arena.after(part, Errno::NOMEM).state, StateAfter::Unchanged);
}

#[test]
fn a_stranger_in_a_gap_is_not_overwritten() {
    let mut arena = Arena::reserve(4 * PAGE_SIZE, GuestAddress(0)).unwrap();
    let part = PageRange::new(PAGE_SIZE, 2 * PAGE_SIZE).unwrap();
    unmap(arena.base + 4096, 8192);
    map_hole(arena.base + 4096, 4096, MapFlags::FIXED_NOREPLACE).unwrap();
    assert_eq!(arena.after(part, Errno::NOMEM).state, StateAfter::Poisoned);
    // The page after the stranger is still a gap: nothing was forced over both.
    assert!(arena.has_gap(part));
    arena.set_leaked(true);
}

#[test]
fn has_gap_sees_a_gap() {
    let arena = Arena::reserve(4 * PAGE_SIZE, GuestAddress(0)).unwrap();
    let all = PageRange::new(0, 4 * PAGE_SIZE).unwrap();
    assert!(!arena.has_gap(all));
    unmap(arena.base + 4096, 4096);
    assert!(arena.has_gap(all));
    arena.punch(all).unwrap();
    assert!(!arena.has_gap(all));
}

#[test]
fn a_mapping_of_2_mib_waits_congruent_with_its_place_even_if_another_one_waits_there() {
    let huge = usize::try_from(HUGE_2M).unwrap();
    let arena = Arena::reserve(4 * HUGE_2M, GuestAddress(0x5000)).unwrap();
    for start in [0, 0x3000, HUGE_2M - PAGE_SIZE] {
        let range = PageRange::new(start, HUGE_2M).unwrap();
        let stage = || Staged::anonymous(HUGE_2M, Protection::ReadOnly, arena.site(range)).unwrap();
        // Another thread of the tests can take the second's place in between.
        let congruent = (0..100).any(|_| {
            let staged = [stage(), stage()];
            let apart = |staged: &Staged| staged.address.abs_diff(arena.span(range).0) % huge;
            staged.iter().all(|staged| apart(staged) == 0)
        });
        assert!(congruent, "{range}");
    }
}

#[test]
fn populate_of_pages_that_the_file_has_lost_is_an_error() {
    let fd = rustix::fs::memfd_create("lost", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, 4 * PAGE_SIZE).unwrap();
    let staged = |protection| {
        use std::os::fd::AsFd;
        Staged::descriptor(4 * PAGE_SIZE, fd.as_fd(), 0, protection, Site(0)).unwrap()
    };
    let (written, read) = (staged(Protection::ReadWrite), staged(Protection::ReadOnly));
    written.populate(Populate::Write).unwrap();
    read.populate(Populate::Read).unwrap();
    rustix::fs::ftruncate(&fd, PAGE_SIZE).unwrap();
    assert_eq!(written.populate(Populate::Write), Err(Errno::FAULT));
    assert_eq!(read.populate(Populate::Read), Err(Errno::FAULT));
}

#[test]
fn drop_of_a_staged_mapping_gives_its_range_back() {
    // Another thread of the tests can take the range in between.
    let given_back = (0..100).any(|_| {
        let staged = Staged::anonymous(PAGE_SIZE, Protection::ReadOnly, Site(0)).unwrap();
        let address = staged.address;
        drop(staged);
        let again = map_hole(address, 4096, MapFlags::FIXED_NOREPLACE);
        again.is_ok_and(|again| {
            unmap(again, 4096);
            again == address
        })
    });
    assert!(given_back);
}
