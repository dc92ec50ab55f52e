//! Owns the proof of what a change of a `fixed` window takes from the guest, by KVM's count of its
//! translations: the window's own, and where a mapping is cut inside a 2 MiB block, that block's.
//! Only where KVM has its TDP MMU: the others also take what lies nearby.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    reason = "a test that cannot go on fails"
)]

#[expect(
    dead_code,
    reason = "slots without a window are for the guest's own tests"
)]
mod guest_support;

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use vm_remap::Protection::ReadWrite;
use vm_remap::host::{Host, TdpMmu};
use vm_remap::{GuestAddress, PageRange, SlotNumbers, Source, Window, WindowOptions};
use vm_remap_cli::guest::{Access, GpaRange, Guest, PAGE, Touch};

use guest_support::{MIB, SLOT, skip};

const REACH: GpaRange = GpaRange {
    base: 4 << 30,
    len: 16 * MIB,
};
/// RAM that the guest has touched, which no change may cost it.
const POPULATED: u64 = 16 * MIB;
/// Pages of 2 MiB.
const BLOCK: u64 = 512;

struct Bench {
    window: Window,
    guest: Guest,
    file: File,
}

fn pages(start: u64, count: u64) -> PageRange {
    PageRange::new(start * PAGE, count * PAGE).unwrap()
}

impl Bench {
    fn open(test: &str) -> Option<Self> {
        let guest = guest_support::open(test, 1, Some(REACH))?;
        if Host::default().tdp_mmu().state != TdpMmu::On {
            skip(test, "no TDP MMU");
            return None;
        }
        let window = WindowOptions::new(GuestAddress(REACH.base), REACH.len)
            .open(
                Arc::clone(guest.vm()) as _,
                SlotNumbers::new(SLOT..SLOT + 8),
            )
            .unwrap();
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create("blob", flags).unwrap());
        file.set_len(REACH.len).unwrap();
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::SEAL).unwrap();
        Some(Self {
            window,
            guest,
            file,
        })
    }

    fn source(&self) -> Source<'_> {
        Source::descriptor(self.file.as_fd(), 0)
    }

    fn touch(&self, base: u64, len: u64) {
        let touched = self.guest.touch(0, base, len, Touch::Write).unwrap();
        assert_eq!(touched, Access::Done(len / PAGE));
    }

    /// Pages of 4 KiB that KVM has translations for.
    fn translated(&self) -> u64 {
        let all = self.guest.vm_stats().unwrap().snapshot().unwrap();
        let pages = |name, size| all.get(name).unwrap() * size;
        pages("pages_4k", 1) + pages("pages_2m", BLOCK) + pages("pages_1g", BLOCK * BLOCK)
    }

    /// How many translations `change` costs, with `mapped` pages mapped from the window's start
    /// and the first `touched` of them touched.
    fn cost(&self, mapped: u64, touched: u64, change: impl Fn(&Window, &Source<'_>)) -> u64 {
        let source = self.source();
        self.window
            .map(pages(0, mapped), &source, ReadWrite)
            .unwrap();
        self.touch(self.guest.layout().working_set().base, POPULATED);
        self.touch(REACH.base, touched * PAGE);
        let before = self.translated();
        change(&self.window, &source);
        let after = self.translated();
        self.window.unmap(pages(0, REACH.len / PAGE)).unwrap();
        before - after
    }

    /// The host itself takes translations now and then, when it moves pages; never fewer than the
    /// change does, and not each time. So the least of three is the change's.
    fn least_cost(&self, mapped: u64, touched: u64, change: fn(&Window, &Source<'_>)) -> u64 {
        let costs = (0..3).map(|_| self.cost(mapped, touched, change));
        costs.min().unwrap()
    }
}

#[test]
fn a_change_of_a_whole_mapping_costs_the_pages_that_were_touched() {
    let test = "a_change_of_a_whole_mapping_costs_the_pages_that_were_touched";
    let Some(bench) = Bench::open(test) else {
        return;
    };
    let replace: fn(&Window, &Source<'_>) =
        |window, source| window.replace(pages(0, 64), source, ReadWrite).unwrap();
    let unmap: fn(&Window, &Source<'_>) = |window, _| window.unmap(pages(0, 64)).unwrap();
    for change in [replace, unmap] {
        for touched in [1, 40, 64] {
            assert_eq!(bench.least_cost(64, touched, change), touched);
        }
    }
    let replace_block: fn(&Window, &Source<'_>) =
        |window, source| window.replace(pages(0, BLOCK), source, ReadWrite).unwrap();
    assert_eq!(bench.least_cost(BLOCK, BLOCK, replace_block), BLOCK);
}

#[test]
fn a_cut_inside_a_2_mib_block_costs_the_block() {
    let test = "a_cut_inside_a_2_mib_block_costs_the_block";
    let Some(bench) = Bench::open(test) else {
        return;
    };
    let replace_one: fn(&Window, &Source<'_>) =
        |window, source| window.replace(pages(100, 1), source, ReadWrite).unwrap();
    let unmap_one: fn(&Window, &Source<'_>) = |window, _| window.unmap(pages(100, 1)).unwrap();
    for change in [replace_one, unmap_one] {
        assert_eq!(bench.least_cost(BLOCK, BLOCK, change), BLOCK);
        // Of three blocks, only the one that is cut.
        assert_eq!(bench.least_cost(3 * BLOCK, 3 * BLOCK, change), BLOCK);
    }
}

#[test]
fn a_cut_at_2_mib_costs_its_own() {
    let test = "a_cut_at_2_mib_costs_its_own";
    let Some(bench) = Bench::open(test) else {
        return;
    };
    let replace: fn(&Window, &Source<'_>) = |window, source| {
        window
            .replace(pages(BLOCK, BLOCK), source, ReadWrite)
            .unwrap();
    };
    let unmap: fn(&Window, &Source<'_>) = |window, _| window.unmap(pages(BLOCK, BLOCK)).unwrap();
    for change in [replace, unmap] {
        assert_eq!(bench.least_cost(3 * BLOCK, 3 * BLOCK, change), BLOCK);
    }
}
