//! Owns the touch that makes a page present and changes nothing, for memory that `madvise` does not
//! populate: a dma-buf or other PFNMAP memory. Never says where to touch.
//!
//! The kernel itself touches the word, as two futex calls do on their way: both fault the page in
//! and answer `EFAULT` where nobody can serve the fault, without a signal. `FUTEX_WAKE_OP` makes an
//! atomic OR with 0, so nothing that is written meanwhile is lost, and the driver sees a write.

// UNSAFETY: no safe wrapper takes the address of memory that can vanish.
#![expect(unsafe_code, reason = "two system calls on a bare address")]

use std::ptr;
use std::sync::atomic::AtomicU32;

use rustix::io::Errno;

use super::Populate;
use crate::range::PAGE_SIZE;

/// `FUTEX_OP(FUTEX_OP_OR, 0, FUTEX_OP_CMP_EQ, 0)` (man page futex(2)).
const OR_NOTHING: u32 = 2 << 28;

/// Touches the first word of each page of `len` bytes at `address`.
pub(super) fn touch(address: usize, len: usize, how: Populate) -> rustix::io::Result<()> {
    let page = usize::try_from(PAGE_SIZE).map_err(|_| Errno::INVAL)?;
    for offset in (0..len).step_by(page) {
        let word = address.wrapping_add(offset);
        match how {
            Populate::Read => read(word)?,
            Populate::Write => write(word)?,
        }
    }
    Ok(())
}

fn write(address: usize) -> rustix::io::Result<()> {
    let own = AtomicU32::new(0);
    // SAFETY: the first word is this function's own and nobody waits on it. The kernel reads and
    // writes the second word with its own fault handling, and leaves its value as it was; the
    // caller says that the address is the arena's (rule 1 there), with no reference to it (rule 2).
    let answer = unsafe {
        libc::syscall(
            libc::SYS_futex,
            own.as_ptr(),
            libc::FUTEX_WAKE_OP | libc::FUTEX_PRIVATE_FLAG,
            0,
            0_usize,
            ptr::without_provenance_mut::<u32>(address),
            OR_NOTHING,
        )
    };
    if answer >= 0 { Ok(()) } else { Err(last()) }
}

fn read(address: usize) -> rustix::io::Result<()> {
    let at_once = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel reads the word with its own fault handling and writes nothing; the time
    // limit of 0 lives through the call.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_futex,
            ptr::without_provenance_mut::<u32>(address),
            libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
            0,
            &raw const at_once,
        )
    };
    match if answer >= 0 { Ok(()) } else { Err(last()) } {
        // The word was read: it has another value, or the time is up.
        Err(Errno::AGAIN | Errno::TIMEDOUT | Errno::INTR) => Ok(()),
        read => read,
    }
}

fn last() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::super::{Site, Staged};
    use super::*;
    use crate::source::Protection::{ReadOnly, ReadWrite};

    /// Pages of the mapping that are in the page tables, by the kernel's listing.
    fn resident(staged: &Staged) -> String {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let head = format!("{:x}-", staged.address);
        let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&head));
        lines
            .find(|line| line.starts_with("Rss:"))
            .unwrap()
            .replace(' ', "")
    }

    #[test]
    fn touch_brings_pages_in_and_changes_nothing() {
        let fd = memfd_create("touched", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, 4 * PAGE_SIZE).unwrap();
        rustix::io::pwrite(&fd, &[7; 8], 0).unwrap();
        let len = 4 * PAGE_SIZE;
        let staged = Staged::descriptor(len, fd.as_fd(), 0, ReadWrite, Site(0)).unwrap();
        assert_eq!(resident(&staged), "Rss:0kB");
        touch(staged.address, staged.len, Populate::Write).unwrap();
        assert_eq!(resident(&staged), "Rss:16kB");
        touch(staged.address, staged.len, Populate::Read).unwrap();
        let mut bytes = [0; 16];
        rustix::io::pread(&fd, &mut bytes, 0).unwrap();
        assert_eq!(bytes, [7, 7, 7, 7, 7, 7, 7, 7, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn touch_reads_memory_that_madvise_does_not_populate() {
        // The clock pages of the vDSO are PFNMAP memory, as a dma-buf is.
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let line = maps.lines().find(|line| line.ends_with("[vvar]")).unwrap();
        let start = usize::from_str_radix(line.split('-').next().unwrap(), 16).unwrap();
        touch(start, 4096, Populate::Read).unwrap();
        assert_eq!(touch(start, 4096, Populate::Write), Err(Errno::FAULT));
    }

    #[test]
    fn touch_of_what_cannot_be_touched_is_an_error_and_no_signal() {
        let fd = memfd_create("lost", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, 2 * PAGE_SIZE).unwrap();
        let len = 2 * PAGE_SIZE;
        let staged = Staged::descriptor(len, fd.as_fd(), 0, ReadOnly, Site(0)).unwrap();
        touch(staged.address, staged.len, Populate::Read).unwrap();
        let written = touch(staged.address, staged.len, Populate::Write);
        assert_eq!(written, Err(Errno::FAULT));
        ftruncate(&fd, PAGE_SIZE).unwrap();
        let read = touch(staged.address, staged.len, Populate::Read);
        assert_eq!(read, Err(Errno::FAULT));
    }
}
