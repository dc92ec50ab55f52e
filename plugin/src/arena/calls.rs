//! Owns the gate that every system call of the arena goes through, so that the tests can make each
//! of them fail. Never makes a call of its own, and outside of tests it is nothing.

/// What the kernel is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Call {
    /// `mmap` of memory without access: a hole, or room.
    MapHole,
    /// `mmap` of anything else.
    Map,
    /// `mremap` to a fixed address.
    Move,
    /// `mremap` with an old size of 0.
    Duplicate,
    /// `mprotect`.
    Protect,
    /// `madvise` that fills page tables.
    Populate,
    /// `madvise` that makes huge pages.
    Collapse,
    /// `userfaultfd` and its ioctls.
    #[cfg(feature = "fault")]
    Poison,
    /// `msync`, which looks for gaps.
    Look,
    /// `munmap`.
    Unmap,
}

/// Address and length of what the kernel unmaps before it makes the call, where it does.
pub(super) type Covered = Option<(usize, usize)>;

/// Makes a system call.
#[cfg(not(test))]
#[inline]
pub(super) fn through<T>(
    _: Call,
    _: Covered,
    make: impl FnOnce() -> rustix::io::Result<T>,
) -> rustix::io::Result<T> {
    make()
}

#[cfg(test)]
pub(super) use super::faults::through;
