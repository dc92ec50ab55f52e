//! Owns the tests of the copy over memory that is there, that is gone, and that cannot be pinned.
//! Never touches that memory by a reference.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::*;
use crate::arena::{Arena, Site, Staged};
use crate::range::{GuestAddress, PAGE_SIZE, PageRange};
use crate::source::Protection::{self, ReadOnly, ReadWrite};

const EFAULT: Option<i32> = Some(libc::EFAULT);

fn put(address: u64, from: &[u8]) -> Result<(), Short> {
    // SAFETY: the tests write to arenas of their own alone, where nobody keeps a reference.
    unsafe { write(address, from) }
}

/// An arena of 8 pages whose first `count` are `fd`'s, and its address.
fn mapped(fd: BorrowedFd<'_>, count: u64, protection: Protection) -> (Arena, u64) {
    let arena = Arena::reserve(8 * PAGE_SIZE, GuestAddress(0)).unwrap();
    let range = PageRange::new(0, count * PAGE_SIZE).unwrap();
    let staged = Staged::descriptor(range.len(), fd, 0, protection, Site(0)).unwrap();
    arena.place(range, staged).unwrap();
    let address = arena.address(0);
    (arena, address)
}

#[test]
fn what_is_written_is_read_back_at_any_alignment() {
    let fd = memfd_create("copy", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, 4 * PAGE_SIZE).unwrap();
    let (_arena, address) = mapped(fd.as_fd(), 4, ReadWrite);
    for (offset, len) in [
        (0, 1),
        (3, 8),
        (4093, 7),
        (1, 3 * 4096),
        (0, 4 * 4096),
        (5, 0),
    ] {
        let bytes: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
        put(address + offset, &bytes).unwrap();
        let mut back = vec![0; len];
        read(address + offset, &mut back).unwrap();
        assert_eq!(back, bytes, "{len} bytes at {offset}");
    }
}

#[test]
fn hole_is_an_error_and_bytes_before_it_are_written() {
    let fd = memfd_create("copy", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, PAGE_SIZE).unwrap();
    let (_arena, address) = mapped(fd.as_fd(), 1, ReadWrite);
    let across = address + PAGE_SIZE - 4;
    assert_eq!(
        put(across, &[7; 8]).unwrap_err().source.raw_os_error(),
        EFAULT
    );
    assert_eq!(
        read(across, &mut [0; 8]).unwrap_err().source.raw_os_error(),
        EFAULT
    );
    let mut written = [0; 4];
    read(across, &mut written).unwrap();
    assert_eq!(written, [7; 4]);
}

#[test]
fn read_only_mapping_is_read_and_not_written() {
    let fd = memfd_create("copy", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, PAGE_SIZE).unwrap();
    let (_arena, address) = mapped(fd.as_fd(), 1, ReadOnly);
    read(address, &mut [1; 64]).unwrap();
    assert_eq!(
        put(address, &[1]).unwrap_err().source.raw_os_error(),
        EFAULT
    );
}

#[test]
fn truncated_file_is_an_error_and_no_signal() {
    let fd = memfd_create("copy", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, 4 * PAGE_SIZE).unwrap();
    let (_arena, address) = mapped(fd.as_fd(), 4, ReadWrite);
    put(address + 3 * PAGE_SIZE, &[9; 4096]).unwrap();
    ftruncate(&fd, PAGE_SIZE).unwrap();
    let mut all = vec![0; 4 * 4096];
    assert_eq!(
        read(address, &mut all).unwrap_err().source.raw_os_error(),
        EFAULT
    );
    assert_eq!(
        put(address, &all).unwrap_err().source.raw_os_error(),
        EFAULT
    );
    read(address, &mut all[..4096]).unwrap();
}

#[test]
fn memory_that_cannot_be_pinned_is_read_all_the_same() {
    // The clock pages of the vDSO are PFNMAP memory, as a dma-buf is.
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| line.ends_with("[vvar]")).unwrap();
    let start = u64::from_str_radix(line.split('-').next().unwrap(), 16).unwrap();
    read(start, &mut [0; 64]).unwrap();
}

#[test]
fn address_that_no_process_has_is_an_error() {
    for address in [0, 8, 1 << 47, u64::MAX - 4, u64::MAX] {
        let error = read(address, &mut [0; 8]).unwrap_err();
        assert_eq!(error.source.raw_os_error(), EFAULT, "{address:#x}");
    }
}
