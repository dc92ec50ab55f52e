//! Owns the tests of changes that meet a pin: they wait or are refused, and never go ahead.
//! Never asserts how long anything takes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use vm_remap::OnPinned::{Refuse, Wait};
use vm_remap::Protection::ReadWrite;
use vm_remap::{Batch, Error, GuestAddress, Source, StateAfter, Window};

use crate::support::*;

/// Long enough that a test that meets it has failed.
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(20);

/// Waits until a change waits, as far as that is seen from outside: it has been given the time.
fn let_it_wait() {
    thread::sleep(SHORT);
}

fn assert_pinned(result: Result<(), Error>, waited: Duration) {
    let error = result.unwrap_err();
    assert_eq!(error.errno(), 16, "{error}");
    assert_eq!(error.state_after(), StateAfter::Unchanged);
    assert!(
        matches!(error, Error::Pinned { waited: found, .. } if found == waited),
        "{error}"
    );
}

#[test]
fn every_change_of_a_pinned_range_is_refused_and_others_are_not() {
    let window = open_with(options().on_pinned(Refuse));
    let fd = memfd(4, 1);
    map(&window, 4, 4, &fd);
    let record = window.record();
    let pin = window.pin(pages(5, 1)).unwrap();
    let other = source(&fd);
    assert_pinned(window.unmap(pages(4, 4)), Duration::ZERO);
    assert_pinned(window.unmap(pages(5, 1)), Duration::ZERO);
    assert_pinned(
        window.replace(pages(0, 6), &Source::anonymous(), ReadWrite),
        Duration::ZERO,
    );
    let batch = Batch::new()
        .map(pages(20, 1), &other, ReadWrite)
        .unmap(pages(5, 2));
    assert_pinned(window.commit(&batch), Duration::ZERO);
    let mut byte = [0];
    pin.read(0, &mut byte).unwrap();
    assert_eq!(byte, [2]);
    assert_eq!(window.mappings().len(), 1, "nothing of the batch was made");

    window.unmap(pages(4, 1)).unwrap();
    window
        .replace(pages(6, 1), &Source::anonymous(), ReadWrite)
        .unwrap();
    window.map(pages(20, 1), &other, ReadWrite).unwrap();
    window.relocate(GuestAddress(BASE + (1 << 30))).unwrap();
    pin.read(0, &mut byte).unwrap();
    assert_eq!(byte, [2], "the pinned page is still what it was");
    drop(pin);
    window.unmap(pages(0, PAGES)).unwrap();

    window.replay(&record, |_| Ok(source(&fd))).unwrap();
    window.close().unwrap();
}

#[test]
fn pins_nest_and_the_last_one_counts() {
    let window = open_with(options().on_pinned(Refuse));
    map(&window, 0, 4, &memfd(4, 0));
    let outer = window.pin(pages(0, 4)).unwrap();
    let inner = window.pin(pages(1, 1)).unwrap();
    let same = window.pin(pages(1, 1)).unwrap();
    assert_eq!(window.counters().pins, 3);
    drop(outer);
    drop(inner);
    assert_pinned(window.unmap(pages(0, 4)), Duration::ZERO);
    window.unmap(pages(0, 1)).unwrap();
    drop(same);
    window.unmap(pages(0, 4)).unwrap();
    assert_eq!(window.counters().pins, 0);
}

#[test]
fn change_that_waits_is_made_when_the_last_pin_goes() {
    let window = open_with(options().on_pinned(Wait(LONG)));
    map(&window, 0, 2, &memfd(2, 3));
    let [first, second] = [0, 1].map(|page| window.pin(pages(page, 1)).unwrap());
    let gone = AtomicBool::new(false);
    thread::scope(|scope| {
        let unmap = scope.spawn(|| {
            window.unmap(pages(0, 2)).unwrap();
            assert!(gone.load(Ordering::SeqCst), "unmapped under a pin");
        });
        let_it_wait();
        drop(first);
        let mut byte = [0];
        second.read(0, &mut byte).unwrap();
        assert_eq!(byte, [4]);
        gone.store(true, Ordering::SeqCst);
        drop(second);
        unmap.join().unwrap();
    });
    assert!(window.mappings().is_empty());
}

#[test]
fn thread_that_changes_what_it_has_pinned_gets_the_deadline() {
    let window = open_with(options().on_pinned(Wait(SHORT)));
    map(&window, 0, 1, &memfd(1, 0));
    let pin = window.pin(pages(0, 1)).unwrap();
    assert_pinned(window.unmap(pages(0, 1)), SHORT);
    drop(pin);
    window.unmap(pages(0, 1)).unwrap();
}

#[test]
fn batch_has_an_answer_of_its_own() {
    let window = open_with(options().on_pinned(Wait(LONG)));
    map(&window, 0, 1, &memfd(1, 0));
    let pin = window.pin(pages(0, 1)).unwrap();
    let batch = Batch::new().unmap(pages(0, 1));
    assert_pinned(
        window.commit(&batch.clone().on_pinned(Refuse)),
        Duration::ZERO,
    );
    assert_pinned(window.commit(&batch.clone().on_pinned(Wait(SHORT))), SHORT);
    drop(pin);
    window.commit(&batch).unwrap();
    assert_eq!(window.counters().failures, 2);
}

/// Pins and lets go, one pin always there before the last one goes, as two devices do.
fn never_free(window: &Window, stop: &AtomicBool) {
    while !stop.load(Ordering::SeqCst) {
        let Ok(pin) = window.pin(pages(0, 1)) else {
            return;
        };
        thread::yield_now();
        drop(pin);
    }
}

#[test]
fn change_is_not_starved_by_pins_that_follow_each_other() {
    let window = open_with(options().on_pinned(Wait(LONG)));
    map(&window, 0, 1, &memfd(1, 0));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| never_free(&window, &stop));
        }
        for _ in 0..50 {
            window
                .replace(pages(0, 1), &Source::anonymous(), ReadWrite)
                .unwrap();
        }
        window.unmap(pages(0, 1)).unwrap();
        stop.store(true, Ordering::SeqCst);
    });
}

#[test]
fn holder_of_a_pin_gets_another_while_a_change_waits() {
    let window = open_with(options().on_pinned(Wait(LONG)));
    map(&window, 0, 2, &memfd(2, 0));
    let pin = window.pin(pages(0, 2)).unwrap();
    thread::scope(|scope| {
        let unmap = scope.spawn(|| window.unmap(pages(0, 2)));
        let_it_wait();
        let nested = window.pin(pages(1, 1)).unwrap();
        let stranger = scope.spawn(|| window.pin(pages(0, 1)).map(drop));
        let_it_wait();
        drop(pin);
        drop(nested);
        unmap.join().unwrap().unwrap();
        // It came before the unmap, or waited for it and found the hole.
        if let Err(error) = stranger.join().unwrap() {
            assert!(matches!(error, Error::NotMapped { .. }), "{error}");
        }
    });
}

#[test]
fn readers_see_whole_mappings_while_others_are_made() {
    let window = open_with(options().on_pinned(Wait(LONG)));
    let files = [sealed(4, 0), memfd(4, 100)];
    map(&window, 0, 4, &files[0]);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut bytes = vec![0; 4 * PAGE as usize];
                while !stop.load(Ordering::SeqCst) {
                    let pin = window.pin(pages(0, 4)).unwrap();
                    pin.read(0, &mut bytes).unwrap();
                    let first = bytes[0];
                    assert!(first == 0 || first == 100, "{first}");
                    for (page, chunk) in bytes.chunks(PAGE as usize).enumerate() {
                        let expected = first + page as u8;
                        assert!(chunk.iter().all(|byte| *byte == expected), "of two files");
                    }
                }
            });
        }
        for turn in 0..200 {
            let next = source(&files[(turn + 1) % 2]);
            window.replace(pages(0, 4), &next, ReadWrite).unwrap();
        }
        stop.store(true, Ordering::SeqCst);
    });
}
