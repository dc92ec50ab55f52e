//! Owns the host address space behind a window, and makes every change of it: this folder is the
//! only one of the library that calls `mmap`, `mremap` and `munmap`. Never decides what goes where,
//! and never reads or writes a byte of it.
//!
//! What every unsafe block here rests on:
//! 1. The range is ours: [`Arena::reserve`] took it from the kernel, nobody else places anything
//!    in it, and only `Drop` gives it back. The same holds for [`Staged`] and its own range.
//! 2. No Rust reference points into it, ever: the library hands out addresses, not references.
//! 3. Offsets are checked against this arena, here, by [`Arena::span`].
//! 4. Memslots end before the arena does: whoever cannot unregister one calls
//!    [`Arena::set_leaked`], and the address space is never given back.
//!
//! Holes are private anonymous memory without access: reading them allocates nothing, and their
//! areas merge again with their neighbours.

// UNSAFETY: changing the address space of the process is unsafe by nature, and no safe wrapper
// knows the rules above.
#![expect(unsafe_code, reason = "the one place that changes the address space")]

pub(crate) mod areas;
mod calls;
#[cfg(test)]
pub(crate) mod faults;
mod nudge;
#[cfg(feature = "fault")]
pub(crate) mod poison;
mod staged;

use std::ffi::c_void;
use std::hash::{BuildHasher, RandomState};
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::mm::{
    MapFlags, MremapFlags, MsyncFlags, ProtFlags, mmap, mmap_anonymous, mremap_fixed, msync, munmap,
};

use calls::{Call, through};
#[cfg(feature = "fault")]
use staged::make_present;
pub(crate) use staged::{Populate, Site, Staged};

use crate::error::StateAfter;
use crate::range::{GuestAddress, HUGE_1G, PageRange};
use crate::source::Protection;

/// Where arenas go by preference. `mmap(NULL)` takes the highest gap below the stack, or in the
/// legacy layout the lowest one above a third of the address space (Linux: `mm/mmap.c`
/// `arch_get_unmapped_area*`), so it comes here last of all. That is a second line of defence: the
/// first is that no call below leaves a gap.
const LOW: u64 = 4 << 40;
const HIGH: u64 = 40 << 40;
const PLACEMENT_TRIES: usize = 8;

const HOLE: MapFlags = MapFlags::PRIVATE.union(MapFlags::NORESERVE);

/// The address space behind one window.
#[derive(Debug)]
pub(crate) struct Arena {
    base: usize,
    len: usize,
    leaked: bool,
    /// What a hole allows: nothing, or reading zeroes.
    hole: ProtFlags,
}

/// A change that the kernel refused, and what that left behind.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) errno: Errno,
    pub(crate) state: StateAfter,
}

impl Arena {
    /// Reserves `len` bytes, one hole, congruent with the guest address `base` modulo 1 GiB, so
    /// that huge pages of both sizes can become one translation.
    pub(crate) fn reserve(len: u64, base: GuestAddress) -> rustix::io::Result<Self> {
        let len = usize::try_from(len).map_err(|_| Errno::NOMEM)?;
        let skew = base.0 % HUGE_1G;
        let random = RandomState::new();
        for attempt in 0..PLACEMENT_TRIES {
            let slots = (HIGH - LOW) / HUGE_1G;
            let slot = random.hash_one(attempt) % slots;
            let wanted = slot
                .wrapping_mul(HUGE_1G)
                .wrapping_add(LOW)
                .wrapping_add(skew);
            if wanted.checked_add(len as u64).is_none_or(|end| end > HIGH) {
                continue;
            }
            let wanted = usize::try_from(wanted).map_err(|_| Errno::NOMEM)?;
            match map_hole(wanted, len, MapFlags::FIXED_NOREPLACE) {
                Ok(got) if got == wanted => {
                    return Ok(Self {
                        base: wanted,
                        len,
                        leaked: false,
                        hole: ProtFlags::empty(),
                    });
                }
                // A kernel before 4.17 took the address for a hint.
                Ok(got) => drop(Staged { address: got, len }),
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
        Self::reserve_anywhere(len, skew)
    }

    /// Reserves 1 GiB too much wherever the kernel likes, and gives back what is over.
    fn reserve_anywhere(len: usize, skew: u64) -> rustix::io::Result<Self> {
        let skew = usize::try_from(skew).map_err(|_| Errno::NOMEM)?;
        let align = usize::try_from(HUGE_1G).map_err(|_| Errno::NOMEM)?;
        let room = len.checked_add(align).ok_or(Errno::NOMEM)?;
        let start = map_hole(0, room, MapFlags::empty())?;
        let excess = start.wrapping_sub(skew).checked_rem(align).unwrap_or(0);
        let before = if excess == 0 {
            0
        } else {
            align.wrapping_sub(excess)
        };
        let base = start.wrapping_add(before);
        let after = align.wrapping_sub(before);
        for (address, len) in [(start, before), (base.wrapping_add(len), after)] {
            if len > 0 {
                drop(Staged { address, len });
            }
        }
        Ok(Self {
            base,
            len,
            leaked: false,
            hole: ProtFlags::empty(),
        })
    }

    /// Makes all holes, those there are and those to come, readable zeroes. Reading them makes the
    /// kernel enter its shared zero page, and allocates none.
    pub(crate) fn open_holes(&mut self) -> rustix::io::Result<()> {
        self.hole = ProtFlags::READ;
        map_hole_with(self.base, self.len, MapFlags::FIXED, self.hole).map(drop)
    }

    /// The host address of the window's byte `offset`.
    pub(crate) fn address(&self, offset: u64) -> u64 {
        (self.base as u64).wrapping_add(offset)
    }

    /// Where what comes to `range` should wait: as far beyond the arena as `range` lies in it, so that
    /// no two ranges ask for one place, and what lies there is found free without a look.
    pub(crate) fn site(&self, range: PageRange) -> Site {
        let beyond = (self.len as u64)
            .checked_next_multiple_of(HUGE_1G)
            .and_then(|len| len.checked_add(HUGE_1G));
        let distance = beyond.and_then(|beyond| beyond.checked_add(range.start()));
        Site(self.address(distance.unwrap_or(range.start())))
    }

    /// Host address and length of `range`, seen to lie in this arena.
    fn span(&self, range: PageRange) -> (usize, usize) {
        assert!(
            range.end() <= self.len as u64,
            "{range} lies outside the arena"
        );
        // Both fit: the arena's own length is a usize.
        let offset = usize::try_from(range.start()).unwrap_or(usize::MAX);
        let len = usize::try_from(range.len()).unwrap_or(usize::MAX);
        (self.base.wrapping_add(offset), len)
    }

    /// Moves `staged` to `range` in one step: whoever looks sees what was there or what comes.
    pub(crate) fn place(&self, range: PageRange, mut staged: Staged) -> Result<(), Refused> {
        self.put_back(range, &mut staged)
    }

    /// As [`place`](Self::place), for something that must not be lost: where the kernel refuses, it
    /// stays with the caller.
    pub(crate) fn put_back(&self, range: PageRange, staged: &mut Staged) -> Result<(), Refused> {
        let (address, len) = self.span(range);
        assert_eq!(
            staged.len, len,
            "a staged mapping has the length of its range"
        );
        let (from, to) = (staged.address as *mut c_void, address as *mut c_void);
        let moved = through(Call::Move, Some((address, len)), || {
            // SAFETY: both ranges are ours, by rules 1 and 3, and nobody refers to them, by rule 2.
            // The lengths are equal, so nothing beyond the two ranges is touched.
            unsafe { mremap_fixed(from, len, len, MremapFlags::MAYMOVE, to) }
        });
        match moved {
            Ok(_) => {
                staged.moved_away();
                Ok(())
            }
            Err(errno) => Err(self.after(range, errno)),
        }
    }

    /// Makes the pages of `range` present, in the host's page tables, for the access that `how`
    /// stands for. Other threads may change the range meanwhile.
    #[cfg(feature = "fault")]
    pub(crate) fn make_present(&self, range: PageRange, how: Populate) -> rustix::io::Result<()> {
        let (address, len) = self.span(range);
        make_present(address, len, how)
    }

    /// Maps `fd` over `range` in one step. Only for descriptors with which the kernel cannot fail
    /// once it has unmapped what was there, see `Descriptor::cannot_fail_halfway`.
    pub(crate) fn place_directly(
        &self,
        range: PageRange,
        fd: BorrowedFd<'_>,
        offset: u64,
        protection: Protection,
    ) -> Result<(), Refused> {
        let (address, len) = self.span(range);
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        let at = address as *mut c_void;
        let mapped = through(Call::Map, Some((address, len)), || {
            // SAFETY: the range is ours, by rules 1 and 3, and nobody refers to it, by rule 2.
            unsafe { mmap(at, len, access(protection), flags, fd, offset) }
        });
        mapped.map(drop).map_err(|errno| self.after(range, errno))
    }

    /// Makes `range` a hole.
    ///
    /// Private anonymous memory without access has no handler and no accounting that could fail
    /// after the old mapping is gone; what the kernel refuses, it refuses before.
    pub(crate) fn punch(&self, range: PageRange) -> Result<(), Refused> {
        let (address, len) = self.span(range);
        map_hole_with(address, len, MapFlags::FIXED, self.hole)
            .map(drop)
            .map_err(|errno| self.after(range, errno))
    }

    /// What a refusal left behind. Most come before the kernel has unmapped anything; a gap is
    /// filled at once, but never over a stranger's memory that has got there first.
    ///
    /// A stranger that fills all of a gap before the look at it is not seen. That takes a kernel
    /// that fails after the unmap, which the callers have excluded as far as it is known, and an
    /// `mmap(NULL)` that picks an arena, which comes last ([`LOW`]).
    fn after(&self, range: PageRange, errno: Errno) -> Refused {
        if !self.has_gap(range) {
            return Refused {
                errno,
                state: StateAfter::Unchanged,
            };
        }
        let (address, len) = self.span(range);
        let filled = map_hole_with(address, len, MapFlags::FIXED_NOREPLACE, self.hole);
        let state = if filled == Ok(address) {
            StateAfter::Hole
        } else {
            StateAfter::Poisoned
        };
        log::warn!("cannot place memory at {range} of the arena: {errno}; {state}");
        Refused { errno, state }
    }

    /// Whether any page of `range` is not mapped at all. Where the kernel does not say (a filter of
    /// system calls can forbid the question), it counts as so.
    pub(crate) fn has_gap(&self, range: PageRange) -> bool {
        let (address, len) = self.span(range);
        let found = through(Call::Look, None, || {
            // SAFETY: with MS_ASYNC the call changes nothing, it only says whether all of the range
            // is mapped (man page msync(2), ENOMEM; Linux: mm/msync.c).
            unsafe { msync(address as *mut c_void, len, MsyncFlags::ASYNC) }
        });
        found.is_err()
    }

    /// A second mapping of what `range` of this arena has, or an error where the kernel cannot
    /// make one (hugetlb, PFNMAP). The range must lie in one mapping.
    pub(crate) fn duplicate(&self, range: PageRange) -> rustix::io::Result<Staged> {
        let (address, len) = self.span(range);
        Staged::duplicate(address, len)
    }

    /// Whether dropping the arena keeps the address space for ever, because a memslot may still
    /// lie over it, or a stranger's memory in it.
    pub(crate) fn set_leaked(&mut self, leaked: bool) {
        self.leaked = leaked;
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if self.leaked {
            log::warn!(
                "{:#x} bytes of address space are never given back",
                self.len
            );
        } else {
            unmap(self.base, self.len);
        }
    }
}

/// Maps memory without access at `address`, which is ours where `placement` is `FIXED`.
fn map_hole(address: usize, len: usize, placement: MapFlags) -> rustix::io::Result<usize> {
    map_hole_with(address, len, placement, ProtFlags::empty())
}

/// As [`map_hole`], with the access that the holes of an arena have.
fn map_hole_with(
    address: usize,
    len: usize,
    placement: MapFlags,
    access: ProtFlags,
) -> rustix::io::Result<usize> {
    // FIXED_NOREPLACE is a bit of its own, and covers nothing.
    let covered = (placement == MapFlags::FIXED).then_some((address, len));
    let at = address as *mut c_void;
    let mapped = through(Call::MapHole, covered, || {
        // SAFETY: with FIXED the callers, all in this file, pass ranges of their own arena (rules
        // 1 to 3); without it the kernel replaces nothing.
        unsafe { mmap_anonymous(at, len, access, HOLE | placement) }
    })?;
    Ok(mapped.addr())
}

/// Gives a range back that an `Arena` or a `Staged` owned until now.
fn unmap(address: usize, len: usize) {
    let unmapped = through(Call::Unmap, None, || {
        // SAFETY: the callers are the drops of the two owners and `reserve`, each for a range that
        // it owns and will not use again; nobody refers to it, by rule 2, and no memslot lies over
        // it, by rule 4.
        unsafe { munmap(address as *mut c_void, len) }
    });
    if let Err(errno) = unmapped {
        log::warn!("cannot unmap {len:#x} bytes of address space: {errno}");
    }
}

fn access(protection: Protection) -> ProtFlags {
    match protection {
        Protection::ReadOnly => ProtFlags::READ,
        Protection::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
    }
}

#[cfg(test)]
mod tests;
