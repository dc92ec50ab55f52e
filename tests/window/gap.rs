//! Owns the tests of what a vCPU sees that never stops looking at a page while it changes. For
//! each, one shows that the eye is sharp: the wrong way must be seen.

use std::thread;
use std::time::Duration;

use vm_remap::BackendKind::{self, Fixed, Memslot};
use vm_remap::Protection::ReadWrite;
use vm_remap_cli::guest::{Program, Ran};

use crate::guest_support::wait_for;
use crate::support::*;

const REPLACES: u64 = 600;
const COUNT: u64 = 4;
/// The page that is watched, in the window and in the file.
const PAGE_NUMBER: u64 = 3;
/// A pause in which a vCPU that can run does run, sooner or later.
const PAUSE: Duration = Duration::from_millis(2);

/// When the guest is promised that the old bytes are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Promise {
    /// When the call has returned, as the library has it.
    After,
    /// Before the call is made, which is a lie.
    Before,
}

/// Versions of the file, ascending.
fn version(seal: Seal, number: u64) -> Blob {
    Blob::new(seal, COUNT, number * 1000)
}

/// Replaces the watched page over and over; `seals` take turns.
fn replace(bench: &Bench, seals: &[Seal], promise: Promise, replaces: u64) -> (u64, Ran) {
    let Bench { window, guest } = bench;
    let range = pages(0, COUNT);
    let first = version(seals[0], 1);
    window.map(range, &first.source(), ReadWrite).unwrap();
    let (page, expected) = (at(PAGE_NUMBER), first.word(PAGE_NUMBER));
    guest.start(0, Program::Watch { page, expected }).unwrap();
    advance(guest, 0);
    for (number, seal) in (2..replaces + 2).zip(seals.iter().cycle()) {
        let next = version(*seal, number);
        let expected = next.word(PAGE_NUMBER);
        if promise == Promise::Before {
            guest.set_expected(0, expected).unwrap();
            advance(guest, 0);
        }
        window.replace(range, &next.source(), ReadWrite).unwrap();
        guest.set_expected(0, expected).unwrap();
        // Now and then the guest gets round to looking, else it is one replace after the other.
        if number % 3 == 0 {
            advance(guest, 0);
        }
    }
    advance(guest, 0);
    let ran = guest.stop(0).unwrap();
    (guest.stale(0).unwrap(), ran)
}

#[test]
fn replace_under_a_spinning_vcpu_shows_old_or_new() {
    let test = "replace_under_a_spinning_vcpu_shows_old_or_new";
    for (seals, direct, staged) in [
        (&[Seal::Sealed][..], REPLACES + 1, 0),
        (&[Seal::Unsealed], 0, REPLACES + 1),
        (
            &[Seal::Sealed, Seal::Unsealed],
            REPLACES / 2 + 1,
            REPLACES / 2,
        ),
    ] {
        let Some(bench) = open(test, Fixed) else {
            return;
        };
        let (stale, ran) = replace(&bench, seals, Promise::After, REPLACES);
        assert_eq!(
            (stale, ran.efaults, ran.mmio),
            (0, 0, 0),
            "{seals:?} {ran:?}"
        );
        assert!(ran.passes > REPLACES / 3, "{ran:?}");
        let counters = bench.window.counters();
        assert_eq!((counters.direct, counters.staged), (direct, staged));
        assert_eq!(
            (counters.replaces, counters.slots_registered),
            (REPLACES, 1)
        );
    }
}

#[test]
fn replace_by_memslots_under_a_spinning_vcpu_leaves_nothing_stale() {
    let test = "replace_by_memslots_under_a_spinning_vcpu_leaves_nothing_stale";
    let Some(bench) = open(test, Memslot) else {
        return;
    };
    let seals = [Seal::Sealed, Seal::Unsealed];
    let (stale, ran) = replace(&bench, &seals, Promise::After, REPLACES);
    // The guest may have met a gap: that is what this backend is measured for.
    assert_eq!((stale, ran.efaults), (0, 0), "{ran:?}");
    assert_eq!(bench.window.counters().slots_registered, REPLACES + 1);
}

#[test]
fn a_promise_that_comes_before_the_replace_is_seen_as_stale() {
    let test = "a_promise_that_comes_before_the_replace_is_seen_as_stale";
    for backend in BackendKind::ALL {
        let Some(bench) = open(test, backend) else {
            return;
        };
        let (stale, ran) = replace(&bench, &[Seal::Sealed], Promise::Before, 20);
        assert!(stale >= 20, "{backend}: {stale} of {ran:?}");
    }
}

#[test]
fn an_unmap_and_a_map_instead_of_a_replace_are_seen_as_a_gap() {
    let test = "an_unmap_and_a_map_instead_of_a_replace_are_seen_as_a_gap";
    for backend in BackendKind::ALL {
        let Some(bench) = open(test, backend) else {
            return;
        };
        let Bench { window, guest } = &bench;
        let (range, blob) = (pages(0, COUNT), version(Seal::Sealed, 1));
        window.map(range, &blob.source(), ReadWrite).unwrap();
        let (page, expected) = (at(PAGE_NUMBER), blob.word(PAGE_NUMBER));
        guest.start(0, Program::Watch { page, expected }).unwrap();
        for _ in 0..20 {
            advance(guest, 0);
            window.unmap(range).unwrap();
            thread::sleep(PAUSE);
            window.map(range, &blob.source(), ReadWrite).unwrap();
        }
        advance(guest, 0);
        let ran = guest.stop(0).unwrap();
        let gaps = match backend {
            Fixed => ran.efaults,
            Memslot => ran.mmio,
        };
        assert!(gaps > 0, "{backend}: {ran:?}");
        assert_eq!(guest.stale(0).unwrap(), 0, "{backend}: {ran:?}");
    }
}

/// Unmaps the watched page over and over; whatever the guest reads of it from then on is stale.
fn unmap(bench: &Bench, promise: Promise, unmaps: u64) -> (u64, Ran) {
    let Bench { window, guest } = bench;
    let range = pages(0, COUNT);
    // Has the highest number there is, so that a guest that still holds the promise of an unmap
    // meets nothing lower when there is memory again.
    let highest = Blob::new(Seal::Sealed, COUNT, u64::MAX - PAGE_NUMBER);
    window.map(range, &highest.source(), ReadWrite).unwrap();
    let page = at(PAGE_NUMBER);
    guest
        .start(0, Program::Watch { page, expected: 0 })
        .unwrap();
    for number in 1..=unmaps {
        advance(guest, 0);
        let blob = version(Seal::Unsealed, number);
        window.replace(range, &blob.source(), ReadWrite).unwrap();
        guest.set_expected(0, blob.word(PAGE_NUMBER)).unwrap();
        advance(guest, 0);
        if promise == Promise::Before {
            guest.set_expected(0, u64::MAX).unwrap();
            advance(guest, 0);
        }
        window.unmap(range).unwrap();
        guest.set_expected(0, u64::MAX).unwrap();
        thread::sleep(PAUSE);
        window.map(range, &highest.source(), ReadWrite).unwrap();
        advance(guest, 0);
        guest.set_expected(0, 0).unwrap();
    }
    let ran = guest.stop(0).unwrap();
    (guest.stale(0).unwrap(), ran)
}

#[test]
fn unmap_under_a_spinning_vcpu_takes_the_old_bytes_away() {
    let test = "unmap_under_a_spinning_vcpu_takes_the_old_bytes_away";
    for backend in BackendKind::ALL {
        let Some(bench) = open(test, backend) else {
            return;
        };
        let (stale, ran) = unmap(&bench, Promise::After, 200);
        assert_eq!(stale, 0, "{backend}: {ran:?}");
        assert!(ran.efaults + ran.mmio > 0, "{backend}: {ran:?}");
    }
}

#[test]
fn a_promise_that_comes_before_the_unmap_is_seen_as_stale() {
    let test = "a_promise_that_comes_before_the_unmap_is_seen_as_stale";
    for backend in BackendKind::ALL {
        let Some(bench) = open(test, backend) else {
            return;
        };
        let (stale, ran) = unmap(&bench, Promise::Before, 10);
        assert!(stale >= 10, "{backend}: {stale} of {ran:?}");
    }
}

#[test]
fn watch_of_a_window_that_closes_reads_no_old_byte() {
    let test = "watch_of_a_window_that_closes_reads_no_old_byte";
    for backend in BackendKind::ALL {
        let Some(Bench { window, guest }) = open(test, backend) else {
            return;
        };
        let blob = version(Seal::Sealed, 1);
        window
            .map(pages(0, COUNT), &blob.source(), ReadWrite)
            .unwrap();
        let (page, expected) = (at(PAGE_NUMBER), blob.word(PAGE_NUMBER));
        guest.start(0, Program::Watch { page, expected }).unwrap();
        advance(&guest, 0);
        window.close().unwrap();
        guest.set_expected(0, u64::MAX).unwrap();
        // MMIO is answered with all ones, so passes go on.
        advance(&guest, 0);
        wait_for("passes", || guest.passes(0).unwrap() > 100);
        let ran = guest.stop(0).unwrap();
        assert_eq!((guest.stale(0).unwrap(), ran.efaults), (0, 0), "{ran:?}");
        assert!(ran.mmio > 0, "{backend}: {ran:?}");
    }
}
