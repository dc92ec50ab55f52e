//! Owns making huge pages of a memfd's pages. Never keeps a mapping of it.

// UNSAFETY: the kernel makes huge pages of a file by an address range only, and mapping one at an
// address of its own choice has no safe wrapper.
#![expect(unsafe_code, reason = "MADV_COLLAPSE works on a mapping")]

use std::ffi::c_void;
use std::os::fd::BorrowedFd;
use std::ptr::null_mut;

use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use crate::guest::BLOCK;

/// Linux 6.1: `include/uapi/asm-generic/mman-common.h`.
const MADV_COLLAPSE: libc::c_int = 25;

/// Makes 2 MiB pages of the first `len` bytes of a memfd, a multiple of 2 MiB.
pub(super) fn collapse(fd: BorrowedFd<'_>, len: u64) -> std::io::Result<()> {
    let too_long = |_| std::io::Error::from(std::io::ErrorKind::OutOfMemory);
    let block = usize::try_from(BLOCK).map_err(too_long)?;
    let len = usize::try_from(len).map_err(too_long)?;
    let room = len.saturating_add(block);
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: without MAP_FIXED the kernel picks a free range, so nothing is replaced.
    let base = unsafe { mmap_anonymous(null_mut(), room, ProtFlags::empty(), flags) }?;
    let collapsed = collapse_at(base, block, fd, len);
    // SAFETY: the range is the one reserved above, and it is not used again.
    unsafe { munmap(base, room) }?;
    collapsed
}

fn collapse_at(
    base: *mut c_void,
    block: usize,
    fd: BorrowedFd<'_>,
    len: usize,
) -> std::io::Result<()> {
    let address = base.map_addr(|at| at.checked_next_multiple_of(block).unwrap_or(at));
    let access = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::SHARED | MapFlags::FIXED;
    // SAFETY: the range lies in the caller's reservation, which is a block longer.
    unsafe { mmap(address, len, access, flags, fd, 0) }?;
    // SAFETY: the range was mapped above; the kernel changes how its pages lie, not their bytes.
    match unsafe { libc::madvise(address, len, MADV_COLLAPSE) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
