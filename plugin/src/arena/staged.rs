//! Owns mappings that wait outside any arena for their place: making them, bringing in their pages
//! and giving them up. Never puts one in its place, and never reads or writes a byte of it.
//!
//! The unsafe blocks rest on the rules of the arena (`arena/mod.rs`).

// UNSAFETY: changing the address space of the process is unsafe by nature, and no safe wrapper
// knows the rules above.
#![expect(unsafe_code, reason = "it maps memory, and unmaps it")]

use std::ffi::c_void;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::mm::{
    Advice, MapFlags, MprotectFlags, MremapFlags, madvise, mmap, mmap_anonymous, mprotect, mremap,
};

use super::calls::{Call, through};
use super::{access, map_hole, nudge, unmap};
use crate::range::HUGE_2M;
use crate::source::Protection;

/// A mapping that was made outside any arena, to be moved into one. Unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Staged {
    pub(super) address: usize,
    pub(super) len: usize,
}

/// Where a staged mapping waits: at this address, or at least at one that is congruent with it modulo
/// 2 MiB, if that can be had and the mapping has 2 MiB; else wherever the kernel likes.
///
/// What is brought in there can be huge pages, and it shares no page table with others. The move
/// takes page tables as wholes, and where there is half a one it makes a table in the new place,
/// even an empty one, over which no huge page can be mapped any more (Linux: `mm/mremap.c`
/// `move_page_tables`).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site(pub(crate) u64);

/// How pages are brought in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Populate {
    /// As if each page had been read.
    Read,
    /// As if each page had been written.
    Write,
}

impl Staged {
    /// Maps `len` bytes of `fd` outside any arena.
    pub(crate) fn descriptor(
        len: u64,
        fd: BorrowedFd<'_>,
        offset: u64,
        protection: Protection,
        site: Site,
    ) -> rustix::io::Result<Self> {
        let len = usize::try_from(len).map_err(|_| Errno::NOMEM)?;
        Self::put_at(site, len, |at| {
            through(Call::Map, None, || {
                // SAFETY: without MAP_FIXED the kernel picks a free range, so nothing is replaced.
                unsafe { mmap(at, len, access(protection), MapFlags::SHARED, fd, offset) }
            })
        })
    }

    /// Maps `len` bytes of fresh memory outside any arena.
    pub(crate) fn anonymous(
        len: u64,
        protection: Protection,
        site: Site,
    ) -> rustix::io::Result<Self> {
        let len = usize::try_from(len).map_err(|_| Errno::NOMEM)?;
        Self::put_at(site, len, |at| {
            through(Call::Map, None, || {
                // SAFETY: without MAP_FIXED the kernel picks a free range, so nothing is replaced.
                unsafe { mmap_anonymous(at, len, access(protection), MapFlags::SHARED) }
            })
        })
    }

    /// Maps what lies at `address` a second time, wherever the kernel likes, with the protection
    /// that it has there. The caller has seen that all `len` bytes lie in one shared mapping.
    pub(crate) fn duplicate(address: usize, len: usize) -> rustix::io::Result<Self> {
        let from = address as *mut c_void;
        let mapped = through(Call::Duplicate, None, || {
            // SAFETY: with an old size of 0 the old mapping stays as it is, and without a fixed
            // address the kernel picks a free range (man page mremap(2)), so nothing is replaced.
            unsafe { mremap(from, 0, len, MremapFlags::MAYMOVE) }
        })?;
        Ok(Self {
            address: mapped.addr(),
            len,
        })
    }

    /// Has `map` make `len` bytes at `site`, given where to ask the kernel for them.
    pub(super) fn put_at(
        site: Site,
        len: usize,
        map: impl Fn(*mut c_void) -> rustix::io::Result<*mut c_void>,
    ) -> rustix::io::Result<Self> {
        let huge = usize::try_from(HUGE_2M).map_err(|_| Errno::NOMEM)?;
        let made = |at: usize| {
            let address = map(at as *mut c_void)?.addr();
            Ok(Self { address, len })
        };
        if len < huge {
            return made(0);
        }
        let wanted = usize::try_from(site.0).map_err(|_| Errno::NOMEM)?;
        let first = made(wanted)?;
        if first.address.wrapping_sub(wanted).is_multiple_of(huge) {
            return Ok(first);
        }
        // Somebody else's memory lies there.
        drop(first);
        made(congruent(len, wanted)?)
    }

    /// Gives the mapping another protection.
    pub(crate) fn protect(&self, protection: Protection) -> rustix::io::Result<()> {
        let flags = match protection {
            Protection::ReadOnly => MprotectFlags::READ,
            Protection::ReadWrite => MprotectFlags::READ | MprotectFlags::WRITE,
        };
        through(Call::Protect, None, || {
            // SAFETY: the range is this value's own, by rule 1, and nobody refers to it, by rule 2.
            unsafe { mprotect(self.address as *mut c_void, self.len, flags) }
        })
    }

    /// Brings in all pages, without a signal should the file have lost some.
    pub(crate) fn populate(&self, how: Populate) -> rustix::io::Result<()> {
        make_present(self.address, self.len, how)
    }

    /// Maps `len` bytes of `fd` outside any arena, so that writes to them stay in this mapping.
    #[cfg(feature = "fault")]
    pub(crate) fn private(
        len: u64,
        fd: BorrowedFd<'_>,
        offset: u64,
        protection: Protection,
    ) -> rustix::io::Result<Self> {
        let len = usize::try_from(len).map_err(|_| Errno::NOMEM)?;
        let (anywhere, access) = (std::ptr::null_mut(), access(protection));
        let mapped = through(Call::Map, None, || {
            // SAFETY: without MAP_FIXED the kernel picks a free range, so nothing is replaced.
            unsafe { mmap(anywhere, len, access, MapFlags::PRIVATE, fd, offset) }
        })?;
        Ok(Self {
            address: mapped.addr(),
            len,
        })
    }

    /// Makes 2 MiB pages of all whole blocks (Linux 6.1). Their bytes stay.
    pub(crate) fn collapse(&self) -> rustix::io::Result<()> {
        let huge = usize::try_from(HUGE_2M).map_err(|_| Errno::INVAL)?;
        let block = self.address.checked_next_multiple_of(huge);
        let end = block.and_then(|block| block.checked_add(huge));
        if end.is_none_or(|end| end > self.address.saturating_add(self.len)) {
            // The kernel calls it done.
            return Err(Errno::INVAL);
        }
        let address = self.address as *mut c_void;
        through(Call::Collapse, None, || {
            // SAFETY: the range is this value's own, by rule 1. The kernel changes how its pages
            // lie, and no byte of them (man page madvise(2), MADV_COLLAPSE).
            match unsafe { libc::madvise(address, self.len, libc::MADV_COLLAPSE) } {
                0 => Ok(()),
                _ => {
                    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
                }
            }
        })
    }

    /// Cuts the first `len` bytes off, whole pages of the mapping; all of it, if it has no more.
    #[cfg(feature = "fault")]
    pub(crate) fn cut(&mut self, len: u64) -> Self {
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(self.len);
        let first = Self {
            address: self.address,
            len,
        };
        self.address = self.address.saturating_add(len);
        self.len = self.len.saturating_sub(len);
        first
    }

    /// Gives up the claim on the range, which the kernel has moved.
    pub(super) fn moved_away(&mut self) {
        self.len = 0;
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if self.len > 0 {
            unmap(self.address, self.len);
        }
    }
}

/// A free range of `len` bytes that is congruent with `address` modulo 2 MiB. Should another thread
/// take it before it is used, the kernel gives another one.
fn congruent(len: usize, address: usize) -> rustix::io::Result<usize> {
    let huge = usize::try_from(HUGE_2M).map_err(|_| Errno::NOMEM)?;
    let room = len.checked_add(huge).ok_or(Errno::NOMEM)?;
    let free = map_hole(0, room, MapFlags::empty())?;
    drop(Staged {
        address: free,
        len: room,
    });
    let before = address.wrapping_sub(free).checked_rem(huge).unwrap_or(0);
    Ok(free.wrapping_add(before))
}

/// Fills page tables; what `madvise` does not do, a dma-buf for instance, is touched page by page.
pub(super) fn make_present(address: usize, len: usize, how: Populate) -> rustix::io::Result<()> {
    let advice = match how {
        Populate::Read => Advice::LinuxPopulateRead,
        Populate::Write => Advice::LinuxPopulateWrite,
    };
    let populated = rustix::io::retry_on_intr(|| {
        through(Call::Populate, None, || {
            // SAFETY: the callers pass a range of their own, by rule 1. The kernel fills page
            // tables and changes no byte of the memory (man page madvise(2), MADV_POPULATE_WRITE).
            unsafe { madvise(address as *mut c_void, len, advice) }
        })
    });
    match populated {
        Err(Errno::INVAL) => nudge::touch(address, len, how),
        populated => populated,
    }
}
