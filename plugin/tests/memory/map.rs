//! Owns the tests of map, replace and unmap, on both backends.

use vm_remap::BackendKind::{self, Fixed, Memslot};
use vm_remap::Protection::{ReadOnly, ReadWrite};
use vm_remap::{Error, GuestAddress, Source, WindowOptions};

use crate::support::*;

fn on_both(test: impl Fn(BackendKind)) {
    BackendKind::ALL.into_iter().for_each(test);
}

#[test]
fn map_shows_the_files_bytes_from_the_offset_on() {
    on_both(|backend| {
        let bench = open(backend);
        for (fd, at) in [(memfd(8, 10), 2), (sealed(8, 10), 20)] {
            let from_page_3 = Source::descriptor(std::os::fd::AsFd::as_fd(&fd), 3 * PAGE);
            bench
                .window
                .map(pages(at, 4), &from_page_3, ReadWrite)
                .unwrap();
            let seen = seen(&bench);
            let at = at as usize;
            assert_eq!(
                &seen[at - 1..at + 5],
                [None, Some(13), Some(14), Some(15), Some(16), None]
            );
        }
        let counters = bench.window.counters();
        assert_eq!((counters.staged, counters.direct), (1, 1), "{backend}");
    });
}

#[test]
fn map_keeps_the_memory_when_the_descriptor_is_closed() {
    let bench = open(Fixed);
    let fd = memfd(1, 7);
    bench
        .window
        .map(pages(0, 1), &source(&fd), ReadOnly)
        .unwrap();
    drop(fd);
    assert_eq!(seen(&bench)[0], Some(7));
}

#[test]
fn map_over_a_mapping_is_refused_and_changes_nothing() {
    on_both(|backend| {
        let bench = open(backend);
        let (old, new) = (memfd(4, 1), memfd(8, 50));
        bench
            .window
            .map(pages(4, 4), &source(&old), ReadWrite)
            .unwrap();
        let before = seen(&bench);
        let error = bench
            .window
            .map(pages(1, 8), &source(&new), ReadWrite)
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot map 0x1000..0x9000: 0x4000..0x8000 is mapped already; unmap it, or replace it"
        );
        assert_eq!(seen(&bench), before);
        assert_eq!(bench.window.counters().failures, 1);
    });
}

#[test]
fn unmap_cuts_what_reaches_beyond_it() {
    on_both(|backend| {
        let bench = open(backend);
        let fd = memfd(8, 10);
        bench
            .window
            .map(pages(4, 8), &source(&fd), ReadWrite)
            .unwrap();
        bench.window.unmap(pages(6, 3)).unwrap();
        let expected = [
            Some(10),
            Some(11),
            None,
            None,
            None,
            Some(15),
            Some(16),
            Some(17),
            None,
        ];
        assert_eq!(&seen(&bench)[4..13], expected);
        bench.window.unmap(pages(0, 64)).unwrap();
        assert!(seen(&bench).iter().all(Option::is_none));
        assert_eq!(bench.window.counters().mappings, 0);
    });
}

#[test]
fn unmap_of_a_hole_is_nothing() {
    on_both(|backend| {
        let bench = open(backend);
        bench.window.unmap(pages(0, 64)).unwrap();
        assert!(bench.recorder.events().is_empty());
    });
}

#[test]
fn replace_covers_mappings_and_holes_alike() {
    on_both(|backend| {
        let bench = open(backend);
        let (a, b, c) = (memfd(4, 10), memfd(4, 20), memfd(6, 30));
        bench
            .window
            .map(pages(0, 4), &source(&a), ReadWrite)
            .unwrap();
        bench
            .window
            .map(pages(6, 4), &source(&b), ReadWrite)
            .unwrap();
        bench
            .window
            .replace(pages(2, 6), &source(&c), ReadWrite)
            .unwrap();
        let expected = [10, 11, 30, 31, 32, 33, 34, 35, 22, 23].map(Some);
        assert_eq!(&seen(&bench)[..10], expected);
        assert_eq!(bench.window.counters().mappings, 3);
    });
}

#[test]
fn protection_and_holes_are_what_the_host_page_tables_have() {
    let bench = open(Fixed);
    let base = arena(&bench);
    let fd = memfd(2, 1);
    bench
        .window
        .map(pages(0, 1), &source(&fd), ReadOnly)
        .unwrap();
    bench
        .window
        .map(pages(1, 1), &source(&fd), ReadWrite)
        .unwrap();
    assert_eq!(protection(base).as_deref(), Some("r--s"));
    assert_eq!(protection(base + PAGE).as_deref(), Some("rw-s"));
    assert_eq!(protection(base + 2 * PAGE).as_deref(), Some("---p"));
    bench.window.unmap(pages(0, 2)).unwrap();
    assert_eq!(protection(base).as_deref(), Some("---p"));
}

#[test]
fn anonymous_memory_is_zero_and_the_next_one_too() {
    on_both(|backend| {
        let bench = open(backend);
        for _ in 0..2 {
            bench
                .window
                .map(pages(3, 2), &Source::anonymous(), ReadWrite)
                .unwrap();
            assert_eq!(seen(&bench)[3], Some(0));
            bench.window.unmap(pages(3, 2)).unwrap();
        }
    });
}

#[test]
fn a_window_needs_no_alignment_beyond_a_page() {
    for backend in BackendKind::ALL {
        let base = GuestAddress((1 << 30) + 7 * PAGE);
        let options = WindowOptions::new(base, 13 * PAGE)
            .segment_size(4 * PAGE)
            .backend(backend);
        let bench = open_with(options);
        let fd = memfd(13, 1);
        bench
            .window
            .map(pages(0, 13), &source(&fd), ReadWrite)
            .unwrap();
        let expected: Vec<_> = (1..=13).map(Some).collect();
        assert_eq!(seen(&bench), expected);
        let live = bench.recorder.live();
        assert_eq!(live.iter().map(vm_remap::Slot::len).sum::<u64>(), 13 * PAGE);
        assert!(
            live.iter()
                .all(|slot| slot.host_address() % (1 << 30) == slot.guest_address().0 % (1 << 30))
        );
    }
}

#[test]
fn lookup_finds_mapping_offset_and_label() {
    let bench = open(Memslot);
    let fd = memfd(4, 1);
    bench
        .window
        .map(pages(8, 4), &source(&fd).label(77), ReadWrite)
        .unwrap();
    let found = bench
        .window
        .lookup(GuestAddress(BASE.0 + 9 * PAGE + 5))
        .unwrap();
    assert_eq!(found.mapping.range(), pages(8, 4));
    assert_eq!(found.mapping.label(), 77);
    assert_eq!(found.offset, PAGE + 5);
    for outside in [
        BASE.0 - 1,
        BASE.0,
        BASE.0 + 12 * PAGE,
        BASE.0 + 64 * PAGE,
        u64::MAX,
    ] {
        assert!(
            bench.window.lookup(GuestAddress(outside)).is_none(),
            "{outside:#x}"
        );
    }
}

#[test]
fn a_range_outside_the_window_is_refused() {
    let bench = open(Fixed);
    let fd = memfd(1, 1);
    for range in [pages(64, 1), pages(63, 2), pages(1 << 40, 1)] {
        let error = bench
            .window
            .map(range, &source(&fd), ReadWrite)
            .unwrap_err();
        assert!(matches!(error, Error::OutsideWindow { .. }), "{error}");
        bench.window.unmap(range).unwrap_err();
    }
}

#[test]
fn concurrent_maps_and_unmaps_keep_their_own_ranges() {
    on_both(|backend| {
        let bench = open(backend);
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let window = &bench.window;
                scope.spawn(move || {
                    let fd = if thread % 2 == 0 {
                        memfd(1, 1)
                    } else {
                        sealed(1, 1)
                    };
                    for _ in 0..200 {
                        window
                            .map(pages(thread, 1), &source(&fd), ReadWrite)
                            .unwrap();
                        window
                            .replace(pages(thread, 1), &source(&fd), ReadOnly)
                            .unwrap();
                        window.unmap(pages(thread, 1)).unwrap();
                    }
                });
            }
        });
        let counters = bench.window.counters();
        assert_eq!(
            (counters.maps, counters.replaces, counters.unmaps),
            (800, 800, 800)
        );
        assert_eq!((counters.mappings, counters.failures), (0, 0));
    });
}
