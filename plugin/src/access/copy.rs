//! Owns the copy between this process's own buffers and memory that can vanish: a window's, whose
//! file may have been truncated or may have no page left. Never raises a signal, and never decides
//! whether an address may be touched.
//!
//! The copy is `process_vm_readv(2)` and `process_vm_writev(2)` on this very process with the two
//! sides exchanged: the window is the *local* side, the buffer the *remote* one. The kernel copies
//! the local side like the buffer of `read(2)`, through the page tables, and turns a fault that
//! nobody can serve into `EFAULT`. The remote side it pins page by page, and that it refuses for
//! PFNMAP memory such as a dma-buf (Linux: `mm/process_vm_access.c` `process_vm_rw_pages`,
//! `mm/gup.c` `check_vma_flags`), so the other way round would fail there.
//!
//! A process may always do this to itself (Linux: `kernel/fork.c` `mm_access`), unless a seccomp
//! filter of its own forbids the two calls: `EPERM`, or whatever that filter says.

// UNSAFETY: the safe wrappers there are take the local side as a slice, and no slice may point
// into guest memory.
#![expect(unsafe_code, reason = "the copy that cannot fault is a system call")]

use std::ffi::c_void;
use std::io;
use std::ptr;

use crate::window::hold::Part;

/// A copy that the kernel ended too early.
#[derive(Debug)]
pub(crate) struct Short {
    /// How many bytes it had copied.
    pub(crate) done: u64,
    pub(crate) source: io::Error,
}

impl From<Short> for io::Error {
    fn from(short: Short) -> Self {
        short.source
    }
}

/// Fills `into` with the bytes from `host_address` on.
///
/// All of it or an error: `EFAULT` where a byte cannot be read. `into` then has an unknown mix of
/// old and new bytes.
pub(crate) fn read(host_address: u64, into: &mut [u8]) -> Result<(), Short> {
    let buffer = into.as_mut_ptr();
    all(host_address, into.len(), |address, done, len| {
        let window = side(ptr::without_provenance_mut(address), len);
        let own = side(buffer.wrapping_add(done).cast(), len);
        // SAFETY: both vectors live through the call and have one element. The kernel writes `own`
        // alone, which ends where `into` does. It reads `window` as it reads the buffer of any
        // system call, and reports an address that is no good.
        unsafe {
            libc::process_vm_writev(own_process(), &raw const window, 1, &raw const own, 1, 0)
        }
    })
}

/// Writes `from` to the bytes from `host_address` on.
///
/// All of it or an error: `EFAULT` where a byte cannot be written. Some of `from` may be there
/// then, from its first byte on.
///
/// # Safety
/// What is mapped at these addresses for the length of the call, if anything, must be the guest's
/// to write: no Rust reference points there and nothing rests on its value.
pub(crate) unsafe fn write(host_address: u64, from: &[u8]) -> Result<(), Short> {
    let buffer = from.as_ptr().cast_mut();
    all(host_address, from.len(), |address, done, len| {
        let window = side(ptr::without_provenance_mut(address), len);
        let own = side(buffer.wrapping_add(done).cast(), len);
        // SAFETY: both vectors live through the call and have one element. The kernel reads `own`
        // alone, which ends where `from` does. It writes `window`, which the caller promises to be
        // the guest's, and reports an address that is no good.
        unsafe { libc::process_vm_readv(own_process(), &raw const window, 1, &raw const own, 1, 0) }
    })
}

/// Writes `from` into a part that is held, `distance` bytes from its first one.
pub(crate) fn write_part(part: &Part, distance: u64, from: &[u8]) -> Result<(), Short> {
    let room = part.range().len().checked_sub(distance);
    assert!(
        room.is_some_and(|room| from.len() as u64 <= room),
        "{} bytes do not fit into the part",
        from.len()
    );
    // SAFETY: the bytes lie in the part, by the assertion, and what lies in a part is the guest's
    // as long as there is a reference to it.
    unsafe { write(part.host_address().wrapping_add(distance), from) }
}

/// Calls `copy` with address, bytes done and bytes left until none is left. The kernel stops
/// short at a bad page, and reports it when asked for that page alone.
fn all(
    host_address: u64,
    len: usize,
    copy: impl Fn(usize, usize, usize) -> isize,
) -> Result<(), Short> {
    let mut done = 0;
    let short = |done: usize, source| Short {
        done: done as u64,
        source,
    };
    let fault = || io::Error::from(rustix::io::Errno::FAULT);
    let start = usize::try_from(host_address).map_err(|_| short(0, fault()))?;
    if start.checked_add(len).is_none() {
        return Err(short(0, fault()));
    }
    while done < len {
        let copied = copy(start.wrapping_add(done), done, len.wrapping_sub(done));
        match usize::try_from(copied) {
            Ok(0) => return Err(short(done, fault())),
            Ok(more) => done = done.saturating_add(more),
            Err(_) => return Err(short(done, io::Error::last_os_error())),
        }
    }
    Ok(())
}

fn side(base: *mut c_void, len: usize) -> libc::iovec {
    libc::iovec {
        iov_base: base,
        iov_len: len,
    }
}

fn own_process() -> libc::pid_t {
    rustix::process::getpid().as_raw_pid()
}

#[cfg(test)]
mod tests;
