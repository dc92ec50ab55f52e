//! Owns the tests of batches that are prepared ahead: nothing changes before the commit, and the
//! commit judges the window as it is by then.

use std::os::fd::AsFd;
use std::sync::Arc;

use vm_remap::Protection::{ReadOnly, ReadWrite};
use vm_remap::{BackendKind, Batch, Error, Prefault, PreparedBatch, Source, StateAfter, Window};

use crate::support::*;

fn assert_can_be_sent(_: &(impl Send + Sync + 'static)) {}

/// Maps 8 pages of a file that is closed when this returns.
fn prepared(window: &Window, start: u64, first: u8, prefault: Prefault) -> PreparedBatch {
    let fd = if first.is_multiple_of(2) {
        memfd(8, first)
    } else {
        sealed(8, first)
    };
    let source = Source::descriptor(fd.as_fd(), 0).prefault(prefault);
    let batch = Batch::new().map(pages(start, 4), &source, ReadWrite).map(
        pages(start + 8, 8),
        &source,
        ReadOnly,
    );
    window.prepare(&batch).unwrap()
}

#[test]
fn a_prepared_batch_is_made_by_its_commit_with_its_descriptors_closed() {
    for backend in BackendKind::ALL {
        for first in [10, 11] {
            for prefault in [Prefault::None, Prefault::HostRead] {
                let bench = open(backend);
                let ready = prepared(&bench.window, 0, first, prefault);
                assert_can_be_sent(&ready);
                assert!(bench.recorder.events().is_empty() && bench.window.mappings().is_empty());
                bench.window.commit_prepared(ready).unwrap();
                let seen = seen(&bench);
                assert_eq!(seen[..2], [Some(first), Some(first + 1)], "{backend}");
                assert_eq!((seen[4], seen[15]), (None, Some(first + 7)));
                let counters = bench.window.counters();
                assert_eq!((counters.maps, counters.batches), (2, 1));
                let asked = u64::from(prefault != Prefault::None) * 2;
                assert_eq!(counters.prefaulted, asked);
            }
        }
    }
}

#[test]
fn a_prepared_batch_that_is_dropped_has_changed_nothing() {
    let bench = open(BackendKind::Fixed);
    let fd = memfd(8, 1);
    bench
        .window
        .map(pages(0, 8), &source(&fd), ReadWrite)
        .unwrap();
    let before = (seen(&bench), bench.window.record(), bench.window.counters());
    drop(prepared(&bench.window, 16, 90, Prefault::HostWrite));
    let cover = Batch::new()
        .replace(pages(2, 3), &Source::anonymous(), ReadWrite)
        .unmap(pages(0, 1));
    drop(bench.window.prepare(&cover).unwrap());
    let after = (seen(&bench), bench.window.record(), bench.window.counters());
    assert_eq!(after, before);
}

#[test]
fn a_commit_judges_the_window_as_it_is_by_then() {
    let bench = open(BackendKind::Fixed);
    let ready = prepared(&bench.window, 0, 10, Prefault::None);
    let again = prepared(&bench.window, 0, 30, Prefault::None);
    bench.window.commit_prepared(ready).unwrap();
    let error = bench.window.commit_prepared(again).unwrap_err();
    let Error::Occupied { range, occupied } = error else {
        panic!("unexpected error: {error}");
    };
    assert_eq!((range, occupied), (pages(0, 4), pages(0, 4)));
    assert_eq!(seen(&bench)[0], Some(10));

    // What was prepared over nothing replaces what has come meanwhile.
    let fd = memfd(4, 70);
    let over = Batch::new().replace(pages(2, 4), &source(&fd), ReadWrite);
    let over = bench.window.prepare(&over).unwrap();
    bench.window.unmap(pages(0, 16)).unwrap();
    bench
        .window
        .map(pages(4, 4), &Source::anonymous(), ReadWrite)
        .unwrap();
    bench.window.commit_prepared(over).unwrap();
    let expected = [None, Some(70), Some(71), Some(72), Some(73), Some(0)];
    assert_eq!(seen(&bench)[1..7], expected);
    assert_eq!(bench.window.counters().failures, 1);
}

#[test]
fn another_windows_batch_is_refused() {
    let (bench, other) = (open(BackendKind::Fixed), open(BackendKind::Fixed));
    let ready = prepared(&other.window, 0, 10, Prefault::None);
    let error = bench.window.commit_prepared(ready).unwrap_err();
    assert!(matches!(error, Error::OtherWindow), "{error}");
    assert_eq!(error.state_after(), StateAfter::Unchanged);
    assert!(bench.window.mappings().is_empty() && other.window.mappings().is_empty());
    // One may outlive its window.
    let ready = prepared(&other.window, 0, 10, Prefault::None);
    other.window.close().unwrap();
    drop(ready);
}

#[test]
fn a_batch_is_prepared_beside_a_thread_that_uses_the_window() {
    let bench = open(BackendKind::Fixed);
    let fd = memfd(8, 1);
    let window = Arc::new(bench.window);
    let helpers: Vec<_> = (0..2_u64)
        .map(|helper| {
            let window = Arc::clone(&window);
            std::thread::spawn(move || {
                (0..50).for_each(|round| {
                    let how = [Prefault::HostWrite, Prefault::None][round % 2];
                    let ready = prepared(&window, 16 + 24 * helper, 10, how);
                    window.commit_prepared(ready).unwrap();
                    window.unmap(pages(16 + 24 * helper, 16)).unwrap();
                });
            })
        })
        .collect();
    for _ in 0..200 {
        window.map(pages(0, 8), &source(&fd), ReadWrite).unwrap();
        window.unmap(pages(0, 8)).unwrap();
    }
    for helper in helpers {
        helper.join().unwrap();
    }
    assert!(window.mappings().is_empty());
    assert_eq!(window.counters().batches, 100);
}
