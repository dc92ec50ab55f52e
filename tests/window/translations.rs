//! Owns the tests of which of the guest's translations survive a change, by KVM's own count.

use vm_remap::BackendKind::{Fixed, Memslot};
use vm_remap::Protection::ReadWrite;
use vm_remap::host::{ZapMode, ZapReport};
use vm_remap::{Error, OnWorkers, Zap};
use vm_remap_cli::guest::{Access, Guest, PAGE, Touch};

use crate::guest_support::{MIB, skip};
use crate::support::*;

/// How much RAM the guest has touched.
const POPULATED: u64 = 16 * MIB;
const COUNT: u64 = 32;

/// Pages of 4 KiB that KVM has translations for; `None` where it does not count them.
fn translated(guest: &Guest) -> Option<u64> {
    let all = guest.vm_stats()?.snapshot().unwrap();
    let pages = |name, size| Some(all.get(name)? * size);
    Some(pages("pages_4k", 1)? + pages("pages_2m", 512)? + pages("pages_1g", 512 * 512)?)
}

fn populate(guest: &Guest) {
    let base = guest.layout().working_set().base;
    let touched = guest.touch(0, base, POPULATED, Touch::Write).unwrap();
    assert_eq!(touched, Access::Done(POPULATED / PAGE));
}

/// Opens a populated guest, or says why not.
fn open_populated(test: &str, options: vm_remap::WindowOptions) -> Option<Bench> {
    let bench = open_with(test, 1, options, NUMBERS)?;
    if translated(&bench.guest).is_none() {
        skip(test, "this kernel does not count a VM's translations");
        return None;
    }
    populate(&bench.guest);
    Some(bench)
}

/// The host itself takes translations now and then: it moves pages and makes huge ones of them.
/// A window that took some would do so each time.
fn keeps(bench: &Bench, change: impl Fn()) -> bool {
    (0..3).any(|_| {
        populate(&bench.guest);
        let before = translated(&bench.guest);
        change();
        before == translated(&bench.guest)
    })
}

#[test]
fn steady_state_makes_no_slot_call_and_keeps_the_translations_of_ram() {
    let test = "steady_state_makes_no_slot_call_and_keeps_the_translations_of_ram";
    let Some(bench) = open_populated(test, options(Fixed)) else {
        return;
    };
    let Bench { window, guest } = &bench;
    let range = pages(9, COUNT);
    let blobs = [Seal::Sealed, Seal::Unsealed].map(|seal| Blob::new(seal, COUNT, 1000));
    let read = || guest.touch(0, at(9), COUNT * PAGE, Touch::Read).unwrap();
    let churn = || {
        for _ in 0..50 {
            for blob in &blobs {
                window.map(range, &blob.source(), ReadWrite).unwrap();
                assert_eq!(read(), Access::Done(COUNT));
                window
                    .replace(range, &blobs[0].source(), ReadWrite)
                    .unwrap();
                assert_eq!(read(), Access::Done(COUNT));
                window.unmap(range).unwrap();
            }
        }
    };
    churn();
    let warm = window.counters();
    assert_eq!((warm.slots_registered, warm.slots), (1, 1));
    assert!(keeps(&bench, churn));
    let counters = window.counters();
    assert!(counters.maps >= 200, "{counters:?}");
    assert_eq!(
        (counters.slots_registered, counters.slots_unregistered),
        (1, 0)
    );
}

#[test]
fn memslot_unmap_takes_the_translations_of_ram() {
    let test = "memslot_unmap_takes_the_translations_of_ram";
    let Some(bench) = open_populated(test, options(Memslot)) else {
        return;
    };
    let Bench { window, guest } = &bench;
    let blob = Blob::new(Seal::Sealed, COUNT, 1000);
    window
        .map(pages(0, COUNT), &blob.source(), ReadWrite)
        .unwrap();
    populate(guest);
    let before = translated(guest).unwrap();
    assert!(before >= POPULATED / PAGE, "{before}");
    window.unmap(pages(0, COUNT)).unwrap();
    let after = translated(guest).unwrap();
    assert!(after < before / 8, "{after} of {before}");
}

#[test]
fn memslot_with_precise_zap_keeps_the_translations_of_ram() {
    let test = "memslot_with_precise_zap_keeps_the_translations_of_ram";
    let Some(bench) = open_populated(test, options(Memslot).zap(Zap::Precise)) else {
        return;
    };
    let Bench { window, .. } = &bench;
    if window.zap() != Zap::Precise {
        skip(
            test,
            "KVM offers no KVM_X86_QUIRK_SLOT_ZAP_ALL (Linux 6.12)",
        );
        return;
    }
    let blob = Blob::new(Seal::Sealed, COUNT, 1000);
    assert!(keeps(&bench, || {
        window
            .map(pages(0, COUNT), &blob.source(), ReadWrite)
            .unwrap();
        window.unmap(pages(0, COUNT)).unwrap();
    }));
    let refused = window.invalidate_roots(OnWorkers::Allow).unwrap_err();
    assert!(matches!(refused, Error::PreciseZap), "{refused}");
}

#[test]
fn invalidate_roots_takes_every_translation_and_the_guest_gets_them_back() {
    let test = "invalidate_roots_takes_every_translation_and_the_guest_gets_them_back";
    let Some(bench) = open_populated(test, options(Fixed)) else {
        return;
    };
    let Bench { window, guest } = &bench;
    let blob = Blob::new(Seal::Sealed, COUNT, 1000);
    window
        .map(pages(0, COUNT), &blob.source(), ReadWrite)
        .unwrap();
    let mode = ZapReport::of_this_host().mode;
    match std::env::var("VM_REMAP_LAB").as_deref() {
        Ok("worker") => assert_eq!(mode, ZapMode::Worker),
        Ok(_) => assert_eq!(mode, ZapMode::Synchronous),
        Err(_) => {}
    }
    populate(guest);
    let before = translated(guest).unwrap();
    if mode == ZapMode::Worker {
        let refused = window.invalidate_roots(OnWorkers::Refuse).unwrap_err();
        assert!(matches!(refused, Error::WorkerZaps { .. }), "{refused}");
        assert_eq!(translated(guest), Some(before));
        assert_eq!(window.invalidate_roots(OnWorkers::Allow).unwrap(), mode);
    } else {
        assert_eq!(window.invalidate_roots(OnWorkers::Refuse).unwrap(), mode);
    }
    let after = translated(guest).unwrap();
    assert!(after < before / 8, "{after} of {before}");
    populate(guest);
    let again = translated(guest).unwrap();
    assert!(again >= POPULATED / PAGE, "{again}, {before} at first");
    assert_eq!(view(guest, 0..COUNT), words(&blob));
    assert_eq!(window.counters().slots, 1);
}
