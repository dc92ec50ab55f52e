//! Owns the test of the budget of memory areas, in a process of its own because it uses them up.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    reason = "tests compute with small figures and fail where they cannot go on"
)]

#[path = "common/recorder.rs"]
#[expect(
    dead_code,
    unreachable_pub,
    reason = "this test uses less of it than the others"
)]
mod recorder;

use std::sync::Arc;

use vm_remap::{
    Error, GuestAddress, PAGE_SIZE, PageRange, Protection, SlotNumbers, Source, WindowOptions,
};

fn pages(start: u64, count: u64) -> PageRange {
    PageRange::new(start * PAGE_SIZE, count * PAGE_SIZE).unwrap()
}

#[test]
fn map_is_refused_in_time_and_unmap_always_works() {
    let fd = rustix::fs::memfd_create("blob", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, 4 * PAGE_SIZE).unwrap();
    let source = Source::descriptor(std::os::fd::AsFd::as_fd(&fd), 0);
    let recorder = Arc::new(recorder::Recorder::default());
    let window = WindowOptions::new(GuestAddress(0), 64 << 30)
        .open(recorder, SlotNumbers::new(0..64))
        .unwrap();
    // The most areas: no two mappings are neighbours.
    let at = |index: u64| pages(index * 8, 4);
    let mut mapped = 0;
    let error = loop {
        match window.map(at(mapped), &source, Protection::ReadWrite) {
            Ok(()) => mapped += 1,
            Err(error) => break error,
        }
        assert!(mapped < 1 << 20, "nothing ever refused");
    };
    let Error::MapCount {
        needed: 2,
        limit,
        headroom,
        used,
        ..
    } = error
    else {
        panic!("unexpected error after {mapped} mappings: {error}");
    };
    assert!(used + headroom + 2 > limit, "{error}");
    assert!(error.to_string().contains("vm.max_map_count"), "{error}");

    // What frees or cuts is never refused: each cut makes two mappings of one.
    for index in 0..100 {
        window.unmap(pages(index * 8 + 1, 2)).unwrap();
    }
    window.unmap(at(mapped - 1)).unwrap();
    for index in 0..mapped {
        window.unmap(at(index)).unwrap();
    }
    assert_eq!(window.counters().mappings, 0);
    window.map(at(0), &source, Protection::ReadWrite).unwrap();
}
