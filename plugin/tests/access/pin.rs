//! Owns the tests of what a pin reaches, and of what it says where there is nothing to reach.
//! Never has a change meet a pin.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap};
use vm_remap::Protection::{ReadOnly, ReadWrite};
use vm_remap::{BackendKind, Error, GuestAddress, PageRange, Source, WindowOptions};

use crate::support::*;

#[test]
fn pin_reads_and_writes_across_mappings() {
    let window = open();
    let [first, second] = [memfd(2, 10), sealed(2, 20)];
    map(&window, 3, 2, &first);
    map(&window, 5, 2, &second);
    let pin = window.pin(pages(3, 4)).unwrap();
    let mut bytes = vec![0; 4 * PAGE as usize];
    pin.read(0, &mut bytes).unwrap();
    for (page, value) in bytes.chunks(PAGE as usize).zip([10, 11, 20, 21]) {
        assert!(page.iter().all(|byte| *byte == value), "{value}");
    }
    // Across the edge of the two, at an odd place.
    pin.write(2 * PAGE - 3, &[1, 2, 3, 4, 5]).unwrap();
    let mut found = [0; 5];
    pin.read(2 * PAGE - 3, &mut found).unwrap();
    assert_eq!(found, [1, 2, 3, 4, 5]);
    let mut end = [0; 3];
    File::from(first)
        .read_exact_at(&mut end, 2 * PAGE - 3)
        .unwrap();
    assert_eq!(end, [1, 2, 3], "the write reached the first file");
    let mut start = [0; 2];
    File::from(second).read_exact_at(&mut start, 0).unwrap();
    assert_eq!(start, [4, 5], "and the second");
}

#[test]
fn pin_of_a_hole_names_the_hole() {
    let window = open();
    map(&window, 3, 2, &memfd(2, 0));
    map(&window, 6, 1, &memfd(1, 0));
    for (asked, hole) in [
        (pages(0, 8), pages(0, 3)),
        (pages(3, 4), pages(5, 1)),
        (pages(6, 3), pages(7, 2)),
        (pages(10, 1), pages(10, 1)),
    ] {
        let error = window.pin(asked).unwrap_err();
        let text = format!("cannot pin {asked}: nothing is mapped at {hole}");
        assert_eq!(error.to_string(), text);
        assert_eq!(error.errno(), EFAULT);
    }
    let error = window.pin(pages(PAGES - 1, 2)).unwrap_err();
    assert!(matches!(error, Error::OutsideWindow { .. }), "{error}");
    assert_eq!(window.counters().pins, 0);
}

#[test]
fn access_outside_the_pin_is_refused() {
    let window = open();
    map(&window, 0, 4, &memfd(4, 0));
    let pin = window.pin(pages(1, 2)).unwrap();
    for (offset, len) in [
        (2 * PAGE, 1),
        (2 * PAGE - 1, 2),
        (u64::MAX, 1),
        (u64::MAX - 3, 8),
    ] {
        let read = pin.read(offset, &mut vec![0; len]).unwrap_err();
        let text = format!(
            "cannot access {len:#x} bytes at {offset:#x} of the pin: it holds 0x1000..0x3000"
        );
        assert_eq!(read.to_string(), text);
        assert_eq!(read.errno(), 22);
        let written = pin.write(offset, &vec![0; len]).unwrap_err();
        assert!(matches!(written, Error::OutsidePin { .. }), "{written}");
    }
    pin.read(2 * PAGE, &mut []).unwrap();
}

#[test]
fn read_only_mapping_is_read_and_nothing_is_written() {
    let window = open();
    let [writable, read_only] = [memfd(1, 7), memfd(1, 8)];
    map(&window, 0, 1, &writable);
    let second = source(&read_only);
    window.map(pages(1, 1), &second, ReadOnly).unwrap();
    let pin = window.pin(pages(0, 2)).unwrap();
    assert!(!pin.is_writable());
    let mut bytes = [0; 2];
    pin.read(PAGE - 1, &mut bytes).unwrap();
    assert_eq!(bytes, [7, 8]);
    let error = pin.write(PAGE - 1, &[1, 1]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot write to 0x1000..0x2000: it is mapped read-only"
    );
    assert_eq!(error.errno(), 13);
    pin.read(PAGE - 1, &mut bytes).unwrap();
    assert_eq!(bytes, [7, 8], "not even the first byte was written");
}

#[test]
fn truncated_file_is_an_error_that_says_how_far_it_got() {
    let window = open();
    let fd = memfd(4, 0);
    map(&window, 8, 4, &fd);
    let pin = window.pin(pages(8, 4)).unwrap();
    truncate(&fd, 2);
    let error = pin.write(16, &vec![9; 3 * PAGE as usize]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot write 0x3000 bytes at 0x8010 of the window: only 0x1ff0 could be reached; the file \
         behind them may have been truncated"
    );
    assert_eq!(error.errno(), EFAULT);
    let read = pin.read(2 * PAGE, &mut [0]).unwrap_err();
    assert!(matches!(read, Error::Access { done: 0, .. }), "{read}");
    let mut bytes = [0; 2];
    pin.read(15, &mut bytes).unwrap();
    assert_eq!(bytes, [0, 9], "what is left of the file is still reached");
}

#[test]
fn hugetlb_without_a_page_is_an_error_and_no_signal() {
    let test = "hugetlb_without_a_page_is_an_error_and_no_signal";
    let len = 2 << 20;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    let Ok(fd) = memfd_create("huge", flags) else {
        return skip(test, "no 2 MiB pages in this kernel");
    };
    ftruncate(&fd, len).unwrap();
    // Without a reservation the mapping is made, and its first touch finds no page. The window
    // reserves, so the memory comes to it from outside, under a memslot of its own.
    let flags = MapFlags::SHARED | MapFlags::NORESERVE;
    let access = ProtFlags::READ | ProtFlags::WRITE;
    #[expect(unsafe_code, reason = "the test makes the mapping that it passes on")]
    // SAFETY: without MAP_FIXED nothing is replaced.
    let address = unsafe { mmap(std::ptr::null_mut(), len as usize, access, flags, &fd, 0) };
    let Ok(address) = address else {
        return skip(test, "the kernel makes no hugetlb mapping");
    };
    let options = WindowOptions::new(GuestAddress(BASE), len).backend(BackendKind::Memslot);
    let window = open_with(options);
    let address = NonNull::new(address.cast()).unwrap();
    #[expect(unsafe_code, reason = "only the test knows that the memory stays")]
    // SAFETY: the mapping is never unmapped and nothing refers to it.
    let memory = unsafe { Source::host_memory(address) };
    let range = PageRange::new(0, len).unwrap();
    window.map(range, &memory, ReadWrite).unwrap();
    let pin = window.pin(range).unwrap();
    assert!(!pin.is_stable());
    match pin.read(0, &mut [0; 8]) {
        Err(error) => assert_eq!(error.errno(), EFAULT, "{error}"),
        Ok(()) => skip(test, "the host has free 2 MiB pages"),
    }
}

#[test]
fn memory_in_place_is_reached_where_it_lies() {
    let window = open_with(options().backend(BackendKind::Memslot));
    let fd = memfd(2, 5);
    let access = ProtFlags::READ | ProtFlags::WRITE;
    let len = 2 * PAGE as usize;
    #[expect(unsafe_code, reason = "the test makes the mapping that it passes on")]
    // SAFETY: without MAP_FIXED nothing is replaced.
    let address = unsafe { mmap(std::ptr::null_mut(), len, access, MapFlags::SHARED, &fd, 0) };
    let address = NonNull::new(address.unwrap().cast()).unwrap();
    #[expect(unsafe_code, reason = "only the test knows that the memory stays")]
    // SAFETY: the mapping is never unmapped and nothing refers to it.
    let memory = unsafe { Source::host_memory(address) };
    window.map(pages(4, 2), &memory, ReadWrite).unwrap();
    // A neighbour in the arena, so that one pin has both kinds.
    map(&window, 6, 1, &memfd(1, 50));
    let pin = window.pin(pages(4, 3)).unwrap();
    let mut bytes = [0; 2];
    pin.read(2 * PAGE - 1, &mut bytes).unwrap();
    assert_eq!(bytes, [6, 50]);
    pin.write(PAGE, &[77]).unwrap();
    let mut byte = [0];
    let file = File::from(fd);
    file.read_exact_at(&mut byte, PAGE).unwrap();
    assert_eq!(byte, [77]);
    ftruncate(&file, 0).unwrap();
    assert_eq!(pin.read(0, &mut byte).unwrap_err().errno(), EFAULT);
}

#[test]
fn only_memory_that_nobody_can_take_away_is_stable() {
    let window = open();
    let stable = |page| window.pin(pages(page, 1)).unwrap().is_stable();
    map(&window, 0, 1, &memfd(1, 0));
    map(&window, 1, 1, &sealed(1, 0));
    window
        .map(pages(2, 1), &Source::anonymous(), ReadWrite)
        .unwrap();
    let file = tempfile::tempfile().unwrap();
    file.set_len(PAGE).unwrap();
    let file = Source::descriptor(file.as_fd(), 0);
    window.map(pages(3, 1), &file, ReadWrite).unwrap();
    let strict = !matches!(
        std::fs::read_to_string("/proc/sys/vm/overcommit_memory")
            .unwrap()
            .trim(),
        "0" | "1"
    );
    assert_eq!(
        [stable(0), stable(1), stable(2), stable(3)],
        [false, !strict, true, false]
    );
    assert!(
        !window.pin(pages(0, 3)).unwrap().is_stable(),
        "all of it or not"
    );
    // A part of a stable mapping is stable, also after a cut.
    map(&window, 8, 4, &sealed(4, 0));
    window.unmap(pages(9, 1)).unwrap();
    assert_eq!([stable(8), stable(10)], [!strict; 2]);
}
