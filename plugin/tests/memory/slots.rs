//! Owns the tests of which memslot calls are made, and of relocate, close and root invalidation.

use vm_remap::BackendKind::{Fixed, Memslot};
use vm_remap::Protection::{ReadOnly, ReadWrite};
use vm_remap::{Error, GuestAddress, OnWorkers, Source, StateAfter, WindowOptions, Zap};

use crate::support::*;

#[test]
fn fixed_registers_a_segment_on_first_use_and_lets_it_rest() {
    let bench = open(Fixed);
    let fd = memfd(4, 1);
    assert!(
        bench.recorder.events().is_empty(),
        "opening registers nothing"
    );
    for _ in 0..10 {
        bench
            .window
            .map(pages(1, 4), &source(&fd), ReadWrite)
            .unwrap();
        bench
            .window
            .replace(pages(1, 2), &source(&fd), ReadOnly)
            .unwrap();
        bench.window.unmap(pages(0, 16)).unwrap();
    }
    let live = bench.recorder.live();
    assert_eq!(bench.recorder.events().len(), 1);
    assert_eq!((live[0].guest_address(), live[0].len()), (BASE, 16 * PAGE));
    // Over the edge of two segments: one more.
    bench
        .window
        .map(pages(14, 4), &source(&fd), ReadWrite)
        .unwrap();
    assert_eq!(bench.recorder.events().len(), 2);
}

#[test]
fn memslot_creates_and_deletes_a_slot_for_each_mapping() {
    let bench = open(Memslot);
    let fd = memfd(4, 1);
    for _ in 0..3 {
        bench
            .window
            .map(pages(1, 4), &source(&fd), ReadOnly)
            .unwrap();
        let slot = bench.recorder.live()[0];
        assert_eq!(
            (slot.number(), slot.len(), slot.is_read_only()),
            (8, 4 * PAGE, true)
        );
        bench
            .window
            .replace(pages(1, 4), &source(&fd), ReadWrite)
            .unwrap();
        assert!(!bench.recorder.live()[0].is_read_only());
        bench.window.unmap(pages(1, 4)).unwrap();
        assert_eq!(bench.recorder.registered(), 0);
    }
    let counters = bench.window.counters();
    assert_eq!(
        (counters.slots_registered, counters.slots_unregistered),
        (6, 6)
    );
}

#[test]
fn memslot_cut_leaves_a_slot_on_either_side() {
    let bench = open(Memslot);
    let fd = memfd(10, 1);
    bench
        .window
        .map(pages(0, 10), &source(&fd), ReadWrite)
        .unwrap();
    bench.window.unmap(pages(3, 2)).unwrap();
    let live: Vec<_> = bench
        .recorder
        .live()
        .iter()
        .map(|slot| (slot.guest_address().0, slot.len()))
        .collect();
    assert_eq!(live, [(BASE.0, 3 * PAGE), (BASE.0 + 5 * PAGE, 5 * PAGE)]);
}

#[test]
fn a_segment_that_cannot_be_registered_changes_nothing() {
    let bench = open(Fixed);
    let fd = memfd(4, 1);
    bench
        .window
        .map(pages(0, 1), &source(&fd), ReadWrite)
        .unwrap();
    let before = seen(&bench);
    bench
        .recorder
        .fail_register_of(GuestAddress(BASE.0 + 16 * PAGE));
    let error = bench
        .window
        .map(pages(14, 4), &source(&fd), ReadWrite)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot register memslot 9 at guest address 0x100010000, 0x10000 bytes: nothing has changed"
    );
    assert_eq!(error.errno(), 12);
    assert_eq!(seen(&bench), before);
    bench
        .window
        .map(pages(1, 2), &source(&fd), ReadWrite)
        .unwrap();
}

#[test]
fn memslot_that_cannot_be_registered_leaves_a_hole() {
    let bench = open(Memslot);
    let (old, new) = (memfd(4, 1), memfd(4, 9));
    bench
        .window
        .map(pages(0, 4), &source(&old), ReadWrite)
        .unwrap();
    bench.recorder.fail_register_of(GuestAddress(BASE.0 + PAGE));
    let error = bench
        .window
        .replace(pages(1, 2), &source(&new), ReadWrite)
        .unwrap_err();
    assert_eq!(error.state_after(), StateAfter::Hole);
    assert_eq!(&seen(&bench)[..4], [Some(1), None, None, Some(4)]);
    let live: Vec<_> = bench
        .recorder
        .live()
        .iter()
        .map(vm_remap::Slot::len)
        .collect();
    assert_eq!(live, [PAGE, PAGE], "what the cut left over keeps its slots");
}

#[test]
fn memslot_that_cannot_be_unregistered_keeps_its_mapping() {
    let bench = open(Memslot);
    let fd = memfd(2, 1);
    bench
        .window
        .map(pages(0, 2), &source(&fd), ReadWrite)
        .unwrap();
    bench.recorder.fail_unregister_of(BASE);
    let error = bench.window.unmap(pages(0, 2)).unwrap_err();
    assert_eq!(error.state_after(), StateAfter::Unchanged);
    assert_eq!(&seen(&bench)[..2], [Some(1), Some(2)]);
    assert_eq!(bench.window.counters().mappings, 1);
}

#[test]
fn slot_numbers_that_run_out_are_named() {
    let bench = open(Memslot);
    let fd = memfd(1, 1);
    for page in 0..8 {
        bench
            .window
            .map(pages(2 * page, 1), &source(&fd), ReadWrite)
            .unwrap();
    }
    let error = bench
        .window
        .map(pages(40, 1), &source(&fd), ReadWrite)
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::SlotNumbers {
                needed: 1,
                used: 8,
                given: 8
            }
        ),
        "{error}"
    );
    bench.window.unmap(pages(0, 1)).unwrap();
    bench
        .window
        .map(pages(40, 1), &source(&fd), ReadWrite)
        .unwrap();
}

#[test]
fn relocate_moves_the_slots_and_keeps_the_memory() {
    for backend in [Fixed, Memslot] {
        let bench = open(backend);
        let fd = memfd(4, 1);
        bench
            .window
            .map(pages(0, 4), &source(&fd), ReadWrite)
            .unwrap();
        let before = bench.window.lookup(BASE).unwrap().host_address;
        let new = GuestAddress(8 << 30);
        bench.window.relocate(new).unwrap();
        assert_eq!(bench.window.base(), new);
        assert!(bench.window.lookup(BASE).is_none());
        assert_eq!(bench.window.lookup(new).unwrap().host_address, before);
        assert!(
            bench
                .recorder
                .live()
                .iter()
                .all(|slot| slot.guest_address() >= new)
        );
        bench.window.unmap(pages(1, 1)).unwrap();
        assert_eq!(&seen(&bench)[..3], [Some(1), None, Some(3)]);
    }
}

#[test]
fn relocate_that_fails_leaves_the_window_where_it_was() {
    let bench = open(Fixed);
    let fd = memfd(4, 1);
    bench
        .window
        .map(pages(14, 4), &source(&fd), ReadWrite)
        .unwrap();
    let before = bench.recorder.live();
    bench
        .recorder
        .fail_register_of(GuestAddress((8 << 30) + 16 * PAGE));
    let error = bench.window.relocate(GuestAddress(8 << 30)).unwrap_err();
    assert_eq!(error.state_after(), StateAfter::Unchanged);
    assert_eq!(bench.window.base(), BASE);
    let places = |slots: Vec<vm_remap::Slot>| -> Vec<_> {
        slots
            .iter()
            .map(|slot| (slot.guest_address(), slot.len()))
            .collect()
    };
    assert_eq!(places(bench.recorder.live()), places(before));
    bench.window.relocate(GuestAddress(1)).unwrap_err();
    bench
        .window
        .relocate(GuestAddress(u64::MAX - 4095))
        .unwrap_err();
}

#[test]
fn close_unregisters_everything_and_gives_the_memory_back() {
    for drop_only in [true, false] {
        let bench = open(Fixed);
        let fd = memfd(4, 1);
        bench
            .window
            .map(pages(14, 4), &source(&fd), ReadWrite)
            .unwrap();
        let address = bench
            .window
            .lookup(GuestAddress(BASE.0 + 14 * PAGE))
            .unwrap()
            .host_address;
        let recorder = bench.recorder;
        if drop_only {
            drop(bench.window);
        } else {
            bench.window.close().unwrap();
        }
        assert_eq!(recorder.registered(), 0);
        assert_eq!(protection(address), None);
    }
}

#[test]
fn close_keeps_the_memory_under_a_slot_that_stays() {
    let bench = open(Fixed);
    let fd = memfd(1, 1);
    bench
        .window
        .map(pages(0, 1), &source(&fd), ReadWrite)
        .unwrap();
    let address = bench.window.lookup(BASE).unwrap().host_address;
    bench.recorder.fail_unregister_of(BASE);
    bench.window.close().unwrap_err();
    assert_eq!(protection(address).as_deref(), Some("rw-s"));
}

#[test]
fn invalidate_roots_creates_and_deletes_one_small_slot() {
    let bench = open(Fixed);
    let fd = memfd(1, 1);
    bench
        .window
        .map(pages(0, 1), &source(&fd), ReadWrite)
        .unwrap();
    bench.window.invalidate_roots(OnWorkers::Allow).unwrap();
    let events = bench.recorder.events();
    assert_eq!(events.len(), 3);
    assert!(events[1].register && !events[2].register);
    assert_eq!(
        events[1].guest,
        GuestAddress(BASE.0 + 16 * PAGE),
        "the first unused segment"
    );
    assert_eq!(bench.recorder.registered(), 1);
}

#[test]
fn invalidate_roots_without_a_free_page_asks_for_a_scratch_page() {
    let all = WindowOptions::new(BASE, 16 * PAGE);
    let scratch = GuestAddress(64 << 30);
    for (options, expected) in [(all, None), (all.scratch_page(scratch), Some(scratch))] {
        let bench = open_with(options);
        bench
            .window
            .map(pages(0, 1), &Source::anonymous(), ReadWrite)
            .unwrap();
        let result = bench.window.invalidate_roots(OnWorkers::Allow);
        match expected {
            None => assert!(matches!(result.unwrap_err(), Error::NoScratchPage)),
            Some(page) => {
                result.unwrap();
                assert_eq!(bench.recorder.events()[1].guest, page);
            }
        }
    }
}

#[test]
fn invalidate_roots_is_refused_where_precise_zap_makes_it_empty() {
    let recorder = std::sync::Arc::new(crate::recorder::Recorder::default());
    recorder.offer_precise_zap();
    let window = WindowOptions::new(BASE, 16 * PAGE)
        .zap(Zap::Precise)
        .open(
            std::sync::Arc::clone(&recorder) as _,
            vm_remap::SlotNumbers::new(8..16),
        )
        .unwrap();
    assert_eq!(window.zap(), Zap::Precise);
    let error = window.invalidate_roots(OnWorkers::Allow).unwrap_err();
    assert!(matches!(error, Error::PreciseZap), "{error}");
    assert!(recorder.events().is_empty());
}

#[test]
fn precise_zap_that_is_not_offered_is_reported_and_not_an_error() {
    let bench = open_with(WindowOptions::new(BASE, 16 * PAGE).zap(Zap::Precise));
    assert_eq!(bench.window.zap(), Zap::All);
}

#[test]
fn invalidate_roots_whose_slot_stays_poisons_and_never_frees_its_memory() {
    let bench = open(Fixed);
    let fd = memfd(1, 1);
    bench
        .window
        .map(pages(0, 1), &source(&fd), ReadWrite)
        .unwrap();
    let address = bench.window.lookup(BASE).unwrap().host_address;
    bench
        .recorder
        .fail_unregister_of(GuestAddress(BASE.0 + 16 * PAGE));
    let error = bench.window.invalidate_roots(OnWorkers::Allow).unwrap_err();
    assert_eq!(error.state_after(), StateAfter::Poisoned);
    let refused = bench
        .window
        .map(pages(4, 1), &source(&fd), ReadWrite)
        .unwrap_err();
    assert!(matches!(refused, Error::Poisoned), "{refused}");
    bench.window.close().unwrap_err();
    assert_eq!(protection(address).as_deref(), Some("rw-s"));
}

#[test]
fn relocate_that_leaves_a_slot_stuck_poisons_and_never_frees_its_memory() {
    let bench = open(Fixed);
    let fd = memfd(4, 1);
    bench
        .window
        .map(pages(14, 4), &source(&fd), ReadWrite)
        .unwrap();
    let address = bench
        .window
        .lookup(GuestAddress(BASE.0 + 14 * PAGE))
        .unwrap()
        .host_address;
    let new = GuestAddress(8 << 30);
    bench
        .recorder
        .fail_register_of(GuestAddress(new.0 + 16 * PAGE));
    bench.recorder.fail_unregister_of(new);
    let error = bench.window.relocate(new).unwrap_err();
    assert_eq!(error.state_after(), StateAfter::Poisoned);
    bench.window.close().unwrap_err();
    assert_eq!(protection(address).as_deref(), Some("rw-s"));
}

#[test]
fn a_hypervisor_that_panics_costs_the_memory_and_nothing_else() {
    let bench = open(Fixed);
    let fd = memfd(1, 1);
    bench
        .window
        .map(pages(0, 1), &source(&fd), ReadWrite)
        .unwrap();
    let address = bench.window.lookup(BASE).unwrap().host_address;
    bench.recorder.panic_on_unregister();
    let window = bench.window;
    let closed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| window.close()));
    closed.unwrap_err();
    assert_eq!(protection(address).as_deref(), Some("rw-s"));
}
