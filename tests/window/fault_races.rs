//! Owns the tests of a resolver beside changes of the window: a change never waits for a step, and a
//! stand-in never outlives what it stood in for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use vm_remap::Protection::{ReadOnly, ReadWrite};
use vm_remap::{BackendKind, Batch, Source};
use vm_remap_cli::guest::{Access, GpaRange, PAGE, Program};

use crate::fault::open_resolved;
use crate::support::*;
use crate::support::{advance, pages};

const ROUNDS: u64 = 60;
const ONES: u64 = u64::MAX;

#[test]
fn mapping_that_comes_while_vcpus_fault_is_seen_whole() {
    let test = "mapping_that_comes_while_vcpus_fault_is_seen_whole";
    for backend in BackendKind::ALL {
        let Some(on) = open_resolved(test, 2, options(backend)) else {
            return;
        };
        // One walks the holes and mappings all the while; the other asks.
        let (base, len) = (at(8), 4 * PAGE);
        on.guest.start(1, Program::Walk { base, len }).unwrap();
        for round in 0..ROUNDS {
            let blob = Blob::new(Seal::Unsealed, 4, 1000 * (round + 1));
            on.window
                .map(pages(8, 4), &blob.source(), ReadWrite)
                .unwrap();
            for page in 0..4 {
                let read = on.guest.read_u64(0, at(8 + page)).unwrap();
                assert_eq!(read, Access::Done(blob.word(page)), "{backend} {round}");
            }
            on.window.unmap(pages(8, 4)).unwrap();
            let read = on.guest.read_u64(0, at(9)).unwrap();
            assert_eq!(read, Access::Done(ONES), "{backend} {round}");
            assert_eq!(blob.bytes(), blob.expected());
        }
        let ran = on.guest.stop(1).unwrap();
        assert_eq!((ran.efaults, ran.mmio), (0, 0), "{backend} {ran:?}");
        assert!(ran.accesses > 0);
        assert_eq!(on.resolver().counters().stops, 0, "{backend}");
    }
}

#[test]
fn writes_that_are_dropped_never_reach_what_is_mapped_meanwhile() {
    let test = "writes_that_are_dropped_never_reach_what_is_mapped_meanwhile";
    let Some(on) = open_resolved(test, 2, options(BackendKind::Fixed)) else {
        return;
    };
    let done = AtomicBool::new(false);
    let (old, new) = (
        Blob::new(Seal::Unsealed, 4, 1000),
        Blob::new(Seal::Unsealed, 4, 2000),
    );
    on.window.map(pages(8, 4), &old.source(), ReadOnly).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..ROUNDS {
                let next = if round % 2 == 0 { &new } else { &old };
                on.window
                    .replace(pages(8, 4), &next.source(), ReadOnly)
                    .unwrap();
                let batch = Batch::new().unmap(pages(20, 2)).replace(
                    pages(20, 1),
                    &Source::anonymous(),
                    ReadOnly,
                );
                on.window.commit(&batch).unwrap();
            }
            done.store(true, Ordering::SeqCst);
        });
        let mut seen = 0_u64;
        while !done.load(Ordering::SeqCst) {
            // Two pages, read and written by one instruction each.
            let range = GpaRange {
                base: at(9) - 4,
                len: 8,
            };
            let wrote = on.guest.execute(0, range, 5, |a| {
                use iced_x86::code_asm::*;
                a.mov(qword_ptr(rsi), rax)?;
                a.xadd(qword_ptr(rsi + 4100), rax)
            });
            let Access::Done(read) = wrote.unwrap() else {
                panic!("it was not resolved");
            };
            assert!(read == old.word(2) || read == new.word(2), "{read}");
            assert_eq!(on.guest.write_u64(1, at(20), 3).unwrap(), Access::Done(()));
            seen += 1;
        }
        assert!(seen > 0);
    });
    assert_eq!(old.bytes(), old.expected());
    assert_eq!(new.bytes(), new.expected());
    assert_eq!(on.guest.read_u64(0, at(20)).unwrap(), Access::Done(0));
    assert_eq!(on.guest.read_u64(0, at(21)).unwrap(), Access::Done(ONES));
    assert_eq!(on.resolver().counters().stops, 0);
}

#[test]
fn vcpu_that_is_stopped_while_it_faults_leaves_nothing_in_a_hole() {
    let test = "vcpu_that_is_stopped_while_it_faults_leaves_nothing_in_a_hole";
    let Some(on) = open_resolved(test, 1, options(BackendKind::Fixed)) else {
        return;
    };
    for _ in 0..40 {
        let (base, len) = (at(8), 64 * PAGE);
        on.guest.start(0, Program::Walk { base, len }).unwrap();
        thread::sleep(std::time::Duration::from_millis(1));
        on.guest.stop(0).unwrap();
    }
    let holes: Vec<_> = (8..72)
        .map(|page| on.guest.read_u64(0, at(page)).unwrap())
        .collect();
    assert_eq!(holes, vec![Access::Done(ONES); 64]);
    let before = on.resolver().counters().present;
    let blob = Blob::new(Seal::Unsealed, 64, 1000);
    on.window
        .map(pages(8, 64), &blob.source(), ReadWrite)
        .unwrap();
    assert_eq!(view(&on.guest, 8..72), words(&blob));
    assert_eq!(
        on.resolver().counters().present,
        before,
        "and no fault at all"
    );
}

#[test]
fn window_closes_while_a_vcpu_faults_in_it() {
    let test = "window_closes_while_a_vcpu_faults_in_it";
    let Some(on) = open_resolved(test, 1, options(BackendKind::Fixed)) else {
        return;
    };
    let (base, len) = (at(8), 4 * PAGE);
    on.guest.start(0, Program::Walk { base, len }).unwrap();
    advance(&on.guest, 0);
    let mut window = on.window;
    // A fault that is being resolved holds the window for a moment.
    let window = loop {
        match std::sync::Arc::try_unwrap(window) {
            Ok(alone) => break alone,
            Err(shared) => window = shared,
        }
        thread::yield_now();
    };
    window.close().unwrap();
    // Without memslots every access is an exit, and nobody's window.
    let ran = on.guest.stop(0).unwrap();
    assert_eq!(ran.efaults, 0);
}
