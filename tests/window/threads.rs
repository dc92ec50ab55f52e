//! Owns the tests of a window that several threads change at once while the guest runs.

use std::thread;

use vm_remap::BackendKind::{self, Fixed, Memslot};
use vm_remap::Protection::{ReadOnly, ReadWrite};
use vm_remap_cli::guest::{Guest, Program};

use crate::guest_support::{MIB, wait_for};
use crate::support::*;

const THREADS: u64 = 4;
const ROUNDS: u64 = 50;
const COUNT: u64 = 32;

/// Two threads share a segment, and two a page-table page.
const fn first_page(thread: u64) -> u64 {
    thread * SEGMENT_PAGES / 2 + 5
}

/// The file that a thread leaves in place.
fn last(thread: u64) -> Blob {
    Blob::new(Seal::Sealed, COUNT, 1_000_000 * (thread + 1))
}

fn change_over_and_over(bench: &Bench, thread: u64, last: &Blob) {
    let range = pages(first_page(thread), COUNT);
    let window = &bench.window;
    for round in 0..ROUNDS {
        let blob = Blob::new(Seal::Unsealed, COUNT, 1000 * round);
        window.map(range, &blob.source(), ReadWrite).unwrap();
        window.replace(range, &last.source(), ReadOnly).unwrap();
        window.unmap(range).unwrap();
    }
    window.map(range, &last.source(), ReadWrite).unwrap();
}

/// KVM has the slots that the counters tell of, where they should be, and no others nearby.
fn assert_kvm_agrees(guest: &Guest, backend: BackendKind) {
    let expect = |page, there| assert_eq!(has_slot(guest, at(page)), there, "{backend} {page}");
    match backend {
        Fixed => {
            for segment in 0..4 {
                let first = segment * SEGMENT_PAGES;
                expect(first, segment != 2);
                expect(first + SEGMENT_PAGES - 1, segment != 2);
            }
        }
        Memslot => {
            for first in (0..THREADS).map(first_page) {
                expect(first - 1, false);
                expect(first, true);
                expect(first + COUNT - 1, true);
                expect(first + COUNT, false);
            }
        }
    }
}

#[test]
fn threads_that_change_disjoint_ranges_leave_the_guest_the_right_bytes() {
    let test = "threads_that_change_disjoint_ranges_leave_the_guest_the_right_bytes";
    for backend in BackendKind::ALL {
        let Some(bench) = open_with(test, 2, options(backend), NUMBERS) else {
            return;
        };
        let Bench { window, guest } = &bench;
        // Nobody changes this one, and a vCPU watches it all the time.
        let still = Blob::new(Seal::Sealed, 1, 42);
        let still_page = 3 * SEGMENT_PAGES;
        window
            .map(pages(still_page, 1), &still.source(), ReadWrite)
            .unwrap();
        let (page, expected) = (at(still_page), still.word(0));
        guest.start(1, Program::Watch { page, expected }).unwrap();
        let base = guest.layout().working_set().base;
        let len = 2 * MIB;
        guest.start(0, Program::Walk { base, len }).unwrap();

        let blobs: Vec<Blob> = (0..THREADS).map(last).collect();
        thread::scope(|scope| {
            for (thread, blob) in (0..).zip(&blobs) {
                let bench = &bench;
                scope.spawn(move || change_over_and_over(bench, thread, blob));
            }
        });
        for vcpu in [0, 1] {
            wait_for("passes", || guest.passes(vcpu).unwrap() > 0);
            let ran = guest.stop(vcpu).unwrap();
            assert_eq!((ran.efaults, ran.mmio), (0, 0), "{backend}: {ran:?}");
        }
        assert_eq!(guest.stale(1).unwrap(), 0, "{backend}");

        for (thread, blob) in (0..).zip(&blobs) {
            let first = first_page(thread);
            let seen = view(guest, first..first + COUNT);
            assert_eq!(seen, words(blob), "{backend} {thread}");
            assert_eq!(blob.bytes(), blob.expected());
            for edge in [first - 1, first + COUNT] {
                let read = guest.read_u64(0, at(edge)).unwrap();
                assert_eq!(read, hole(backend, at(edge), false), "{edge}");
            }
        }
        let counters = window.counters();
        assert_eq!(counters.failures, 0);
        assert_eq!(counters.mappings, THREADS + 1);
        let (registered, unregistered) = match backend {
            Fixed => (THREADS / 2 + 1, 0),
            Memslot => (THREADS * (2 * ROUNDS + 1) + 1, THREADS * 2 * ROUNDS),
        };
        assert_eq!(counters.slots_registered, registered, "{backend}");
        assert_eq!(counters.slots_unregistered, unregistered, "{backend}");
        assert_eq!(counters.slots, registered - unregistered, "{backend}");
        assert_kvm_agrees(guest, backend);
    }
}
