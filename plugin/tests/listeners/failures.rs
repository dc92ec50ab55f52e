//! Owns the tests of listeners that fail: the error, and what it says of the state.

use std::error::Error as _;

use vm_remap::BackendKind::Fixed;
use vm_remap::Protection::ReadWrite;
use vm_remap::{Batch, Error, GuestAddress, PAGE_SIZE, StateAfter};

use crate::host::{Fault, Plan};
use crate::memories::pages;
use crate::order::{BASE, Bench, memfd, open, source};

/// Two listeners, and a mapping of 4 pages at the window's start.
fn furnished() -> Bench {
    let bench = open(Fixed, 32 * PAGE_SIZE);
    bench.add(0);
    bench.add(1);
    let fd = memfd(4);
    bench
        .window
        .map(pages(0, 4), &source(&fd), ReadWrite)
        .unwrap();
    bench.told();
    bench
}

fn follow(bench: &Bench, plan: impl IntoIterator<Item = (u64, Fault)>) {
    bench.host.follow(&plan.into_iter().collect::<Plan>());
}

fn held(bench: &Bench) -> [usize; 2] {
    [0, 1].map(|number| bench.host.pinned(number).len())
}

#[test]
fn unmap_that_is_refused_changes_nothing() {
    let bench = furnished();
    // The second listener lets go, the first does not.
    follow(&bench, [(1, Fault::Refuse)]);
    let error = bench.window.unmap(pages(0, 4)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot unmap 0x4000 bytes at guest address 0x100000000 for DMA: nothing has changed"
    );
    assert_eq!(
        (error.errno(), error.state_after()),
        (12, StateAfter::Unchanged)
    );
    assert!(error.source().is_some());
    assert_eq!(bench.told(), ["1 unmap 0..4", "0 unmap 0..4", "1 map 0..4"]);
    assert_eq!(bench.window.mappings().len(), 1);
    bench.window.unmap(pages(0, 4)).unwrap();
}

#[test]
fn single_map_that_is_refused_leaves_a_hole() {
    let bench = furnished();
    let fd = memfd(4);
    // After two unmaps and the first listener's map.
    follow(&bench, [(3, Fault::Refuse)]);
    let replaced = bench.window.replace(pages(0, 4), &source(&fd), ReadWrite);
    let error = replaced.unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot map 0x4000 bytes at guest address 0x100000000 for DMA: the range is a hole now"
    );
    assert_eq!(error.state_after(), StateAfter::Hole);
    assert!(bench.window.mappings().is_empty());
    assert_eq!(held(&bench), [0, 0]);
    bench
        .window
        .map(pages(0, 4), &source(&fd), ReadWrite)
        .unwrap();
    assert_eq!(held(&bench), [1, 1]);
}

#[test]
fn batch_that_is_refused_puts_everything_back() {
    let bench = furnished();
    let fd = memfd(4);
    let before = [0, 1].map(|number| bench.host.pinned(number));
    let batch = Batch::new()
        .replace(pages(2, 4), &source(&fd), ReadWrite)
        .map(pages(10, 4), &source(&fd), ReadWrite);
    // Two unmaps and three maps for each listener: the last map of all.
    follow(&bench, [(7, Fault::Refuse)]);
    let error = bench.window.commit(&batch).unwrap_err();
    assert!(matches!(error, Error::Dma { verb: "map", .. }), "{error}");
    assert_eq!(error.state_after(), StateAfter::Unchanged);
    assert_eq!([0, 1].map(|number| bench.host.pinned(number)), before);
    assert_eq!(bench.window.mappings().len(), 1);
    bench.window.commit(&batch).unwrap();
    assert_eq!(held(&bench), [3, 3]);
}

#[test]
fn listener_that_cannot_be_restored_poisons_and_loses_everything() {
    let bench = furnished();
    follow(&bench, [(1, Fault::Refuse), (2, Fault::RefuseMapsFromHere)]);
    let error = bench.window.unmap(pages(0, 4)).unwrap_err();
    assert!(matches!(error, Error::Dma { verb: "unmap", .. }), "{error}");
    assert_eq!(error.state_after(), StateAfter::Poisoned);
    assert_eq!(held(&bench), [0, 0]);
    assert!(bench.host.slots().is_empty());
    let again = bench.window.add_dma_listener(bench.listener(0));
    assert!(matches!(again, Err(Error::Poisoned)));
    bench.window.close().unwrap();
}

#[test]
fn close_keeps_the_memory_that_a_device_still_reaches() {
    let Bench { window, host } = furnished();
    let address = window.lookup(BASE).unwrap().host_address;
    let plan = Plan::from([(0, Fault::RefuseUnmapsFromHere)]);
    host.follow(&plan);
    let error = window.close().unwrap_err();
    assert!(matches!(error, Error::Dma { verb: "unmap", .. }), "{error}");
    assert!(host.slots().is_empty(), "the guest has lost it");
    assert!(crate::eyes::is_mapped(address, 4 * PAGE_SIZE));
}

#[test]
fn listener_that_cannot_map_all_is_not_added() {
    let bench = furnished();
    let fd = memfd(1);
    bench
        .window
        .map(pages(9, 1), &source(&fd), ReadWrite)
        .unwrap();
    follow(&bench, [(1, Fault::Refuse)]);
    let added = bench.window.add_dma_listener(bench.listener(2));
    assert_eq!(added.unwrap_err().state_after(), StateAfter::Unchanged);
    assert!(bench.host.pinned(2).is_empty());
    bench.told();
    bench.window.unmap(pages(9, 1)).unwrap();
    assert_eq!(bench.told(), ["1 unmap 9..10", "0 unmap 9..10"]);
}

#[test]
fn listener_that_does_not_let_go_stays() {
    let bench = open(Fixed, 32 * PAGE_SIZE);
    let id = bench.add(0);
    let fd = memfd(1);
    for page in [0, 5] {
        bench
            .window
            .map(pages(page, 1), &source(&fd), ReadWrite)
            .unwrap();
    }
    follow(&bench, [(1, Fault::Refuse)]);
    let removed = bench.window.remove_dma_listener(id);
    assert_eq!(removed.unwrap_err().state_after(), StateAfter::Unchanged);
    assert_eq!(bench.host.pinned(0).len(), 2);
    assert!(bench.window.remove_dma_listener(id).unwrap());
    assert!(bench.host.pinned(0).is_empty());
}

#[test]
fn relocate_that_a_listener_refuses_leaves_the_window_where_it_was() {
    let bench = furnished();
    let before = [0, 1].map(|number| bench.host.pinned(number));
    // Two unmaps, two slot calls, and the first listener's map.
    for call in [0, 1, 4, 5] {
        follow(&bench, [(call, Fault::Refuse)]);
        let moved = bench.window.relocate(GuestAddress(8 << 30));
        let error = moved.unwrap_err();
        assert!(matches!(error, Error::Dma { .. }), "{error}");
        assert_eq!(error.state_after(), StateAfter::Unchanged);
        assert_eq!(bench.window.base(), BASE);
        let after = [0, 1].map(|number| bench.host.pinned(number));
        assert_eq!(after, before);
    }
    bench.window.relocate(GuestAddress(8 << 30)).unwrap();
    assert_eq!(bench.host.slots()[0].guest_address(), GuestAddress(8 << 30));
}
