//! Owns poisoned memory: each touch of a page of it is a SIGBUS that names the page, and allocates
//! nothing. Never decides where it goes, and never handles the signal.
//!
//! It is made outside any arena and moved into one as a whole, so there is no moment at which a
//! guest could touch it and get memory instead. Linux 6.6 can do that (`UFFDIO_POISON`), for any
//! user.

// UNSAFETY: no crate at hand has a safe wrapper for the ioctls of userfaultfd.
#![expect(unsafe_code, reason = "the ioctls of userfaultfd have no safe wrapper")]

use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use rustix::mm::{MapFlags, ProtFlags, UserfaultfdFlags, mmap_anonymous, userfaultfd};

use super::calls::{Call, through};
use super::{Site, Staged};

/// `UFFD_USER_MODE_ONLY` (Linux: `include/uapi/linux/userfaultfd.h`, as everything here): the
/// descriptor is no power over the kernel's own accesses, so everybody may have it.
const USER_MODE_ONLY: u32 = 1;
const VERSION: u64 = 0xaa;
const FEATURE_POISON: u64 = 1 << 14;
const MODE_MISSING: u64 = 1;

/// `struct uffdio_api`.
#[repr(C)]
#[derive(Debug)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_range`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Range {
    start: u64,
    len: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
#[derive(Debug)]
struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}

/// `struct uffdio_poison`.
#[repr(C)]
#[derive(Debug)]
struct Poison {
    range: Range,
    mode: u64,
    updated: i64,
}

const API: Opcode = opcode::read_write::<Api>(0xaa, 0x3f);
const REGISTER: Opcode = opcode::read_write::<Register>(0xaa, 0);
const UNREGISTER: Opcode = opcode::read::<Range>(0xaa, 1);
const POISON: Opcode = opcode::read_write::<Poison>(0xaa, 8);

impl Staged {
    /// Maps `len` bytes of poisoned memory outside any arena.
    pub(crate) fn poisoned(len: u64, site: Site) -> rustix::io::Result<Self> {
        let bytes = usize::try_from(len).map_err(|_| Errno::NOMEM)?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        let staged = Self::put_at(site, bytes, |at| {
            through(Call::Map, None, || {
                // SAFETY: without MAP_FIXED the kernel picks a free range, so nothing is replaced.
                unsafe { mmap_anonymous(at, bytes, access, flags) }
            })
        })?;
        let range = Range {
            start: staged.address as u64,
            len,
        };
        poison(range)?;
        Ok(staged)
    }
}

/// Whether this kernel poisons memory, for this process.
pub(crate) fn can_poison(page: u64) -> rustix::io::Result<()> {
    Staged::poisoned(page, Site(0)).map(drop)
}

/// Poisons `range`, which the caller has mapped just now. The poison outlives the registration,
/// which no `mremap` likes.
fn poison(range: Range) -> rustix::io::Result<()> {
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::from_bits_retain(USER_MODE_ONLY);
    let fd = through(Call::Poison, None, || {
        // SAFETY: the descriptor stays in this function, which asks it for what is described at
        // `ask`.
        unsafe { userfaultfd(flags) }
    })?;
    let fd = fd.as_fd();
    let mut api = Api {
        api: VERSION,
        features: FEATURE_POISON,
        ioctls: 0,
    };
    ask::<API, _>(fd, &mut api)?;
    let mut register = Register {
        range,
        mode: MODE_MISSING,
        ioctls: 0,
    };
    ask::<REGISTER, _>(fd, &mut register)?;
    let mut poison = Poison {
        range,
        mode: 0,
        updated: 0,
    };
    ask::<POISON, _>(fd, &mut poison)?;
    let mut range = range;
    ask::<UNREGISTER, _>(fd, &mut range)
}

/// One of the four requests above with its own structure.
fn ask<const REQUEST: Opcode, T>(fd: BorrowedFd<'_>, about: &mut T) -> rustix::io::Result<()> {
    // SAFETY: the callers, all above, pair each request with the structure that its number was
    // made of: the kernel reads and writes no more than that.
    let request = unsafe { Updater::<REQUEST, T>::new(about) };
    through(Call::Poison, None, || {
        // SAFETY: the structure lives through the call. What the requests change of the process is
        // the range that they name: memory that `Staged::poisoned` has made, that has no content
        // yet, and that nobody refers to.
        unsafe { ioctl(fd, request) }
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::Arena;
    use super::*;
    use crate::range::{GuestAddress, HUGE_2M, PAGE_SIZE, PageRange};

    #[test]
    fn poisoned_memory_goes_into_an_arena_and_out_again() {
        let test = "poisoned_memory_goes_into_an_arena_and_out_again";
        if let Err(errno) = can_poison(PAGE_SIZE) {
            let mut stderr = std::io::stderr();
            writeln!(
                stderr,
                "SKIP {test}: this kernel cannot poison memory: {errno}"
            )
            .unwrap();
            return;
        }
        let arena = Arena::reserve(4 * HUGE_2M, GuestAddress(0)).unwrap();
        let all = PageRange::new(0, 4 * HUGE_2M).unwrap();
        for range in [
            (PAGE_SIZE, PAGE_SIZE),
            (HUGE_2M, 2 * HUGE_2M),
            (0, 4 * HUGE_2M),
        ] {
            let range = PageRange::new(range.0, range.1).unwrap();
            let site = arena.site(range);
            let staged = Staged::poisoned(range.len(), site).unwrap();
            arena.place(range, staged).unwrap();
            assert!(!arena.has_gap(all));
            for offset in [range.start(), range.end() - PAGE_SIZE] {
                assert_eq!(read(&arena, offset), Err(Errno::FAULT), "{range}");
            }
            arena.punch(range).unwrap();
            assert!(!arena.has_gap(all));
        }
    }

    /// Reads a byte by a system call, which gets an error where a processor gets a signal.
    fn read(arena: &Arena, offset: u64) -> rustix::io::Result<()> {
        let (address, _) = arena.span(PageRange::new(offset, PAGE_SIZE).unwrap());
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let at: *const u8 = std::ptr::without_provenance(address);
        // SAFETY: a system call that cannot read the byte says so.
        let wrote = unsafe { libc::write(std::os::fd::AsRawFd::as_raw_fd(&writer), at.cast(), 1) };
        drop(reader);
        match wrote {
            1 => Ok(()),
            _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap()),
        }
    }
}
