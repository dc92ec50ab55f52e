//! Owns every error of the library, with the figures that explain it. Never decides anything.

mod errno;

use std::io;
use std::time::Duration;

use crate::range::{GuestAddress, PAGE_SIZE, PageRange};

/// The most memslots that KVM on x86 has (Linux: `arch/x86/include/asm/kvm_host.h`
/// `KVM_USER_MEM_SLOTS`, 5.11 on).
pub(crate) const MAX_SEGMENTS: u64 = 32764;

/// What a failed call left behind in the range that it was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StateAfter {
    /// Everything is as it was before the call.
    Unchanged,
    /// The range is a hole now: what was mapped there is gone, the guest cannot reach it.
    Hole,
    /// The kernel refused even the hole. The window does nothing any more but
    /// [`close`](crate::Window::close).
    Poisoned,
}

impl std::fmt::Display for StateAfter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unchanged => "nothing has changed",
            Self::Hole => "the range is a hole now",
            Self::Poisoned => "the window is poisoned and can only be closed",
        })
    }
}

/// Why a call on a window failed.
///
/// Where a variant carries no [`StateAfter`], nothing has changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(
    clippy::error_impl_error,
    reason = "the crate has one error, and callers see the path"
)]
pub enum Error {
    /// A range that is empty, unaligned or wraps around.
    #[error(
        "cannot use {len:#x} bytes at {start:#x}: both must be multiples of {PAGE_SIZE:#x}, the \
         length above 0 and the end below 2^64"
    )]
    BadRange {
        /// First byte asked for.
        start: u64,
        /// Length asked for, in bytes.
        len: u64,
    },
    /// A guest address that is not page-aligned, or a window that would end past 2^64.
    #[error(
        "cannot place a window of {len:#x} bytes at guest address {base}: the address must be a \
         multiple of {PAGE_SIZE:#x} and the end below 2^64"
    )]
    BadGuestAddress {
        /// The guest address asked for.
        base: GuestAddress,
        /// Length of the window, in bytes.
        len: u64,
    },
    /// A segment size that is no whole number of pages, or gives more segments than KVM has slots.
    #[error(
        "cannot use segments of {size:#x} bytes for a window of {len:#x}: the size must be a \
         multiple of {PAGE_SIZE:#x} above 0, and there can be {MAX_SEGMENTS} segments"
    )]
    BadSegmentSize {
        /// The size asked for, in bytes.
        size: u64,
        /// Length of the window, in bytes.
        len: u64,
    },
    /// A backend name that there is none of.
    #[error("cannot find a backend named {name:?}: there are {known}")]
    UnknownBackend {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// A range that does not lie in the window.
    #[error("cannot use {range}: the window has {window:#x} bytes")]
    OutsideWindow {
        /// The range asked for.
        range: PageRange,
        /// Length of the window, in bytes.
        window: u64,
    },
    /// A map over something that is mapped already.
    #[error("cannot map {range}: {occupied} is mapped already; unmap it, or replace it")]
    Occupied {
        /// The range asked for.
        range: PageRange,
        /// The first mapping in the way.
        occupied: PageRange,
    },
    /// A descriptor of a kind that cannot stand behind guest memory.
    #[error(
        "cannot map {range} from {kind}: only memfd, hugetlb, regular files and dma-buf can be mapped"
    )]
    DescriptorKind {
        /// The range asked for.
        range: PageRange,
        /// What the descriptor is.
        kind: &'static str,
    },
    /// A descriptor that could not be inspected, a closed one for instance.
    #[error("cannot inspect the descriptor for {range}")]
    Inspect {
        /// The range asked for.
        range: PageRange,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A descriptor offset that is no multiple of the page size.
    #[error("cannot map {range} from offset {offset:#x}: it must be a multiple of {PAGE_SIZE:#x}")]
    SourceOffset {
        /// The range asked for.
        range: PageRange,
        /// The offset asked for, in bytes.
        offset: u64,
    },
    /// A request for bytes past the end of the descriptor.
    #[error(
        "cannot map {range}: it needs the descriptor's bytes {offset:#x}..{end:#x}, and the \
         descriptor ends at {size:#x}"
    )]
    PastEnd {
        /// The range asked for.
        range: PageRange,
        /// Where in the descriptor it would start, in bytes.
        offset: u64,
        /// Where it would end, in bytes (`u64::MAX` where the sum does not fit).
        end: u64,
        /// The descriptor's size, in bytes.
        size: u64,
    },
    /// A descriptor that was opened for less than the protection asks.
    #[error("cannot map {range} {wanted}: the descriptor is open {open}")]
    DescriptorAccess {
        /// The range asked for.
        range: PageRange,
        /// What was asked for: `read-only` or `read-write`.
        wanted: &'static str,
        /// How the descriptor is open.
        open: &'static str,
    },
    /// A descriptor whose seals forbid the mapping.
    #[error(
        "cannot map {range} read-write: the descriptor is sealed against writing (seals {seals:#x})"
    )]
    Sealed {
        /// The range asked for.
        range: PageRange,
        /// The seals, as `F_GET_SEALS` has them.
        seals: u32,
    },
    /// A descriptor of a kind that the source's policy keeps out.
    #[error(
        "cannot map {range} from {kind}: the policy accepts {accepted}; pass one of these, or \
         choose a policy that accepts it"
    )]
    PolicyKind {
        /// The range asked for.
        range: PageRange,
        /// What the descriptor is.
        kind: String,
        /// The kinds that the policy accepts.
        accepted: String,
    },
    /// A descriptor without the seals that the source's policy wants.
    #[error(
        "cannot map {range} from {kind} with seals {found:#x}: the policy wants {wanted:#x} among \
         them; have its owner add them, or choose a policy that wants less"
    )]
    PolicySeals {
        /// The range asked for.
        range: PageRange,
        /// What the descriptor is.
        kind: String,
        /// Its seals, as `F_GET_SEALS` has them.
        found: u32,
        /// The seals that the policy wants.
        wanted: u32,
    },
    /// Huge pages that do not lie on their own boundaries.
    #[error(
        "cannot map {range} from huge pages of {page_size:#x} bytes: host address {address:#x}, \
         length {len:#x} and offset {offset:#x} must all be multiples of it",
        len = .range.len()
    )]
    HugePageAlignment {
        /// The range asked for.
        range: PageRange,
        /// Size of a huge page of the descriptor, in bytes.
        page_size: u64,
        /// The host address that the range has in the arena.
        address: u64,
        /// The offset asked for, in bytes.
        offset: u64,
    },
    /// A change that would cut a mapping inside one of its huge pages.
    #[error(
        "cannot change {range}: it cuts the mapping {mapping} inside a huge page of \
         {page_size:#x} bytes"
    )]
    HugePageCut {
        /// The range asked for.
        range: PageRange,
        /// The mapping that would be cut.
        mapping: PageRange,
        /// Size of its huge pages, in bytes.
        page_size: u64,
    },
    /// Host memory that cannot be shared with the guest without a descriptor.
    #[error(
        "cannot map {range} from host memory at {address:#x}: {reason}; pass its descriptor, or \
         open the window with fallback to memslots"
    )]
    HostMemory {
        /// The range asked for.
        range: PageRange,
        /// The host address asked for.
        address: u64,
        /// What it is that cannot be shared.
        reason: &'static str,
        /// What the kernel said, where it was asked.
        #[source]
        source: Option<io::Error>,
    },
    /// The process is close to the most memory areas that the kernel allows it.
    #[error(
        "cannot change {range}: it needs {needed} more memory areas, {used} of vm.max_map_count = \
         {limit} are used or spoken for and {headroom} are kept for unmapping; unmap something, \
         or raise vm.max_map_count"
    )]
    MapCount {
        /// The range asked for.
        range: PageRange,
        /// Areas that the call would add.
        needed: usize,
        /// Areas in use by this process, windows counted at their worst.
        used: usize,
        /// `vm.max_map_count`.
        limit: usize,
        /// Areas kept free so that unmapping always works.
        headroom: usize,
    },
    /// The kernel made no mapping of the source. The arena was not touched.
    #[error("cannot make a mapping for {range}")]
    Stage {
        /// The range asked for.
        range: PageRange,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The pages could not be brought in before the mapping was put in place: the file has lost
    /// them (`EFAULT`), or the host has no memory for them.
    #[error(
        "cannot bring in the pages for {range}: nothing has changed; look whether the source still \
         has them all, or map it without prefault"
    )]
    Prefault {
        /// The range asked for.
        range: PageRange,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel did not put the mapping, or the hole, in its place.
    #[error("cannot put memory in place at {range}: {state}")]
    Place {
        /// The range asked for.
        range: PageRange,
        /// What stands there now.
        state: StateAfter,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel did not reserve address space for the window.
    #[error("cannot reserve {len:#x} bytes of address space for the window")]
    Reserve {
        /// Length of the window, in bytes.
        len: u64,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// More slots are needed than the window was given numbers for.
    #[error(
        "cannot register {needed} more memslots: {used} of the window's {given} slot numbers are \
         in use; give it more, or use larger segments"
    )]
    SlotNumbers {
        /// Slots that the call would add.
        needed: usize,
        /// Slots registered now.
        used: usize,
        /// Slot numbers that the window was opened with.
        given: usize,
    },
    /// The hypervisor did not register or unregister a memslot.
    #[error("cannot {verb} memslot {number} at guest address {guest}, {len:#x} bytes: {state}")]
    Slot {
        /// `register` or `unregister`.
        verb: &'static str,
        /// Number of the slot.
        number: u32,
        /// Guest address of the slot.
        guest: GuestAddress,
        /// Length of the slot, in bytes.
        len: u64,
        /// What the failure left behind.
        state: StateAfter,
        /// What the hypervisor said.
        #[source]
        source: io::Error,
    },
    /// A DMA listener did not map or unmap a mapping: for lack of locked memory (`ENOMEM`, see
    /// `RLIMIT_MEMLOCK`) or of room in its table (`ENOSPC`), or because the memory cannot be pinned
    /// (`EFAULT`) or the address is none for devices (`EINVAL`), where it is VFIO.
    #[error("cannot {verb} {len:#x} bytes at guest address {guest} for DMA: {state}")]
    Dma {
        /// `map` or `unmap`.
        verb: &'static str,
        /// Guest address of the mapping.
        guest: GuestAddress,
        /// Length of the mapping, in bytes.
        len: u64,
        /// What the failure left behind.
        state: StateAfter,
        /// What the listener said.
        #[source]
        source: io::Error,
    },
    /// A change of memory that is pinned.
    #[error(
        "cannot change {range}: {pinned} is pinned, after {ms} ms of waiting; let go of the pin, \
         or wait longer for it",
        ms = .waited.as_millis()
    )]
    Pinned {
        /// The range asked for.
        range: PageRange,
        /// The range of a pin that overlaps it.
        pinned: PageRange,
        /// How long the call waited for it.
        waited: Duration,
    },
    /// A pin of a range in which not everything is mapped.
    #[error("cannot pin {range}: nothing is mapped at {hole}")]
    NotMapped {
        /// The range asked for.
        range: PageRange,
        /// The first hole in it.
        hole: PageRange,
    },
    /// An access to bytes that the pin does not hold.
    #[error("cannot access {len:#x} bytes at {offset:#x} of the pin: it holds {pinned}")]
    OutsidePin {
        /// The range of the pin.
        pinned: PageRange,
        /// The first byte asked for, counted from the start of the pin.
        offset: u64,
        /// How many were asked for.
        len: u64,
    },
    /// A write to a mapping that is read-only. Nothing has been written.
    #[error("cannot write to {mapping}: it is mapped read-only")]
    ReadOnly {
        /// The mapping.
        mapping: PageRange,
    },
    /// Memory that can only be reached by copies, and was asked for directly.
    #[error(
        "cannot touch {range} directly: {reason}; read and write it through a pin, or let the \
         region copy"
    )]
    NotDirect {
        /// The range asked for.
        range: PageRange,
        /// What speaks against it.
        reason: &'static str,
    },
    /// Copies of window memory that would take more room than the region may use.
    #[error(
        "cannot copy {needed:#x} bytes of the window: copies of {used:#x} are in use, and the \
         region may use {limit:#x}; let go of some, or open the region with more"
    )]
    CopyLimit {
        /// How many bytes were asked for.
        needed: usize,
        /// How many are in use.
        used: usize,
        /// How many there may be.
        limit: usize,
    },
    /// Memory that is mapped and not there: the file behind it has lost the page, or the host has
    /// none for it.
    #[error(
        "cannot {verb} {len:#x} bytes at {offset:#x} of the window: only {done:#x} could be \
         reached; the file behind them may have been truncated"
    )]
    Access {
        /// `read` or `write`.
        verb: &'static str,
        /// The first byte asked for, counted from the start of the window.
        offset: u64,
        /// How many were asked for.
        len: u64,
        /// How many were copied before the kernel stopped, from the first on.
        done: u64,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// An earlier failure poisoned the window.
    #[error("cannot use the window: an earlier failure poisoned it; close it")]
    Poisoned,
    /// Root invalidation would run on workers, on any CPU.
    #[error(
        "cannot invalidate the roots in the calling task: this host's kernel leaves the work to \
         workers on any CPU ({evidence}); allow that, or use a kernel from 6.6, 6.5.6 or 6.1.60 on"
    )]
    WorkerZaps {
        /// How that was found out.
        evidence: String,
    },
    /// Root invalidation needs the zap-all behaviour, which was switched off for this VM.
    #[error(
        "cannot invalidate the roots: precise zapping was switched on for this VM, so deleting a \
         memslot drops that slot's translations only"
    )]
    PreciseZap,
    /// The hypervisor offers precise zapping and did not switch it on.
    #[error("cannot switch precise zapping on for the VM")]
    PreciseZapRefused {
        /// What the hypervisor said.
        #[source]
        source: io::Error,
    },
    /// A prepared batch of another window.
    #[error("cannot commit the prepared batch: another window prepared it; commit it there")]
    OtherWindow,
    /// No guest page is free for the slot that root invalidation creates and deletes.
    #[error(
        "cannot invalidate the roots: every page of the window lies under a memslot; open the \
         window with a scratch page"
    )]
    NoScratchPage,
    /// A log of dirty pages that a provider cannot keep.
    #[error(
        "cannot start dirty logging: the slot provider has no log of dirty pages; use one that has"
    )]
    DirtyLogUnsupported,
    /// A log of dirty pages that is on already.
    #[error("cannot start dirty logging: it is on already; stop it first")]
    DirtyLogOn,
    /// A log of dirty pages that was not started.
    #[error("cannot take or stop the dirty log: dirty logging is off; start it first")]
    DirtyLogOff,
    /// The hypervisor did not switch the log of a slot's dirty pages.
    #[error(
        "cannot switch dirty logging {} for memslot {number} at guest address {guest}, {len:#x} \
         bytes: {}",
        if *.on { "on" } else { "off" },
        if *.on { "logging is off" } else { "this slot goes on logging; stop it again" }
    )]
    DirtyLogSwitch {
        /// Whether it was to be switched on.
        on: bool,
        /// Number of the slot.
        number: u32,
        /// Guest address of the slot.
        guest: GuestAddress,
        /// Length of the slot, in bytes.
        len: u64,
        /// What the hypervisor said.
        #[source]
        source: io::Error,
    },
    /// The hypervisor's log of a slot was not to be had, or is of another length than the slot.
    #[error(
        "cannot fetch the hypervisor's dirty log of memslot {number}: what was fetched is kept; \
         take the log again"
    )]
    DirtyLogFetch {
        /// Number of the slot.
        number: u32,
        /// What the hypervisor said.
        #[source]
        source: io::Error,
    },
    /// A record that does not fit the window, or that no window can have made.
    #[error("cannot replay the record: {reason}")]
    Record {
        /// What is wrong with it.
        reason: String,
    },
    /// A source that is not what the record says.
    #[error(
        "cannot replay the record: {range} was {recorded}, and its source is {found}; pass the \
         recorded file, or use replay_copies for a copy of it"
    )]
    RecordedSource {
        /// The mapping's range.
        range: PageRange,
        /// What the record says.
        recorded: String,
        /// What the resolver gave.
        found: String,
    },
    /// A replay into a window that already has mappings.
    #[error(
        "cannot replay the record: the window has {mappings} mappings; replay into an empty one"
    )]
    NotEmpty {
        /// Mappings in the window.
        mappings: usize,
    },
    /// The resolver had no source for a mapping of the record.
    #[error("cannot replay the record: no source for the mapping at {range}")]
    Resolve {
        /// The mapping's range.
        range: PageRange,
        /// What the resolver said.
        #[source]
        source: io::Error,
    },
}

#[cfg(test)]
mod tests;
