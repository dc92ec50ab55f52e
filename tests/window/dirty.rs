//! Owns the proof that a migration misses nothing that a window did: a copy that sees only the
//! pages that the logs name ends up as the source, byte for byte.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use vm_remap::BackendKind::{self, Fixed, Memslot};
use vm_remap::Protection::{ReadOnly, ReadWrite};
use vm_remap::{
    Batch, Error, GuestAddress, Origin, Slot, SlotDirtyLog, Source, StateAfter, Window,
};
use vm_remap_cli::guest::{Access, Guest, PAGE};

use crate::guest_support::MIB;
use crate::support::*;

const STRANGER: u64 = 2 * SEGMENT_PAGES;
const LAST: u64 = 3 * SEGMENT_PAGES + 5;

fn fetch(guest: &Guest) -> impl FnMut(&Slot) -> std::io::Result<Vec<u64>> {
    |slot| {
        let len = usize::try_from(slot.len()).unwrap();
        Ok(guest.vm().get_dirty_log(slot.number(), len)?)
    }
}

/// What a page of the window holds: the bytes of the file behind it, or nothing in a hole. A blob's
/// label is its place in the list.
fn content(window: &Window, blobs: &[Blob], page: u64) -> Option<Vec<u8>> {
    let address = GuestAddress(window.base().0 + page * PAGE);
    let found = window.lookup(address)?;
    let Origin::Descriptor { offset, .. } = found.mapping.origin() else {
        panic!("{:?} is no blob", found.mapping);
    };
    let blob = &blobs[usize::try_from(found.mapping.label()).unwrap()];
    let from = usize::try_from(offset + found.offset).unwrap();
    Some(blob.bytes()[from..from + 4096].to_vec())
}

/// What the destination has, by page of the window.
#[derive(Default)]
struct Copy {
    pages: BTreeMap<u64, Vec<u8>>,
}

impl Copy {
    fn copy(&mut self, window: &Window, blobs: &[Blob], page: u64) {
        match content(window, blobs, page) {
            Some(bytes) => self.pages.insert(page, bytes),
            None => self.pages.remove(&page),
        };
    }

    fn round(&mut self, bench: &Bench, blobs: &[Blob]) {
        let Bench { window, guest } = bench;
        let logs = window.take_dirty_log_with(fetch(guest)).unwrap();
        let base = window.base().0;
        for address in logs.iter().flat_map(SlotDirtyLog::addresses) {
            self.copy(window, blobs, (address.0 - base) / PAGE);
        }
    }
}

fn write(bench: &Bench, page: u64, value: u64) {
    let address = bench.window.base().0 + page * PAGE;
    let access = bench.guest.write_u64(0, address, value).unwrap();
    assert_eq!(access, Access::Done(()), "page {page}");
}

fn source(blobs: &[Blob], label: usize) -> Source<'_> {
    blobs[label].source().label(label as u64)
}

/// Lets the other thread end, also where this one fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Every kind of change, with a round of copying after each few.
fn change(bench: &Bench, blobs: &[Blob], copy: &mut Copy) {
    let window = &bench.window;
    let source = |label| source(blobs, label);
    write(bench, 9, 0xa1);
    window.map(pages(32, 8), &source(2), ReadWrite).unwrap();
    window.replace(pages(2, 6), &source(3), ReadWrite).unwrap();
    write(bench, 4, 0xa2);
    copy.round(bench, blobs);

    // What the guest wrote on both sides of a cut, before it and after it.
    for page in [21, 27] {
        write(bench, page, 0xb1);
    }
    window.unmap(pages(22, 4)).unwrap();
    write(bench, 28, 0xb2);
    copy.round(bench, blobs);

    // Mapped, written to and unmapped between two rounds.
    window.map(pages(48, 2), &source(4), ReadWrite).unwrap();
    write(bench, 48, 0xc1);
    window.unmap(pages(48, 1)).unwrap();
    let batch = Batch::new()
        .replace(pages(34, 2), &source(5), ReadOnly)
        .unmap(pages(38, 1))
        .map(pages(24, 1), &source(6), ReadWrite);
    window.commit(&batch).unwrap();
    write(bench, 24, 0xc2);
    copy.round(bench, blobs);

    // A slot that comes while pages are logged.
    window.map(pages(LAST, 3), &source(7), ReadWrite).unwrap();
    write(bench, LAST + 1, 0xd1);
    blobs[7].set_word(2, 0xd2);
    window.mark_dirty(pages(LAST + 2, 1));
    copy.round(bench, blobs);
    window.relocate(GuestAddress(BASE + 16 * MIB)).unwrap();
    write(bench, LAST, 0xd3);
    copy.round(bench, blobs);
    window.relocate(GuestAddress(BASE)).unwrap();
}

/// Changes that KVM refuses, since somebody else has a slot in the way.
fn fail(bench: &Bench, blobs: &[Blob], copy: &mut Copy) {
    let Bench { window, guest } = bench;
    let place = vm_remap::WindowOptions::new(GuestAddress(at(STRANGER)), PAGE).backend(Memslot);
    let stranger = window_in(guest, place, MORE_NUMBERS);
    let theirs = Blob::new(Seal::Sealed, 1, 7000);
    stranger
        .map(pages(0, 1), &theirs.source(), ReadWrite)
        .unwrap();
    let source = |label| source(blobs, label);
    write(bench, 9, 0xe1);
    let batch = Batch::new()
        .replace(pages(9, 2), &source(8), ReadWrite)
        .unmap(pages(28, 1))
        .map(pages(STRANGER, 1), &source(8), ReadWrite);
    let error = window.commit(&batch).unwrap_err();
    assert_eq!(error.state_after(), StateAfter::Unchanged, "{error}");
    copy.round(bench, blobs);
    // Reaches from what is mapped into the stranger's page.
    let range = pages(STRANGER - 3, 4);
    let before = pages(STRANGER - 3, 2);
    window.map(before, &source(9), ReadWrite).unwrap();
    copy.round(bench, blobs);
    let error = window.replace(range, &source(10), ReadWrite).unwrap_err();
    assert_eq!(error.errno(), libc::EEXIST, "{error}");
    copy.round(bench, blobs);
    stranger.close().unwrap();
    window.replace(range, &source(10), ReadWrite).unwrap();
}

#[test]
fn a_copy_of_the_pages_that_the_logs_name_is_the_source() {
    let test = "a_copy_of_the_pages_that_the_logs_name_is_the_source";
    for backend in BackendKind::ALL {
        let Some(bench) = open_with(test, 2, options(backend), NUMBERS) else {
            return;
        };
        let Bench { window, guest } = &bench;
        let seal = |n: u64| match n.is_multiple_of(2) {
            true => Seal::Sealed,
            false => Seal::Unsealed,
        };
        let blobs: Vec<Blob> = (0..11)
            .map(|n| Blob::new(seal(n), 16, (n + 1) << 32))
            .collect();
        window
            .map(pages(0, 16), &source(&blobs, 0), ReadWrite)
            .unwrap();
        window
            .map(pages(16, 16), &source(&blobs, 1), ReadWrite)
            .unwrap();
        write(&bench, 5, 0x51);
        window.start_dirty_log().unwrap();
        let mut copy = Copy::default();
        for page in 0..LEN / PAGE {
            copy.copy(window, &blobs, page);
        }
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            // Another vCPU never stops writing to pages that stay, also while their slots do not.
            scope.spawn(|| {
                for value in 1.. {
                    for page in [0, 1, 20, 31] {
                        let address = at(page);
                        guest.write_u64(1, address, value << 32).unwrap();
                    }
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
            let _stop = Stop(&done);
            change(&bench, &blobs, &mut copy);
            fail(&bench, &blobs, &mut copy);
        });
        copy.round(&bench, &blobs);
        let mut holes = 0;
        for page in 0..LEN / PAGE {
            let (source, copy) = (content(window, &blobs, page), copy.pages.get(&page));
            holes += u64::from(source.is_none());
            // What the record does not list is a hole, whatever the copy has there.
            if source.is_some() || backend == Fixed {
                assert_eq!(source.as_ref(), copy, "{backend}: page {page}");
            }
        }
        assert!((1..LEN / PAGE - 30).contains(&holes));
        window.stop_dirty_log().unwrap();
    }
}

#[test]
fn kvm_says_nothing_of_a_remap_and_the_window_does() {
    let test = "kvm_says_nothing_of_a_remap_and_the_window_does";
    let Some(bench) = open(test, Fixed) else {
        return;
    };
    let Bench { window, guest } = &bench;
    let blobs = [
        Blob::new(Seal::Sealed, 8, 100),
        Blob::new(Seal::Unsealed, 8, 200),
    ];
    window
        .map(pages(0, 8), &source(&blobs, 0), ReadWrite)
        .unwrap();
    window.start_dirty_log().unwrap();
    let mut fetch = fetch(guest);
    write(&bench, 1, 7);
    assert_eq!(fetch(&window.slots()[0]).unwrap()[0], 0b10);
    window
        .replace(pages(2, 3), &source(&blobs, 1), ReadWrite)
        .unwrap();
    window.unmap(pages(6, 1)).unwrap();
    assert_eq!(fetch(&window.slots()[0]).unwrap()[0], 0);
    let logs = window.take_dirty_log().unwrap();
    assert_eq!(logs[0].slot, window.slots()[0]);
    assert_eq!(logs[0].bitmap[0], 0b101_1100);
    assert_eq!(logs[0].bitmap.len(), fetch(&logs[0].slot).unwrap().len());
    window.stop_dirty_log().unwrap();
    // The hypervisor keeps no log any more.
    fetch(&logs[0].slot).unwrap_err();
    let off = window.take_dirty_log_with(fetch);
    assert!(matches!(off, Err(Error::DirtyLogOff)));
}
