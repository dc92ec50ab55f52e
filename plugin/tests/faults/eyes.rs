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
    let mut byte = 0_u8;
    let local = libc::iovec {
        iov_base: (&raw mut byte).cast(),
        iov_len: 1,
    };
    let remote = libc::iovec {
        iov_base: pointer(address),
        iov_len: 1,
    };
    let own = std::process::id().cast_signed();
    // SAFETY: the kernel writes one byte at most, to `byte`, which nothing else uses meanwhile; it
    // checks the other address itself.
    let read = unsafe { libc::process_vm_readv(own, &raw const local, 1, &raw const remote, 1, 0) };
    (read == 1).then_some(byte)
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
