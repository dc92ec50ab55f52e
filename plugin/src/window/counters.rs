//! Owns the counting of what a window has done. Never reads back what it counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a window has done since it was opened, and what it holds now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Counters {
    /// Calls of `map`, and maps of batches, that succeeded.
    pub maps: u64,
    /// Calls of `replace`, and replaces of batches, that succeeded.
    pub replaces: u64,
    /// Calls of `unmap`, and unmaps of batches, that succeeded.
    pub unmaps: u64,
    /// Batches that succeeded.
    pub batches: u64,
    /// Calls that failed, of any of these.
    pub failures: u64,
    /// Calls of `mmap` that put a mapping in place, or neighbours of a batch together.
    pub direct: u64,
    /// The same, made elsewhere first and moved into place.
    pub staged: u64,
    /// Changes of batches that took no system call of their own, because they were joined to the
    /// one before them.
    pub joined: u64,
    /// Mappings that `fixed` could not share and that got a memslot of their own.
    pub fallbacks: u64,
    /// Mappings whose pages were brought in as [`Prefault`](crate::Prefault) asked.
    pub prefaulted: u64,
    /// Mappings that got less than it asked: the host's pages instead of the guest's translations,
    /// or only some of the pages, or none.
    pub prefault_fallbacks: u64,
    /// Mappings whose pages were made huge ones, as
    /// [`Source::collapse`](crate::Source::collapse) asked.
    pub collapsed: u64,
    /// Mappings where that was asked for and not done, or not everywhere.
    pub collapse_failures: u64,
    /// Mappings of 2 MiB and more in which no block of 2 MiB begins on a multiple of 2 MiB in the
    /// guest, in the host and in its file alike: the guest gets no huge page, whatever the file has.
    /// [`Window::preferred_alignment`](crate::Window::preferred_alignment) says where to put them.
    pub lost_to_skew: u64,
    /// Mappings of 2 MiB and more that lie right, and whose memory gave no sign of huge pages: not
    /// hugetlb, not on a tmpfs with huge pages (`huge=`, or `shmem_enabled` for memfds), and not
    /// collapsed by this call. A file that somebody else collapsed gives no sign and is counted.
    pub lost_to_small_pages: u64,
    /// Mappings that could have huge pages and were cut inside one, by a change of a part of them that
    /// begins or ends on no multiple of 2 MiB.
    pub lost_to_cuts: u64,
    /// Mappings that could have huge pages and were made while the window's dirty log was on: the
    /// hypervisor maps 4 KiB at a time then, to know which of them the guest writes. Those that were
    /// there when the log began lose theirs as well, for as long as it is on, and are not counted.
    pub lost_to_dirty_log: u64,
    /// Memslots registered.
    pub slots_registered: u64,
    /// Memslots unregistered.
    pub slots_unregistered: u64,
    /// Memslots there are now.
    pub slots: u64,
    /// Mappings there are now.
    pub mappings: u64,
    /// Bytes that they cover.
    pub mapped_bytes: u64,
    /// Pins there are now.
    pub pins: u64,
}

/// The counters that change outside the window's lock.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) maps: AtomicU64,
    pub(crate) replaces: AtomicU64,
    pub(crate) unmaps: AtomicU64,
    pub(crate) batches: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) direct: AtomicU64,
    pub(crate) staged: AtomicU64,
    pub(crate) joined: AtomicU64,
    pub(crate) fallbacks: AtomicU64,
    pub(crate) prefaulted: AtomicU64,
    pub(crate) prefault_fallbacks: AtomicU64,
    pub(crate) collapsed: AtomicU64,
    pub(crate) collapse_failures: AtomicU64,
    pub(crate) lost_to_skew: AtomicU64,
    pub(crate) lost_to_small_pages: AtomicU64,
    pub(crate) lost_to_cuts: AtomicU64,
    pub(crate) lost_to_dirty_log: AtomicU64,
}

/// Adds one. The order among counters is nobody's business.
pub(crate) fn count(counter: &AtomicU64) {
    add(counter, 1);
}

/// Adds some.
pub(crate) fn add(counter: &AtomicU64, some: usize) {
    counter.fetch_add(some as u64, Ordering::Relaxed);
}

impl Tally {
    pub(crate) fn read(&self) -> Counters {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            maps: value(&self.maps),
            replaces: value(&self.replaces),
            unmaps: value(&self.unmaps),
            batches: value(&self.batches),
            failures: value(&self.failures),
            direct: value(&self.direct),
            staged: value(&self.staged),
            joined: value(&self.joined),
            fallbacks: value(&self.fallbacks),
            prefaulted: value(&self.prefaulted),
            prefault_fallbacks: value(&self.prefault_fallbacks),
            collapsed: value(&self.collapsed),
            collapse_failures: value(&self.collapse_failures),
            lost_to_skew: value(&self.lost_to_skew),
            lost_to_small_pages: value(&self.lost_to_small_pages),
            lost_to_cuts: value(&self.lost_to_cuts),
            lost_to_dirty_log: value(&self.lost_to_dirty_log),
            ..Counters::default()
        }
    }
}
