//! Owns the tests of what prefault is for: the faults that the guest takes once the call has
//! returned, by KVM's own count. Never asserts on time.

use vm_remap::Protection::{ReadOnly, ReadWrite};
use vm_remap::{BackendKind, Prefault};
use vm_remap_cli::guest::{Access, Guest, PAGE, Program, Touch};

use crate::guest_support::skip;
use crate::support::*;

const COUNT: u64 = 300;
const FIRST: u64 = 7;
/// A page of the window for the guest to warm itself up with.
const ELSEWHERE: u64 = SEGMENT_PAGES + 100;
const HOWS: [Prefault; 4] = [
    Prefault::None,
    Prefault::HostRead,
    Prefault::HostWrite,
    Prefault::Guest,
];

fn faults(guest: &Guest) -> Option<u64> {
    guest.vcpu_stats(0)?.read("pf_taken").unwrap()
}

fn touch(guest: &Guest, first: u64, count: u64, kind: Touch) {
    let touched = guest.touch(0, at(first), count * PAGE, kind).unwrap();
    assert_eq!(touched, Access::Done(count), "{kind:?}");
}

#[test]
fn the_guest_sees_the_bytes_whatever_was_prefaulted() {
    let test = "the_guest_sees_the_bytes_whatever_was_prefaulted";
    for backend in BackendKind::ALL {
        let Some(Bench { window, guest }) = open_with_spare(test, backend) else {
            return;
        };
        let range = pages(FIRST, 40);
        for (round, how) in (1..).zip(HOWS) {
            for seal in [Seal::Sealed, Seal::Unsealed] {
                let blob = Blob::new(seal, 40, 1000 * round);
                let source = blob.source().prefault(how);
                window.replace(range, &source, ReadWrite).unwrap();
                assert_eq!(
                    view(&guest, FIRST..FIRST + 40),
                    words(&blob),
                    "{backend} {how:?} {seal:?}"
                );
                let written = guest.write_u64(0, at(FIRST + 3), 77).unwrap();
                assert_eq!(written, Access::Done(()));
                blob.set_word(4, 78);
                let word = guest.read_u64(0, at(FIRST + 4)).unwrap();
                assert_eq!(word, Access::Done(78), "the same memory");
            }
        }
        let counters = window.counters();
        let asked = counters.prefaulted + counters.prefault_fallbacks;
        assert_eq!(asked, 6, "{counters:?}");
        window.close().unwrap();
    }
}

#[test]
fn after_a_guest_prefault_the_guest_takes_no_fault() {
    let test = "after_a_guest_prefault_the_guest_takes_no_fault";
    for backend in BackendKind::ALL {
        let Some(Bench { window, guest }) = open_with_spare(test, backend) else {
            return;
        };
        if faults(&guest).is_none() {
            skip(test, "this kernel does not count a vCPU's faults");
            return;
        }
        let other = Blob::new(Seal::Sealed, 1, 1);
        let elsewhere = pages(ELSEWHERE, 1);
        window.map(elsewhere, &other.source(), ReadWrite).unwrap();
        for seal in [Seal::Sealed, Seal::Unsealed] {
            for (protection, kinds) in [
                (ReadWrite, &[Touch::Read, Touch::Write][..]),
                (ReadOnly, &[Touch::Read]),
            ] {
                let blob = Blob::new(seal, COUNT, 1);
                let taken = |how| {
                    let source = blob.source().prefault(how);
                    let range = pages(FIRST, COUNT);
                    window.map(range, &source, protection).unwrap();
                    // Deleting a memslot takes the guest's code and tables from it as well.
                    touch(&guest, ELSEWHERE, 1, Touch::Read);
                    let before = faults(&guest).unwrap();
                    kinds
                        .iter()
                        .for_each(|kind| touch(&guest, FIRST, COUNT, *kind));
                    let after = faults(&guest).unwrap();
                    window.unmap(range).unwrap();
                    after - before
                };
                assert!(taken(Prefault::None) > 0, "the faults are counted");
                let before = window.counters();
                let left = taken(Prefault::Guest);
                let now = window.counters();
                if now.prefault_fallbacks > before.prefault_fallbacks {
                    skip(test, "KVM does not offer KVM_PRE_FAULT_MEMORY here");
                    return;
                }
                assert_eq!(now.prefaulted, before.prefaulted + 1);
                assert_eq!(left, 0, "{backend} {seal:?} {protection}");
            }
        }
    }
}

#[test]
fn a_guest_prefault_runs_beside_a_busy_vcpu() {
    let test = "a_guest_prefault_runs_beside_a_busy_vcpu";
    let Some(Bench { window, guest }) = open_with_spare(test, BackendKind::Fixed) else {
        return;
    };
    let base = guest.layout().working_set().base;
    let len = 16 * PAGE;
    guest.start(0, Program::Walk { base, len }).unwrap();
    let blob = Blob::new(Seal::Sealed, COUNT, 1);
    let source = blob.source().prefault(Prefault::Guest);
    for _ in 0..20 {
        window.map(pages(FIRST, COUNT), &source, ReadWrite).unwrap();
        window.unmap(pages(FIRST, COUNT)).unwrap();
    }
    advance(&guest, 0);
    let ran = guest.stop(0).unwrap();
    assert_eq!((ran.efaults, ran.mmio), (0, 0));
    let counters = window.counters();
    assert_eq!(counters.prefaulted + counters.prefault_fallbacks, 20);
}
