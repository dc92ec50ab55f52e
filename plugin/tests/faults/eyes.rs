//! Owns looking at memory as the guest finds it, and at what address space is there. Never makes
//! a reference to either.

// UNSAFETY: the only call that reads memory of any protection without a fault is a raw one, and so
// are those that ask for, and give back, address space.
#![expect(unsafe_code, reason = "raw addresses are handed to the kernel")]

use std::ffi::c_void;
use std::ptr::without_provenance_mut;

use rustix::mm::{MsyncFlags, msync, munmap};

fn pointer(address: u64) -> *mut c_void {
    without_provenance_mut(address as usize)
}

/// The byte at `address`, or `None` where a guest's read of it would not be satisfied: the
/// protection counts, unlike in `/proc/self/mem`.
pub fn peek(address: u64) -> Option<u8> {
    peek_pages(address, 1).pop().flatten()
}

/// The same for the first bytes of `count` pages, with a system call for each that cannot be read
/// and one for all others.
pub fn peek_pages(address: u64, count: u64) -> Vec<Option<u8>> {
    let own = std::process::id().cast_signed();
    let one = |base| libc::iovec {
        iov_base: base,
        iov_len: 1,
    };
    let pages = (0..count).map(|page| one(pointer(address + page * 4096)));
    let pages: Vec<libc::iovec> = pages.collect();
    let mut seen = vec![None; pages.len()];
    let mut bytes = vec![0_u8; pages.len()];
    let mut from = 0;
    while let Some(remote) = pages.get(from..).filter(|rest| !rest.is_empty()) {
        let local = libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: remote.len(),
        };
        let (to, at, all) = (&raw const local, remote.as_ptr(), remote.len() as u64);
        // SAFETY: the kernel writes no more than `iov_len` bytes, to `bytes`, which has them and
        // which nothing else uses meanwhile; it checks the other addresses itself.
        let read = unsafe { libc::process_vm_readv(own, to, 1, at, all, 0) };
        let read = usize::try_from(read).unwrap_or(0);
        for (seen, byte) in seen.iter_mut().skip(from).zip(bytes.iter().take(read)) {
            *seen = Some(*byte);
        }
        // The one that ended it cannot be read.
        from += read + 1;
    }
    seen
}

/// Whether the kernel lets this process look at all.
pub fn work() -> bool {
    let byte = 7_u8;
    peek((&raw const byte).addr() as u64) == Some(7)
}

/// Whether there is no gap in the range.
pub fn is_mapped(address: u64, len: u64) -> bool {
    // SAFETY: MS_ASYNC writes and changes nothing; an address without memory is an error.
    unsafe { msync(pointer(address), len as usize, MsyncFlags::ASYNC) }.is_ok()
}

/// Gives an arena back that a window, now closed, kept for a hypervisor that there is none of.
pub fn give_back(address: u64, len: u64) {
    // SAFETY: the window is gone, no hypervisor ever knew of its arena, and no reference is there.
    unsafe { munmap(pointer(address), len as usize) }.unwrap();
}
