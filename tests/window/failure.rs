//! Owns the tests of calls that fail: the guest sees what it saw before.

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_remap::BackendKind::{self, Fixed, Memslot};
use vm_remap::Protection::ReadWrite;
use vm_remap::{Batch, Error, GuestAddress, Source, StateAfter, WindowOptions};

use crate::support::*;

const COUNT: u64 = 8;
/// What of the window the tests look at.
const LOOKED_AT: Range<u64> = 0..32;
const STRANGER: u64 = 2 * SEGMENT_PAGES;

/// Two mappings and the files behind them.
fn furnish(bench: &Bench) -> [Blob; 2] {
    let blobs = [
        Blob::new(Seal::Sealed, COUNT, 1000),
        Blob::new(Seal::Unsealed, COUNT, 2000),
    ];
    for (blob, first) in blobs.iter().zip([0, 16]) {
        bench
            .window
            .map(pages(first, COUNT), &blob.source(), ReadWrite)
            .unwrap();
    }
    blobs
}

/// A batch that covers, cuts, unmaps and maps, and ends with `last` at page `page`.
fn batch<'fd>(new: &'fd Blob, last: &Source<'fd>, page: u64) -> Batch<'fd> {
    Batch::new()
        .replace(pages(2, COUNT), &new.source(), ReadWrite)
        .unmap(pages(20, 2))
        .map(pages(25, 4), &new.source(), ReadWrite)
        .map(pages(page, 1), last, ReadWrite)
}

/// Commits `batch`, which must fail and leave the guest everything as it was.
fn assert_refused(bench: &Bench, files: &[Blob], batch: &Batch<'_>) -> Error {
    let before = view(&bench.guest, LOOKED_AT);
    let error = bench.window.commit(batch).unwrap_err();
    assert_eq!(error.state_after(), StateAfter::Unchanged, "{error}");
    assert_eq!(view(&bench.guest, LOOKED_AT), before, "{error}");
    for file in files {
        assert_eq!(file.bytes(), file.expected(), "{error}");
    }
    assert_eq!(bench.window.counters().mappings, files.len() as u64);
    error
}

/// Descriptors that nothing should be mapped from, and what is wrong with them.
fn hostile() -> Vec<(&'static str, OwnedFd)> {
    let memfd = |flags| memfd_create("hostile", MemfdFlags::CLOEXEC | flags).unwrap();
    let sealed = memfd(MemfdFlags::ALLOW_SEALING);
    ftruncate(&sealed, 4096).unwrap();
    fcntl_add_seals(&sealed, SealFlags::WRITE).unwrap();
    let readable = File::open("/proc/self/exe").unwrap();
    let device = OpenOptions::new().read(true).write(true).open("/dev/zero");
    vec![
        ("a socket", UnixStream::pair().unwrap().0.into()),
        ("an empty memfd", memfd(MemfdFlags::empty())),
        ("a memfd sealed against writing", sealed),
        ("a file open for reading", readable.into()),
        ("a character device", device.unwrap().into()),
    ]
}

#[test]
fn batch_with_a_hostile_last_descriptor_is_no_change_for_the_guest() {
    let test = "batch_with_a_hostile_last_descriptor_is_no_change_for_the_guest";
    for backend in BackendKind::ALL {
        let Some(bench) = open(test, backend) else {
            return;
        };
        let files = furnish(&bench);
        let new = Blob::new(Seal::Unsealed, COUNT, 9000);
        for (what, fd) in hostile() {
            let last = Source::descriptor(fd.as_fd(), 0);
            let error = assert_refused(&bench, &files, &batch(&new, &last, 30));
            assert_ne!(error.errno(), 0, "{what}: {error}");
        }
        // The same batch with an honest end is carried out.
        let honest = batch(&new, &new.source(), 30);
        bench.window.commit(&honest).unwrap();
        let seen = view(&bench.guest, LOOKED_AT);
        assert_eq!(seen[2..10], words(&new), "{backend}");
        assert_eq!(seen[20], hole(backend, at(20), false), "{backend}");
        assert_eq!(seen[25..29], words(&new)[..4], "{backend}");
        assert_eq!(seen[30], words(&new)[0], "{backend}");
    }
}

#[test]
fn batch_that_runs_out_of_slot_numbers_is_no_change_for_the_guest() {
    let test = "batch_that_runs_out_of_slot_numbers_is_no_change_for_the_guest";
    let first = NUMBERS.start;
    for (backend, numbers) in [(Fixed, first..first + 1), (Memslot, first..first + 3)] {
        let Some(bench) = open_with(test, 1, options(backend), numbers) else {
            return;
        };
        let files = furnish(&bench);
        let new = Blob::new(Seal::Sealed, COUNT, 9000);
        let in_another_segment = batch(&new, &new.source(), STRANGER);
        let error = assert_refused(&bench, &files, &in_another_segment);
        assert!(matches!(error, Error::SlotNumbers { .. }), "{error}");
        bench.window.unmap(pages(16, COUNT)).unwrap();
        bench
            .window
            .replace(pages(0, COUNT), &new.source(), ReadWrite)
            .unwrap();
        assert_eq!(view(&bench.guest, 0..COUNT), words(&new), "{backend}");
    }
}

#[test]
fn batch_that_kvm_refuses_half_way_is_taken_back_for_the_guest() {
    let test = "batch_that_kvm_refuses_half_way_is_taken_back_for_the_guest";
    for backend in BackendKind::ALL {
        let Some(bench) = open(test, backend) else {
            return;
        };
        // Somebody else has a slot where the last change needs one.
        let place = WindowOptions::new(GuestAddress(at(STRANGER)), 4096).backend(Memslot);
        let stranger = window_in(&bench.guest, place, MORE_NUMBERS);
        let theirs = Blob::new(Seal::Sealed, 1, 7000);
        stranger
            .map(pages(0, 1), &theirs.source(), ReadWrite)
            .unwrap();
        let files = furnish(&bench);
        for seal in [Seal::Sealed, Seal::Unsealed] {
            let new = Blob::new(seal, COUNT, 9000);
            let colliding = batch(&new, &new.source(), STRANGER);
            let error = assert_refused(&bench, &files, &colliding);
            assert_eq!(error.errno(), libc::EEXIST, "{backend}: {error}");
            assert_eq!(new.bytes(), new.expected());
        }
        let read = bench.guest.read_u64(0, at(STRANGER)).unwrap();
        assert_eq!(read, words(&theirs)[0], "{backend}");

        // Alone it fails as well, and once the stranger is gone it does not.
        let range = pages(STRANGER, 1);
        let error = bench
            .window
            .map(range, &files[0].source(), ReadWrite)
            .unwrap_err();
        assert_eq!(error.errno(), libc::EEXIST, "{backend}: {error}");
        stranger.close().unwrap();
        bench
            .window
            .map(range, &files[0].source(), ReadWrite)
            .unwrap();
        let read = bench.guest.read_u64(0, at(STRANGER)).unwrap();
        assert_eq!(read, words(&files[0])[0], "{backend}");
    }
}
