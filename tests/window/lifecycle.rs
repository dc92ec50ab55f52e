//! Owns the tests of a window's own life as the guest sees it: moved, closed, opened again, and
//! one beside another.

use vm_remap::BackendKind::{self, Fixed, Memslot};
use vm_remap::GuestAddress;
use vm_remap::Protection::ReadWrite;
use vm_remap_cli::guest::{Access, Guest, PAGE};

use crate::guest_support::MIB;
use crate::support::*;

const COUNT: u64 = 8;
/// 2 MiB-congruent with the window, and not.
const MOVES: [u64; 2] = [32 * MIB, 40 * MIB + 3 * PAGE];

fn read(guest: &Guest, base: u64, page: u64) -> Access<u64> {
    guest.read_u64(0, base + page * PAGE).unwrap()
}

fn assert_mmio(guest: &Guest, base: u64, page: u64) {
    let gpa = base + page * PAGE;
    let mmio = Access::Mmio { gpa, write: false };
    assert_eq!(read(guest, base, page), mmio, "{base:#x} {page}");
}

#[test]
fn relocate_shows_the_same_bytes_at_the_new_base_and_none_at_the_old() {
    let test = "relocate_shows_the_same_bytes_at_the_new_base_and_none_at_the_old";
    for backend in BackendKind::ALL {
        for offset in MOVES {
            let Some(bench) = open(test, backend) else {
                return;
            };
            let Bench { window, guest } = &bench;
            let (low, high) = (2, 2 * SEGMENT_PAGES + 1);
            let blobs = [1000, 2000].map(|first| Blob::new(Seal::Unsealed, COUNT, first));
            for (blob, first) in blobs.iter().zip([low, high]) {
                window
                    .map(pages(first, COUNT), &blob.source(), ReadWrite)
                    .unwrap();
            }
            let written = guest.write_u64(0, at(low + 1), 77).unwrap();
            assert_eq!(written, Access::Done(()));

            let new = BASE + offset;
            window.relocate(GuestAddress(new)).unwrap();
            for page in [0, low, low + 1, high, 3 * SEGMENT_PAGES] {
                assert_mmio(guest, BASE, page);
            }
            assert_eq!(read(guest, new, low), Access::Done(1000), "{backend}");
            assert_eq!(read(guest, new, low + 1), Access::Done(77));
            assert_eq!(read(guest, new, high + 7), Access::Done(2007));
            let written = guest.write_u64(0, new + high * PAGE, 88).unwrap();
            assert_eq!(written, Access::Done(()));
            assert_eq!(blobs[1].bytes()[..8], 88_u64.to_ne_bytes());

            // Life goes on at the new place.
            window.unmap(pages(low, COUNT)).unwrap();
            let gone = new + low * PAGE;
            assert_eq!(read(guest, new, low), hole(backend, gone, false));
            window
                .replace(pages(low, COUNT), &blobs[1].source(), ReadWrite)
                .unwrap();
            assert_eq!(read(guest, new, low + 2), Access::Done(2002));
            window
                .map(pages(SEGMENT_PAGES, 1), &blobs[1].source(), ReadWrite)
                .unwrap();
            assert_eq!(read(guest, new, SEGMENT_PAGES), Access::Done(88));
            assert_mmio(guest, BASE, SEGMENT_PAGES);
        }
    }
}

#[test]
fn relocate_onto_memory_of_the_vm_is_refused_and_the_guest_sees_no_change() {
    let test = "relocate_onto_memory_of_the_vm_is_refused_and_the_guest_sees_no_change";
    for backend in BackendKind::ALL {
        let Some(bench) = open(test, backend) else {
            return;
        };
        let Bench { window, guest } = &bench;
        let blob = Blob::new(Seal::Sealed, COUNT, 1000);
        for first in [0, 2 * SEGMENT_PAGES] {
            window
                .map(pages(first, COUNT), &blob.source(), ReadWrite)
                .unwrap();
        }
        // RAM begins at 0.
        let error = window.relocate(GuestAddress(0)).unwrap_err();
        assert_eq!(error.errno(), libc::EEXIST, "{error}");
        assert_eq!(window.base(), GuestAddress(BASE));
        assert_eq!(view(guest, 0..COUNT), words(&blob), "{backend}");
        window.unmap(pages(0, COUNT)).unwrap();
    }
}

#[test]
fn window_that_is_gone_is_mmio_and_another_takes_its_place() {
    let test = "window_that_is_gone_is_mmio_and_another_takes_its_place";
    for backend in BackendKind::ALL {
        let Some(Bench { mut window, guest }) = open(test, backend) else {
            return;
        };
        for close in [true, false, true] {
            let blob = Blob::new(Seal::Sealed, COUNT, 1000);
            for first in [3, 3 * SEGMENT_PAGES] {
                window
                    .map(pages(first, COUNT), &blob.source(), ReadWrite)
                    .unwrap();
                assert_eq!(view(&guest, first..first + COUNT), words(&blob));
            }
            if close {
                window.close().unwrap();
            } else {
                drop(window);
            }
            for page in [0, 3, 4, 3 * SEGMENT_PAGES] {
                assert_mmio(&guest, BASE, page);
                let written = guest.write_u64(0, at(page), 5).unwrap();
                let write = true;
                assert_eq!(
                    written,
                    Access::Mmio {
                        gpa: at(page),
                        write
                    }
                );
            }
            assert_eq!(blob.bytes(), blob.expected(), "{backend}");
            window = window_in(&guest, options(backend), NUMBERS);
        }
    }
}

#[test]
fn two_windows_in_a_vm_leave_each_other_alone() {
    let test = "two_windows_in_a_vm_leave_each_other_alone";
    for (one, other) in [(Fixed, Fixed), (Fixed, Memslot), (Memslot, Memslot)] {
        let Some(Bench { window, guest }) = open(test, one) else {
            return;
        };
        let other_base = BASE + LEN;
        let placed = vm_remap::WindowOptions::new(GuestAddress(other_base), LEN)
            .segment_size(SEGMENT)
            .backend(other);
        let second = window_in(&guest, placed, MORE_NUMBERS);
        let (a, b) = (
            Blob::new(Seal::Sealed, COUNT, 1000),
            Blob::new(Seal::Unsealed, COUNT, 2000),
        );
        // Right at the border.
        let last = 4 * SEGMENT_PAGES - COUNT;
        for _ in 0..5 {
            window
                .map(pages(last, COUNT), &a.source(), ReadWrite)
                .unwrap();
            second.map(pages(0, COUNT), &b.source(), ReadWrite).unwrap();
            let both = [words(&a), words(&b)].concat();
            assert_eq!(view(&guest, last..last + 2 * COUNT), both, "{one} {other}");
            window.unmap(pages(last, COUNT)).unwrap();
            assert_eq!(read(&guest, BASE, last), hole(one, at(last), false));
            assert_eq!(read(&guest, other_base, 0), Access::Done(2000));
            window
                .map(pages(last, COUNT), &a.source(), ReadWrite)
                .unwrap();
            second.unmap(pages(0, COUNT)).unwrap();
            assert_eq!(read(&guest, other_base, 0), hole(other, other_base, false));
            assert_eq!(read(&guest, BASE, last), Access::Done(1000));
            window.unmap(pages(last, COUNT)).unwrap();
        }
        second.map(pages(0, COUNT), &b.source(), ReadWrite).unwrap();
        window.close().unwrap();
        assert_mmio(&guest, BASE, last);
        assert_eq!(read(&guest, other_base, 7), Access::Done(2007));
    }
}
