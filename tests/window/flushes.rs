//! Owns the tests of how many TLB flushes a batch asks KVM for, by KVM's own count.

use vm_remap::BackendKind::Fixed;
use vm_remap::Protection::ReadWrite;
use vm_remap::{Batch, Source, Window};
use vm_remap_cli::guest::{Access, Guest, PAGE, Touch};

use crate::guest_support::skip;
use crate::support::*;

/// Changes in a batch, each of one page.
const SIZES: [u64; 3] = [1, 16, 256];

/// Flushes that KVM was asked for; `None` where it does not count them.
fn flushes(guest: &Guest) -> Option<u64> {
    let stats = guest.vm_stats()?;
    stats.read("remote_tlb_flush_requests").unwrap()
}

fn open_counted(test: &str) -> Option<Bench> {
    let bench = open(test, Fixed)?;
    if flushes(&bench.guest).is_none() {
        skip(test, "this kernel does not count a VM's flushes");
        return None;
    }
    Some(bench)
}

/// The flushes that the host itself asks for, when it moves pages, come now and then. So the least
/// of three is the changes' own.
fn least(mut count: impl FnMut() -> u64) -> u64 {
    (0..3).map(|_| count()).min().unwrap()
}

/// Flushes that `change` asks for, with the guest having touched the first `touched` pages.
fn cost(bench: &Bench, touched: u64, change: impl FnOnce(&Window)) -> u64 {
    if touched > 0 {
        let read = bench.guest.touch(0, at(0), touched * PAGE, Touch::Read);
        assert_eq!(read.unwrap(), Access::Done(touched));
    }
    let before = flushes(&bench.guest).unwrap();
    change(&bench.window);
    flushes(&bench.guest).unwrap() - before
}

/// A change of each page, by the source for it.
fn each<'a>(
    count: u64,
    source: impl Fn(u64) -> Source<'a>,
    add: fn(Batch<'a>, u64, &Source<'a>) -> Batch<'a>,
) -> Batch<'a> {
    (0..count).fold(Batch::new(), |batch, page| add(batch, page, &source(page)))
}

fn map<'a>(batch: Batch<'a>, page: u64, source: &Source<'a>) -> Batch<'a> {
    batch.map(pages(page, 1), source, ReadWrite)
}

fn replace<'a>(batch: Batch<'a>, page: u64, source: &Source<'a>) -> Batch<'a> {
    batch.replace(pages(page, 1), source, ReadWrite)
}

fn unmaps(count: u64) -> Batch<'static> {
    (0..count).fold(Batch::new(), |batch, page| batch.unmap(pages(page, 1)))
}

#[test]
fn a_batch_in_one_file_costs_one_flush_and_none_into_holes() {
    let test = "a_batch_in_one_file_costs_one_flush_and_none_into_holes";
    let Some(bench) = open_counted(test) else {
        return;
    };
    for seal in [Seal::Sealed, Seal::Unsealed] {
        for count in SIZES {
            let (old, new) = (Blob::new(seal, count, 1000), Blob::new(seal, count, 5000));
            let mapped = each(count, |page| old.source_at(page), map);
            let replaced = each(count, |page| new.source_at(page), replace);
            let mut costs = [u64::MAX; 3];
            for _ in 0..3 {
                let now = [
                    cost(&bench, 0, |window| window.commit(&mapped).unwrap()),
                    cost(&bench, count, |window| window.commit(&replaced).unwrap()),
                    cost(&bench, count, |window| {
                        window.commit(&unmaps(count)).unwrap();
                    }),
                ];
                for (least, now) in costs.iter_mut().zip(now) {
                    *least = now.min(*least);
                }
            }
            assert_eq!(costs, [0, 1, 1], "{seal:?}, {count} changes");
        }
    }
}

#[test]
fn a_batch_of_many_files_costs_no_flush_into_holes_and_one_to_unmap() {
    let test = "a_batch_of_many_files_costs_no_flush_into_holes_and_one_to_unmap";
    let Some(bench) = open_counted(test) else {
        return;
    };
    for seal in [Seal::Sealed, Seal::Unsealed] {
        for count in SIZES {
            let files: Vec<Blob> = (0..count).map(|n| Blob::new(seal, 1, n)).collect();
            let file = |page| &files[usize::try_from(page).unwrap()];
            let mapped = each(count, |page| file(page).source(), map);
            let into_holes = least(|| {
                let cost = cost(&bench, 0, |window| window.commit(&mapped).unwrap());
                bench.window.commit(&unmaps(count)).unwrap();
                cost
            });
            assert_eq!(into_holes, 0, "{seal:?}, {count} changes");
            let unmapped = least(|| {
                bench.window.commit(&mapped).unwrap();
                cost(&bench, count, |window| {
                    window.commit(&unmaps(count)).unwrap();
                })
            });
            assert_eq!(unmapped, 1, "{seal:?}, {count} changes");
        }
    }
}

#[test]
fn single_changes_cost_a_flush_each() {
    let test = "single_changes_cost_a_flush_each";
    let Some(bench) = open_counted(test) else {
        return;
    };
    let blob = Blob::new(Seal::Sealed, 16, 1000);
    let mapped = each(16, |page| blob.source_at(page), map);
    let cost = least(|| {
        bench.window.commit(&mapped).unwrap();
        cost(&bench, 16, |window| {
            for page in 0..16 {
                window.unmap(pages(page, 1)).unwrap();
            }
        })
    });
    assert!(cost >= 16, "{cost}: the count sees each");
}

#[test]
fn the_guest_sees_old_or_new_while_a_batch_replaces_all_around_its_page() {
    let test = "the_guest_sees_old_or_new_while_a_batch_replaces_all_around_its_page";
    let Some(bench) = open(test, Fixed) else {
        return;
    };
    let Bench { window, guest } = &bench;
    let version = |seal, number: u64| Blob::new(seal, 16, number * 1000);
    let first = version(Seal::Sealed, 1);
    window
        .commit(&each(16, |page| first.source_at(page), map))
        .unwrap();
    let (page, expected) = (at(7), first.word(7));
    let watch = vm_remap_cli::guest::Program::Watch { page, expected };
    guest.start(0, watch).unwrap();
    advance(guest, 0);
    let seals = [Seal::Sealed, Seal::Unsealed];
    for (number, seal) in (2..200).zip(seals.iter().cycle()) {
        let next = version(*seal, number);
        let batch = each(16, |page| next.source_at(page), replace);
        // What an earlier change of the batch does to the page is never seen.
        let batch = replace(batch.unmap(pages(7, 1)), 7, &next.source_at(7));
        window.commit(&batch).unwrap();
        guest.set_expected(0, next.word(7)).unwrap();
        if number % 3 == 0 {
            advance(guest, 0);
        }
    }
    advance(guest, 0);
    let ran = guest.stop(0).unwrap();
    assert_eq!((guest.stale(0).unwrap(), ran.efaults, ran.mmio), (0, 0, 0));
}
