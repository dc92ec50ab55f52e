//! Owns the tests of a collapsed memfd before a guest: one fault for each 2 MiB, and the bytes kept.

use vm_remap::BackendKind::Fixed;
use vm_remap::Protection::ReadWrite;
use vm_remap::Source;
use vm_remap::host::{Host, TdpMmu};
use vm_remap_cli::guest::{Access, Guest, PAGE, Touch};

use crate::guest_support::skip;
use crate::support::*;

const BLOCK: u64 = 512;

/// Faults that the guest takes to read all pages from `first` on.
fn faults(guest: &Guest, first: u64, count: u64) -> u64 {
    let stats = guest.vcpu_stats(0).unwrap();
    let before = stats.read("pf_taken").unwrap().unwrap();
    let touched = guest.touch(0, at(first), count * PAGE, Touch::Read);
    assert_eq!(touched.unwrap(), Access::Done(count));
    stats.read("pf_taken").unwrap().unwrap() - before
}

// Once the second map found 513 faults in place of 2: the file's mapping had waited where it shared
// a page table with others, and the move made an empty table under one of its huge pages.
#[test]
fn a_collapsed_memfd_costs_the_guest_a_fault_for_each_2_mib() {
    let test = "a_collapsed_memfd_costs_the_guest_a_fault_for_each_2_mib";
    let Some(bench) = open(test, Fixed) else {
        return;
    };
    let Bench { window, guest } = &bench;
    let counted = |guest: &Guest| guest.vcpu_stats(0)?.read("pf_taken").unwrap();
    if Host::default().tdp_mmu().state != TdpMmu::On || counted(guest).is_none() {
        skip(test, "no TDP MMU whose faults are counted");
        return;
    }
    let count = 2 * BLOCK;
    let range = pages(BLOCK, count);
    // The guest's own pages, its page tables for the range too, have their faults before any is
    // counted.
    let warm = Blob::new(Seal::Sealed, count, 1);
    window.map(range, &warm.source(), ReadWrite).unwrap();
    faults(guest, BLOCK, count);
    window.unmap(range).unwrap();
    for seal in [Seal::Sealed, Seal::Unsealed] {
        let blob = Blob::new(seal, count, 1000);
        window.map(range, &blob.source(), ReadWrite).unwrap();
        assert_eq!(faults(guest, BLOCK, count), count, "4 KiB pages");
        window.unmap(range).unwrap();

        let before = window.counters();
        let source = blob.source().collapse(true);
        window.map(range, &source, ReadWrite).unwrap();
        let now = window.counters();
        if now.collapse_failures > before.collapse_failures {
            skip(test, "this host makes no huge pages of a memfd");
            return;
        }
        assert_eq!(now.collapsed, before.collapsed + 1);
        assert_eq!(now.lost_to_small_pages, before.lost_to_small_pages);
        assert_eq!(faults(guest, BLOCK, count), 2, "{seal:?}");
        window.unmap(range).unwrap();

        // The file keeps its huge pages: the next map finds them.
        window.map(range, &blob.source(), ReadWrite).unwrap();
        assert_eq!(faults(guest, BLOCK, count), 2, "{seal:?}");
        window.unmap(range).unwrap();
    }
}

#[test]
fn the_guest_sees_the_bytes_of_a_collapsed_memfd() {
    let test = "the_guest_sees_the_bytes_of_a_collapsed_memfd";
    let Some(bench) = open(test, Fixed) else {
        return;
    };
    let Bench { window, guest } = &bench;
    let blob = Blob::new(Seal::Unsealed, BLOCK, 1000);
    let source = blob.source().collapse(true);
    window.map(pages(BLOCK, BLOCK), &source, ReadWrite).unwrap();
    for page in [0, 1, 300, BLOCK - 1] {
        let read = guest.read_u64(0, at(BLOCK + page)).unwrap();
        assert_eq!(read, Access::Done(blob.word(page)));
    }
    let written = guest.write_u64(0, at(BLOCK + 3), 77).unwrap();
    assert_eq!(written, Access::Done(()));
    assert_eq!(blob.bytes()[3 * 4096..3 * 4096 + 8], 77_u64.to_ne_bytes());
    // Memory of nobody else's has huge pages just as well.
    let fresh = Source::anonymous().collapse(true);
    window
        .replace(pages(BLOCK, BLOCK), &fresh, ReadWrite)
        .unwrap();
    let read = guest.read_u64(0, at(BLOCK + 300)).unwrap();
    assert_eq!(read, Access::Done(0));
    let counters = window.counters();
    assert_eq!(counters.collapsed + counters.collapse_failures, 2);
}
