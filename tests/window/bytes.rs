//! Owns the tests of which bytes the guest sees, and which file its writes reach.

use vm_remap::BackendKind::{self, Fixed, Memslot};
use vm_remap::Protection::{ReadOnly, ReadWrite};
use vm_remap::Source;
use vm_remap_cli::guest::{Access, PAGE, Touch};

use crate::support::*;

const COUNT: u64 = 16;
/// Not at the edge of a segment.
const FIRST: u64 = 40;

/// The bytes of a file after the guest wrote each page's own address into it.
fn touched(blob: &Blob) -> Vec<u8> {
    let mut bytes = blob.expected();
    for (page, word) in bytes.chunks_exact_mut(4096).enumerate() {
        word[..8].copy_from_slice(&at(FIRST + page as u64).to_ne_bytes());
    }
    bytes
}

#[test]
fn map_replace_and_unmap_that_returned_are_what_the_guest_sees() {
    let test = "map_replace_and_unmap_that_returned_are_what_the_guest_sees";
    for backend in BackendKind::ALL {
        for seals in [
            [Seal::Sealed, Seal::Sealed],
            [Seal::Unsealed, Seal::Unsealed],
            [Seal::Sealed, Seal::Unsealed],
        ] {
            let Some(bench) = open(test, backend) else {
                return;
            };
            let Bench { window, guest } = &bench;
            let range = pages(FIRST, COUNT);
            let seen = || view(guest, FIRST..FIRST + COUNT);
            let write_all = || {
                guest
                    .touch(0, at(FIRST), COUNT * PAGE, Touch::Write)
                    .unwrap()
            };
            let [old, new] = [
                Blob::new(seals[0], COUNT, 1000),
                Blob::new(seals[1], COUNT, 2000),
            ];

            window.map(range, &old.source(), ReadWrite).unwrap();
            assert_eq!(seen(), words(&old), "{backend} {seals:?}");
            let last = at(FIRST + COUNT) - 8;
            let last_word = guest.read_u64(0, last).unwrap();
            assert_eq!(last_word, Access::Done(old.word(COUNT - 1)));
            assert_eq!(write_all(), Access::Done(COUNT));
            assert_eq!(old.bytes(), touched(&old), "the guest's writes arrive");
            old.set_word(3, 77);
            assert_eq!(seen()[3], Access::Done(77), "and so do the host's");

            let kept = old.bytes();
            window.replace(range, &new.source(), ReadWrite).unwrap();
            assert_eq!(seen(), words(&new), "{backend} {seals:?}");
            assert_eq!(write_all(), Access::Done(COUNT));
            assert!(old.bytes() == kept, "{backend} {seals:?}: old file written");
            assert!(new.bytes() == touched(&new), "{backend} {seals:?}");

            window.unmap(range).unwrap();
            let kept = new.bytes();
            for page in FIRST..FIRST + COUNT {
                let read = guest.read_u64(0, at(page)).unwrap();
                assert_eq!(read, hole(backend, at(page), false), "{seals:?}");
                let written = guest.write_u64(0, at(page), 5).unwrap();
                assert_eq!(written, hole(backend, at(page), true), "{seals:?}");
            }
            assert!(new.bytes() == kept, "{backend}: written after the unmap");
        }
    }
}

#[test]
fn replace_of_a_part_leaves_the_guest_the_rest() {
    let test = "replace_of_a_part_leaves_the_guest_the_rest";
    for backend in BackendKind::ALL {
        let Some(bench) = open(test, backend) else {
            return;
        };
        let Bench { window, guest } = &bench;
        let old = Blob::new(Seal::Unsealed, COUNT, 1000);
        let new = Blob::new(Seal::Sealed, 4, 2000);
        // Across the edge of two segments.
        let first = SEGMENT_PAGES - 8;
        window
            .map(pages(first, COUNT), &old.source(), ReadWrite)
            .unwrap();
        window
            .replace(pages(first + 6, 4), &new.source(), ReadWrite)
            .unwrap();
        window.unmap(pages(first, 2)).unwrap();
        let mut expected = words(&old);
        expected[6..10].copy_from_slice(&words(&new));
        for page in [0, 1] {
            expected[page] = hole(backend, at(first + page as u64), false);
        }
        assert_eq!(view(guest, first..first + COUNT), expected, "{backend}");
    }
}

#[test]
fn anonymous_memory_is_zero_each_time_the_guest_gets_it() {
    let test = "anonymous_memory_is_zero_each_time_the_guest_gets_it";
    for backend in BackendKind::ALL {
        let Some(bench) = open(test, backend) else {
            return;
        };
        for _ in 0..3 {
            bench
                .window
                .replace(pages(0, 2), &Source::anonymous(), ReadWrite)
                .unwrap();
            let read = bench.guest.read_u64(0, at(1)).unwrap();
            assert_eq!(read, Access::Done(0), "{backend}");
            let written = bench.guest.write_u64(0, at(1), 9).unwrap();
            assert_eq!(written, Access::Done(()), "{backend}");
        }
    }
}

#[test]
fn segment_is_mmio_until_first_used_and_a_fault_in_its_holes() {
    let test = "segment_is_mmio_until_first_used_and_a_fault_in_its_holes";
    let Some(bench) = open(test, Fixed) else {
        return;
    };
    let Bench { window, guest } = &bench;
    let blob = Blob::new(Seal::Sealed, 1, 1000);
    let read = |page| guest.read_u64(0, at(page)).unwrap();
    let mmio = |page| Access::Mmio {
        gpa: at(page),
        write: false,
    };
    let second = SEGMENT_PAGES;
    assert_eq!(read(7), mmio(7));
    assert_eq!(read(second), mmio(second));

    window.map(pages(7, 1), &blob.source(), ReadWrite).unwrap();
    assert_eq!(read(7), Access::Done(1000));
    for page in [0, 6, 8, second - 1] {
        assert_eq!(read(page), Access::Fault, "{page}");
    }
    assert_eq!(read(second), mmio(second), "its neighbour has no slot yet");

    window
        .map(pages(second, 1), &blob.source(), ReadWrite)
        .unwrap();
    assert_eq!(read(second), Access::Done(1000));
    assert_eq!(read(second + 1), Access::Fault);
    window.unmap(pages(0, second + 1)).unwrap();
    for page in [0, 7, second] {
        assert_eq!(read(page), Access::Fault, "{page}: the slot stays");
    }
    assert_eq!(window.counters().slots, 2);
}

#[test]
fn read_only_mapping_lets_the_guest_read_and_not_write() {
    let test = "read_only_mapping_lets_the_guest_read_and_not_write";
    for backend in BackendKind::ALL {
        for seal in [Seal::Sealed, Seal::Unsealed] {
            let Some(bench) = open(test, backend) else {
                return;
            };
            let Bench { window, guest } = &bench;
            let blob = Blob::new(seal, 2, 1000);
            window.map(pages(0, 2), &blob.source(), ReadOnly).unwrap();
            // Before and after the guest has read it: both ways into KVM.
            for _ in 0..2 {
                let written = guest.write_u64(0, at(1), 5).unwrap();
                let refused = match backend {
                    Fixed => Access::Fault,
                    Memslot => Access::Mmio {
                        gpa: at(1),
                        write: true,
                    },
                };
                assert_eq!(written, refused, "{backend} {seal:?}");
                assert_eq!(view(guest, 0..2), words(&blob), "{backend} {seal:?}");
            }
            assert_eq!(blob.bytes(), blob.expected());

            // Writable after a replace, and not any more after the next.
            window
                .replace(pages(0, 2), &blob.source(), ReadWrite)
                .unwrap();
            let written = guest.write_u64(0, at(1), 6).unwrap();
            assert_eq!(written, Access::Done(()), "{backend} {seal:?}");
            window
                .replace(pages(0, 2), &blob.source(), ReadOnly)
                .unwrap();
            let kept = blob.bytes();
            let written = guest.write_u64(0, at(1), 7).unwrap();
            assert_ne!(written, Access::Done(()), "{backend} {seal:?}");
            assert_eq!(blob.bytes(), kept);
        }
    }
}
