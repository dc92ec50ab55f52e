//! Owns the tests of what listeners are told, and in which order.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_remap::BackendKind::{self, Fixed, Memslot};
use vm_remap::Protection::{ReadOnly, ReadWrite};
use vm_remap::{
    Batch, DmaListenerId, GuestAddress, PAGE_SIZE, SlotNumbers, Source, Window, WindowOptions,
};

use crate::host::{Call, Host, Listener};
use crate::memories::pages;

pub const BASE: GuestAddress = GuestAddress(4 << 30);

pub struct Bench {
    pub window: Window,
    pub host: Arc<Host>,
}

pub fn open(backend: BackendKind, len: u64) -> Bench {
    let host = Arc::new(Host::default());
    let window = WindowOptions::new(BASE, len)
        .backend(backend)
        .open(Arc::clone(&host) as _, SlotNumbers::new(8..40))
        .unwrap();
    Bench { window, host }
}

impl Bench {
    pub fn listener(&self, number: usize) -> Arc<Listener> {
        let host = Arc::clone(&self.host);
        Arc::new(Listener { number, host })
    }

    pub fn add(&self, number: usize) -> DmaListenerId {
        self.window.add_dma_listener(self.listener(number)).unwrap()
    }

    /// What the listeners were told since the last look, in pages of the window from 4 GiB on.
    pub fn told(&self) -> Vec<String> {
        let log = self.host.log();
        self.host.clear_log();
        let told = |(call, _)| {
            let (verb, number, mapping) = match call {
                Call::Map(number, mapping) => ("map", number, mapping),
                Call::Unmap(number, mapping) => ("unmap", number, mapping),
                Call::Register(_) | Call::Unregister(_) => return None,
            };
            let page = (mapping.guest_address().0 - BASE.0) / PAGE_SIZE;
            let end = page + mapping.len() / PAGE_SIZE;
            Some(format!("{number} {verb} {page}..{end}"))
        };
        log.into_iter().filter_map(told).collect()
    }
}

pub fn memfd(count: u64) -> OwnedFd {
    let fd = memfd_create("blob", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, count * PAGE_SIZE).unwrap();
    fd
}

pub fn source(fd: &OwnedFd) -> Source<'_> {
    Source::descriptor(fd.as_fd(), 0)
}

#[test]
fn first_listener_maps_first_and_unmaps_last() {
    for backend in BackendKind::ALL {
        let bench = open(backend, 32 * PAGE_SIZE);
        bench.add(0);
        bench.add(1);
        let fd = memfd(8);
        let window = &bench.window;
        window.map(pages(4, 8), &source(&fd), ReadWrite).unwrap();
        assert_eq!(bench.told(), ["0 map 4..12", "1 map 4..12"]);
        window
            .replace(pages(4, 8), &source(&fd), ReadWrite)
            .unwrap();
        let replaced = [
            "1 unmap 4..12",
            "0 unmap 4..12",
            "0 map 4..12",
            "1 map 4..12",
        ];
        assert_eq!(bench.told(), replaced, "{backend}");
        window.unmap(pages(0, 32)).unwrap();
        assert_eq!(bench.told(), ["1 unmap 4..12", "0 unmap 4..12"]);
        window.unmap(pages(0, 32)).unwrap();
        assert!(bench.told().is_empty(), "a hole is nobody's business");
    }
}

#[test]
fn devices_lose_memory_after_slots_that_go_and_get_it_after_those_that_come() {
    let bench = open(Memslot, 32 * PAGE_SIZE);
    bench.add(0);
    let fd = memfd(4);
    let first = pages(0, 4);
    bench.window.map(first, &source(&fd), ReadWrite).unwrap();
    bench.host.clear_log();
    bench
        .window
        .replace(first, &source(&fd), ReadWrite)
        .unwrap();
    let log = bench.host.log();
    let calls: Vec<_> = log.iter().map(|(call, _)| call).collect();
    assert!(
        matches!(
            calls[..],
            [
                Call::Unregister(_),
                Call::Unmap(..),
                Call::Register(_),
                Call::Map(..)
            ]
        ),
        "{calls:?}"
    );
}

#[test]
fn cut_mapping_is_unmapped_whole_and_what_is_left_mapped_again() {
    let bench = open(Fixed, 32 * PAGE_SIZE);
    bench.add(0);
    let (old, new) = (memfd(10), memfd(2));
    let window = &bench.window;
    window.map(pages(0, 10), &source(&old), ReadWrite).unwrap();
    window.map(pages(20, 2), &source(&new), ReadWrite).unwrap();
    bench.told();
    window
        .replace(pages(3, 2), &source(&new), ReadWrite)
        .unwrap();
    let cut = ["0 unmap 0..10", "0 map 0..3", "0 map 3..5", "0 map 5..10"];
    assert_eq!(bench.told(), cut);
    window.unmap(pages(9, 8)).unwrap();
    assert_eq!(bench.told(), ["0 unmap 5..10", "0 map 5..9"]);
}

#[test]
fn batch_unmaps_all_that_it_changes_and_then_maps() {
    let bench = open(Fixed, 32 * PAGE_SIZE);
    bench.add(0);
    let fd = memfd(8);
    let window = &bench.window;
    window.map(pages(0, 4), &source(&fd), ReadWrite).unwrap();
    window.map(pages(8, 8), &source(&fd), ReadWrite).unwrap();
    window.map(pages(30, 1), &source(&fd), ReadWrite).unwrap();
    bench.told();
    let batch = Batch::new()
        .unmap(pages(9, 1))
        .replace(pages(2, 4), &source(&fd), ReadWrite)
        .unmap(pages(0, 2));
    window.commit(&batch).unwrap();
    let told = [
        "0 unmap 0..4",
        "0 unmap 8..16",
        "0 map 2..6",
        "0 map 8..9",
        "0 map 10..16",
    ];
    assert_eq!(bench.told(), told);
}

#[test]
fn relocate_unmaps_at_the_old_address_and_maps_at_the_new_one() {
    let bench = open(Fixed, 32 * PAGE_SIZE);
    bench.add(0);
    let fd = memfd(2);
    for page in [0, 7] {
        let range = pages(page, 2);
        bench.window.map(range, &source(&fd), ReadWrite).unwrap();
    }
    bench.told();
    let there = GuestAddress(BASE.0 + 64 * PAGE_SIZE);
    bench.window.relocate(there).unwrap();
    let told = [
        "0 unmap 7..9",
        "0 unmap 0..2",
        "0 map 64..66",
        "0 map 71..73",
    ];
    assert_eq!(bench.told(), told);
    let [first, _] = &bench.host.pinned(0)[..] else {
        panic!("two are mapped");
    };
    let host = bench.window.lookup(there).unwrap().host_address;
    assert_eq!(first.mapping.host_address(), host);
}

#[test]
fn read_only_mappings_are_not_writable_for_devices() {
    let bench = open(Fixed, 32 * PAGE_SIZE);
    bench.add(0);
    let fd = memfd(2);
    let window = &bench.window;
    window.map(pages(0, 2), &source(&fd), ReadOnly).unwrap();
    let writable = || bench.host.pinned(0)[0].mapping.is_writable();
    assert!(!writable());
    window
        .replace(pages(0, 2), &source(&fd), ReadWrite)
        .unwrap();
    assert!(writable());
}

#[test]
fn window_of_holes_costs_a_listener_nothing() {
    let bench = open(Fixed, 1 << 30);
    let id = bench.add(0);
    assert!(bench.told().is_empty());
    let fd = memfd(1);
    bench
        .window
        .map(pages(1000, 1), &source(&fd), ReadWrite)
        .unwrap();
    assert_eq!(bench.told(), ["0 map 1000..1001"]);
    assert!(bench.window.remove_dma_listener(id).unwrap());
    assert_eq!(bench.told(), ["0 unmap 1000..1001"]);
    assert!(!bench.window.remove_dma_listener(id).unwrap());
}

#[test]
fn listener_that_comes_later_gets_what_is_there_and_one_that_goes_loses_it() {
    let bench = open(Fixed, 32 * PAGE_SIZE);
    let fd = memfd(2);
    for page in [0, 7] {
        let range = pages(page, 2);
        bench.window.map(range, &source(&fd), ReadWrite).unwrap();
    }
    let first = bench.add(0);
    assert_eq!(bench.told(), ["0 map 0..2", "0 map 7..9"]);
    bench.add(1);
    assert_eq!(bench.told(), ["1 map 0..2", "1 map 7..9"]);
    bench.window.remove_dma_listener(first).unwrap();
    assert_eq!(bench.told(), ["0 unmap 7..9", "0 unmap 0..2"]);
    let Bench { window, host } = bench;
    window.close().unwrap();
    let first = &host.log()[..2];
    assert!(
        first
            .iter()
            .all(|(call, _)| matches!(call, Call::Unmap(1, _)))
    );
}
