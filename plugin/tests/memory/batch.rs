//! Owns the tests of batches: all of it or nothing.

use std::os::fd::AsFd;

use rustix::fs::{SealFlags, fcntl_add_seals};
use vm_remap::BackendKind;
use vm_remap::Protection::{ReadOnly, ReadWrite};
use vm_remap::{Batch, GuestAddress, Source, StateAfter};

use crate::support::*;

#[test]
fn batch_makes_its_changes_in_their_order() {
    for backend in BackendKind::ALL {
        let bench = open(backend);
        let (a, b) = (memfd(4, 10), memfd(4, 20));
        bench
            .window
            .map(pages(0, 4), &source(&a), ReadWrite)
            .unwrap();
        let batch = Batch::new()
            .unmap(pages(0, 4))
            .map(pages(0, 2), &source(&b), ReadWrite)
            .replace(pages(1, 2), &source(&a), ReadOnly)
            .map(pages(8, 1), &Source::anonymous(), ReadWrite);
        assert_eq!(batch.len(), 4);
        bench.window.commit(&batch).unwrap();
        let expected = [Some(20), Some(10), Some(11), None];
        assert_eq!(&seen(&bench)[..4], expected, "{backend}");
        assert_eq!(seen(&bench)[8], Some(0));
        assert_eq!(bench.window.counters().batches, 1);
    }
}

#[test]
fn an_empty_batch_does_nothing() {
    let bench = open(BackendKind::Fixed);
    assert!(Batch::new().is_empty());
    bench.window.commit(&Batch::new()).unwrap();
    assert!(bench.recorder.events().is_empty());
}

/// Everything that a test can see of a window.
#[derive(Debug, PartialEq)]
struct Picture {
    seen: Vec<Option<u8>>,
    slots: Vec<(u64, u64, bool)>,
    record: vm_remap::LayoutRecord,
}

fn picture(bench: &Bench) -> Picture {
    let slot = |slot: &vm_remap::Slot| (slot.guest_address().0, slot.len(), slot.is_read_only());
    Picture {
        seen: seen(bench),
        slots: bench.recorder.live().iter().map(slot).collect(),
        record: bench.window.record(),
    }
}

fn with_some_mappings(backend: BackendKind) -> Bench {
    let bench = open(backend);
    let (a, b) = (memfd(6, 10), sealed(4, 20));
    bench
        .window
        .map(pages(0, 6), &source(&a), ReadWrite)
        .unwrap();
    bench
        .window
        .map(pages(10, 4), &source(&b), ReadOnly)
        .unwrap();
    bench
        .window
        .map(pages(20, 2), &Source::anonymous(), ReadWrite)
        .unwrap();
    bench
}

#[test]
fn a_batch_refused_at_any_place_leaves_everything_as_it_was() {
    let good = memfd(8, 50);
    let hostile = memfd(8, 90);
    fcntl_add_seals(&hostile, SealFlags::WRITE).unwrap();
    for backend in BackendKind::ALL {
        let bench = with_some_mappings(backend);
        let before = picture(&bench);
        let steps: [(u64, u64); 3] = [(4, 8), (20, 1), (40, 2)];
        for bad in 0..4 {
            let mut batch = Batch::new();
            for (index, (start, count)) in steps.iter().enumerate() {
                let fd = if index == bad { &hostile } else { &good };
                batch = batch.replace(pages(*start, *count), &source(fd), ReadWrite);
            }
            if bad == 3 {
                // The last step meets what the third put there.
                batch = batch
                    .unmap(pages(0, 2))
                    .map(pages(41, 3), &source(&good), ReadWrite);
            }
            let error = bench.window.commit(&batch).unwrap_err();
            assert_eq!(error.state_after(), StateAfter::Unchanged);
            assert_eq!(picture(&bench), before, "{backend}, step {bad}");
        }
    }
}

#[test]
fn a_batch_whose_last_slot_fails_is_taken_back_with_its_memory() {
    let bench = with_some_mappings(BackendKind::Memslot);
    let before = picture(&bench);
    let fd = memfd(8, 50);
    bench
        .recorder
        .fail_register_of(GuestAddress(BASE.0 + 30 * PAGE));
    let batch = Batch::new()
        .replace(pages(4, 8), &source(&fd), ReadWrite)
        .unmap(pages(20, 1))
        .map(pages(30, 2), &source(&fd), ReadWrite);
    let error = bench.window.commit(&batch).unwrap_err();
    assert_eq!(error.state_after(), StateAfter::Unchanged, "{error}");
    assert_eq!(picture(&bench), before);
}

#[test]
fn a_batch_whose_segment_fails_is_taken_back() {
    let bench = with_some_mappings(BackendKind::Fixed);
    let before = picture(&bench);
    let fd = memfd(8, 50);
    bench
        .recorder
        .fail_register_of(GuestAddress(BASE.0 + 48 * PAGE));
    let batch = Batch::new()
        .replace(pages(4, 8), &source(&fd), ReadWrite)
        .map(pages(50, 2), &source(&fd), ReadWrite);
    let error = bench.window.commit(&batch).unwrap_err();
    assert_eq!(error.state_after(), StateAfter::Unchanged);
    assert_eq!(picture(&bench), before);
}

#[test]
fn anonymous_memory_survives_a_batch_that_is_taken_back() {
    let bench = open(BackendKind::Memslot);
    bench
        .window
        .map(pages(0, 2), &Source::anonymous(), ReadWrite)
        .unwrap();
    let address = bench.window.lookup(BASE).unwrap().host_address;
    let memory = std::fs::OpenOptions::new()
        .write(true)
        .open("/proc/self/mem")
        .unwrap();
    std::os::unix::fs::FileExt::write_all_at(&memory, &[42], address).unwrap();
    let fd = memfd(2, 1);
    bench
        .recorder
        .fail_register_of(GuestAddress(BASE.0 + 5 * PAGE));
    let batch = Batch::new().unmap(pages(0, 2)).map(
        pages(5, 1),
        &Source::descriptor(fd.as_fd(), 0),
        ReadWrite,
    );
    bench.window.commit(&batch).unwrap_err();
    assert_eq!(seen(&bench)[0], Some(42));
}

#[test]
fn a_batch_of_one_is_put_back_as_well() {
    let bench = open(BackendKind::Memslot);
    let (old, new) = (memfd(2, 1), memfd(2, 9));
    bench
        .window
        .map(pages(0, 2), &source(&old), ReadWrite)
        .unwrap();
    let before = picture(&bench);
    bench.recorder.fail_next_register();
    let batch = Batch::new().replace(pages(0, 2), &source(&new), ReadWrite);
    let error = bench.window.commit(&batch).unwrap_err();
    assert_eq!(error.state_after(), StateAfter::Unchanged);
    assert_eq!(picture(&bench), before);
}
