//! Owns the tests of a window next to ordinary memory in one of vm-memory's collections: what goes
//! through slices. Never uses the region's own methods to reach bytes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestMemory, GuestMemoryBackend, Permissions, VolatileMemory};
use vm_remap::Indirect::Refuse;
use vm_remap::OnPinned::{self, Wait};
use vm_remap::Protection::{ReadOnly, ReadWrite};
use vm_remap::{Error, Indirect, Source};

use crate::support::*;

const LONG: OnPinned = Wait(Duration::from_secs(60));

#[test]
fn access_goes_from_ordinary_memory_into_the_window_and_on() {
    for (indirect, fd) in [(Refuse, sealed(2, 0)), (COPY, memfd(2, 0))] {
        let (memory, window) = memory(OnPinned::Refuse, indirect);
        map(&window, 0, 2, &fd);
        let bytes: Vec<u8> = (0..=255).cycle().take(PAGE as usize + 200).collect();
        let across = vm_memory::GuestAddress(RAM - 100);
        memory.write_slice(&bytes, across).unwrap();
        let mut found = vec![0; bytes.len()];
        memory.read_slice(&mut found, across).unwrap();
        assert_eq!(found, bytes);
        let pin = window.pin(pages(0, 2)).unwrap();
        pin.read(0, &mut found[100..]).unwrap();
        assert_eq!(found, bytes, "the window itself has them");
        assert_eq!(region(&memory).lost_writes(), 0);
    }
}

#[test]
fn stream_is_read_into_and_written_out_of_the_window() {
    for (indirect, fd) in [(Refuse, sealed(4, 0)), (COPY, memfd(4, 0))] {
        let (memory, window) = memory(OnPinned::Refuse, indirect);
        map(&window, 0, 4, &fd);
        let bytes: Vec<u8> = (0..3 * PAGE).map(|n| (n % 251) as u8).collect();
        let mut from = bytes.as_slice();
        memory
            .read_exact_volatile_from(at(5), &mut from, bytes.len())
            .unwrap();
        let mut to = Vec::new();
        memory
            .write_all_volatile_to(at(5), &mut to, bytes.len())
            .unwrap();
        assert_eq!(to, bytes);
        assert_eq!(region(&memory).lost_writes(), 0);
    }
}

#[test]
fn hole_is_an_error_and_what_is_before_it_is_reached() {
    let (memory, window) = memory(OnPinned::Refuse, COPY);
    map(&window, 0, 1, &memfd(1, 7));
    let error = memory.read_obj::<u64>(at(PAGE)).unwrap_err();
    assert_eq!(
        inner(&error),
        "cannot pin 0x1000..0x2000: nothing is mapped at 0x1000..0x2000"
    );
    memory.write_obj(1u64, at(PAGE - 4)).unwrap_err();
    assert!(!GuestMemory::check_range(
        &memory,
        at(0),
        2 * PAGE as usize,
        Permissions::Read
    ));
    assert!(GuestMemory::check_range(
        &memory,
        at(0),
        PAGE as usize,
        Permissions::Read
    ));
    // The slices end where the hole begins.
    let mut bytes = [0; 200];
    let across = vm_memory::GuestAddress(RAM - 100);
    assert_eq!(memory.read(&mut bytes, across).unwrap(), 200);
    window.unmap(pages(0, 1)).unwrap();
    assert_eq!(memory.read(&mut bytes, across).unwrap(), 100);
}

#[test]
fn memory_that_can_vanish_is_refused_or_copied() {
    let fd = memfd(4, 1);
    let (memory, window) = memory(OnPinned::Refuse, Refuse);
    map(&window, 0, 4, &fd);
    let error = memory.read_obj::<u8>(at(0)).unwrap_err();
    assert_eq!(
        inner(&error),
        "cannot touch 0x0..0x1000 directly: the memory behind it can vanish (seal its memfd with \
         F_SEAL_SHRINK); read and write it through a pin, or let the region copy"
    );
    let copying = region_over::<()>(window.clone(), COPY);
    let slice = copying_slice(&copying, 0, 4 * PAGE as usize).unwrap();
    truncate(&fd, 1);
    // What was there when the slice was made is still seen; what is written to lost pages is lost.
    assert_eq!(slice.read_obj::<u8>(3 * PAGE as usize).unwrap(), 4);
    slice.write_obj(9u8, 0).unwrap();
    assert_eq!(copying.lost_writes(), 0);
    slice.write_obj(9u8, 3 * PAGE as usize).unwrap();
    assert_eq!(copying.lost_writes(), 1);
    drop(slice);
    assert!(
        copying_slice(&copying, PAGE, 1).is_err(),
        "no page, no slice"
    );
    assert_eq!(
        copying_slice(&copying, 0, 1)
            .unwrap()
            .read_obj::<u8>(0)
            .unwrap(),
        9
    );
}

type Slice<'a> = vm_memory::VolatileSlice<'a, vm_remap::PinningSlice<'a, ()>>;

fn copying_slice(
    region: &vm_remap::WindowRegion,
    offset: u64,
    len: usize,
) -> vm_memory::GuestMemoryResult<Slice<'_>> {
    use vm_memory::{GuestMemoryRegion, MemoryRegionAddress};
    region.get_slice(MemoryRegionAddress(offset), len)
}

#[test]
fn write_to_a_read_only_mapping_never_reaches_it() {
    let fd = sealed(1, 3);
    for indirect in [Refuse, COPY] {
        let (memory, window) = memory(OnPinned::Refuse, indirect);
        window.map(pages(0, 1), &source(&fd), ReadOnly).unwrap();
        let written = memory.write_obj(9u8, at(0));
        match indirect {
            Refuse => {
                let text = inner(&written.unwrap_err());
                assert!(text.contains("it is mapped read-only"), "{text}");
            }
            Indirect::Copy { .. } => {
                written.unwrap();
                assert_eq!(region(&memory).lost_writes(), 1);
                assert_eq!(memory.read_obj::<u8>(at(0)).unwrap(), 3);
            }
        }
    }
}

#[test]
fn atomic_access_works_on_stable_memory_and_fails_on_copies() {
    let (memory, window) = memory(OnPinned::Refuse, COPY);
    window
        .map(pages(0, 1), &Source::anonymous(), ReadWrite)
        .unwrap();
    map(&window, 1, 1, &memfd(1, 0));
    memory.store(7u16, at(2), Ordering::Release).unwrap();
    assert_eq!(memory.load::<u16>(at(2), Ordering::Acquire).unwrap(), 7);
    let copied = at(PAGE + 2);
    memory.store(7u16, copied, Ordering::Release).unwrap_err();
    memory.load::<u16>(copied, Ordering::Acquire).unwrap_err();
    memory.load::<u64>(at(PAGE), Ordering::Acquire).unwrap_err();
}

#[test]
fn copies_take_no_more_room_than_they_may() {
    let limit = 2 * PAGE as usize;
    let (memory, window) = memory(OnPinned::Refuse, Indirect::Copy { limit });
    map(&window, 0, 4, &memfd(4, 0));
    let error = memory.get_slice(at(0), limit + 1).unwrap_err();
    assert_eq!(
        inner(&error),
        "cannot copy 0x2001 bytes of the window: copies of 0x0 are in use, and the region may use \
         0x2000; let go of some, or open the region with more"
    );
    let first = memory.get_slice(at(0), limit - 8).unwrap();
    let part = first.offset(16).unwrap();
    drop(first);
    memory.get_slice(at(0), 9).unwrap_err();
    memory.get_slice(at(0), 8).unwrap();
    drop(part);
    memory.get_slice(at(0), limit).unwrap();
}

#[test]
fn slice_keeps_its_pin_and_so_does_what_is_made_of_it() {
    for fd in [sealed(2, 0), memfd(2, 0)] {
        let (memory, window) = memory(OnPinned::Refuse, COPY);
        map(&window, 0, 2, &fd);
        let slice = memory.get_slice(at(8), 64).unwrap();
        let part = slice.subslice(16, 8).unwrap();
        let object = part.get_ref::<u64>(0).unwrap();
        assert_eq!(window.counters().pins, 1);
        drop(slice);
        assert_eq!(window.unmap(pages(0, 1)).unwrap_err().errno(), 16);
        object.store(0x0102_0304);
        drop(object);
        assert_eq!(part.load::<u8>(0, Ordering::Relaxed).unwrap(), 4);
        window.unmap(pages(1, 1)).unwrap();
        drop(part);
        assert_eq!(window.counters().pins, 0);
        assert_eq!(memory.read_obj::<u64>(at(24)).unwrap(), 0x0102_0304);
        window.unmap(pages(0, 1)).unwrap();
    }
}

#[test]
fn bare_address_is_an_error_that_says_why() {
    let (memory, window) = memory(OnPinned::Refuse, COPY);
    window
        .map(pages(0, 1), &Source::anonymous(), ReadWrite)
        .unwrap();
    let error = memory.get_host_address(at(8)).unwrap_err();
    let text = inner(&error);
    assert!(
        text.contains("nothing keeps the memory behind a bare address mapped"),
        "{text}"
    );
    memory.get_host_address(vm_memory::GuestAddress(8)).unwrap();
}

#[test]
fn empty_access_needs_no_memory() {
    let (memory, _window) = memory(OnPinned::Refuse, Refuse);
    assert_eq!(memory.get_slice(at(0), 0).unwrap().len(), 0);
    memory.write_slice(&[], at(5)).unwrap();
}

#[test]
fn bitmap_of_a_slice_says_what_was_written() {
    use vm_memory::bitmap::AtomicBitmap;
    use vm_memory::{GuestMemoryRegion, MemoryRegionAddress};

    for fd in [sealed(4, 0), memfd(4, 0)] {
        let window = std::sync::Arc::new(open());
        map(&window, 0, 4, &fd);
        let region = region_over::<AtomicBitmap>(window, COPY);
        let slice = region
            .get_slice(MemoryRegionAddress(100), 3 * PAGE as usize)
            .unwrap();
        let part = slice.offset(2 * PAGE as usize).unwrap();
        part.write_obj(1u8, 0).unwrap();
        let dirty: Vec<bool> = (0..4)
            .map(|page| region.bitmap().dirty_at((page * PAGE) as usize))
            .collect();
        assert_eq!(dirty, [false, false, true, false]);
    }
}

#[test]
fn accesses_and_changes_of_many_threads_never_meet_a_signal() {
    let (memory, window) = memory(LONG, COPY);
    let files = [sealed(4, 0), memfd(4, 100)];
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut bytes = vec![0; 4 * PAGE as usize];
                while !stop.load(Ordering::SeqCst) {
                    // All of it, or an error: a hole, or a file that was cut.
                    if memory.read_slice(&mut bytes, at(0)).is_ok() {
                        memory.write_slice(&bytes, at(0)).ok();
                    }
                    memory.load::<u32>(at(8), Ordering::Relaxed).ok();
                }
            });
        }
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                truncate(&files[1], 1);
                truncate(&files[1], 4);
            }
        });
        for turn in 0..300 {
            let next = source(&files[turn % 2]);
            match window.replace(pages(0, 4), &next, ReadWrite) {
                // The file was too short when it was looked at.
                Ok(()) | Err(Error::PastEnd { .. }) => {}
                Err(error) => panic!("{error}"),
            }
            if turn % 3 == 0 {
                window.unmap(pages(1, 2)).unwrap();
            }
        }
        stop.store(true, Ordering::SeqCst);
    });
    assert_eq!(window.counters().pins, 0);
}
