//! Owns what a window can be opened with, and the checks of it. Never opens anything itself.

use super::holes::HolePolicy;
#[cfg(feature = "fault")]
use super::holes::ReadOnlyWrites;
use super::pins::OnPinned;
use crate::backend::{BackendKind, Geometry};
use crate::error::{Error, MAX_SEGMENTS};
use crate::range::{GuestAddress, HUGE_1G, PAGE_SIZE, PageRange};

/// What deleting a memslot should drop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum Zap {
    /// Every translation of the VM: what KVM does unless told otherwise.
    #[default]
    All,
    /// That slot's translations only, where the hypervisor offers it (KVM from Linux 6.12 on). It
    /// holds for the whole VM and cannot be taken back; where it is not offered the window opens
    /// all the same and [`Window::zap`](crate::Window::zap) says so.
    Precise,
}

/// How to open a window: guest range, backend and limits.
///
/// ```
/// use vm_remap::{BackendKind, GuestAddress, WindowOptions};
///
/// let options = WindowOptions::new(GuestAddress(4 << 30), 1 << 30)
///     .backend("fixed".parse::<BackendKind>()?)
///     .segment_size(256 << 20);
/// # let _ = options;
/// # Ok::<(), vm_remap::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct WindowOptions {
    pub(super) base: GuestAddress,
    pub(super) len: u64,
    pub(super) backend: BackendKind,
    pub(super) segment: u64,
    pub(super) fallback: bool,
    pub(super) zap: Zap,
    pub(super) scratch: Option<GuestAddress>,
    pub(super) on_pinned: OnPinned,
    pub(super) holes: HolePolicy,
    #[cfg(feature = "fault")]
    pub(super) read_only_writes: ReadOnlyWrites,
}

impl WindowOptions {
    /// The default size of a segment, 1 GiB.
    ///
    /// KVM keeps about 2.5 MiB of metadata for each GiB of a memslot without a TDP MMU and 2 KiB
    /// with one (Linux: `arch/x86/kvm/x86.c` `kvm_alloc_memslot_metadata`), so a window of many
    /// GiB of which little is used pays only for the segments that are. 1 GiB is also the least
    /// that leaves room for a 1 GiB translation.
    pub const DEFAULT_SEGMENT: u64 = HUGE_1G;

    /// A window of `len` bytes at the guest address `base`; both multiples of 4 KiB.
    #[must_use]
    pub fn new(base: GuestAddress, len: u64) -> Self {
        Self {
            base,
            len,
            backend: BackendKind::default(),
            segment: Self::DEFAULT_SEGMENT,
            fallback: false,
            zap: Zap::default(),
            scratch: None,
            on_pinned: OnPinned::default(),
            holes: HolePolicy::default(),
            #[cfg(feature = "fault")]
            read_only_writes: ReadOnlyWrites::default(),
        }
    }

    /// The backend; `fixed` if not set.
    #[must_use]
    pub fn backend(mut self, backend: BackendKind) -> Self {
        self.backend = backend;
        self
    }

    /// The size of a segment in bytes, a multiple of 4 KiB;
    /// [`DEFAULT_SEGMENT`](Self::DEFAULT_SEGMENT) if not set. Segments lie on multiples of their
    /// size in the guest. The backend `memslot` has none.
    #[must_use]
    pub fn segment_size(mut self, bytes: u64) -> Self {
        self.segment = bytes;
        self
    }

    /// Whether `fixed` may give host memory that it cannot share a memslot of its own, cut out
    /// of the segment's. Mapping and unmapping such memory deletes the segment's memslot and
    /// creates its parts again: that empties the guest's translations, and for a moment the guest
    /// meets no memory in the whole segment, so its vCPUs should be paused.
    /// [`Counters::fallbacks`](crate::Counters::fallbacks) counts it. Off if not set.
    #[must_use]
    pub fn fallback(mut self, allowed: bool) -> Self {
        self.fallback = allowed;
        self
    }

    /// What deleting a memslot should drop; [`Zap::All`] if not set.
    #[must_use]
    pub fn zap(mut self, zap: Zap) -> Self {
        self.zap = zap;
        self
    }

    /// A guest page that the VMM never uses, for
    /// [`invalidate_roots`](crate::Window::invalidate_roots) once every page of the window lies
    /// under a memslot. It must lie below the host's highest guest address; a multiple of 4 KiB.
    #[must_use]
    pub fn scratch_page(mut self, page: GuestAddress) -> Self {
        self.scratch = Some(page);
        self
    }

    /// What a change does that meets a [`Pin`](crate::Pin); it waits for a second if not set. A
    /// batch can have [another answer](crate::Batch::on_pinned).
    #[must_use]
    pub fn on_pinned(mut self, on_pinned: OnPinned) -> Self {
        self.on_pinned = on_pinned;
        self
    }

    /// What the guest finds where nothing is mapped; [`HolePolicy::Trap`] if not set. The backend
    /// `memslot` has no memory in a hole, and the hypervisor leaves each touch of one to the VMM.
    #[must_use]
    pub fn holes(mut self, policy: HolePolicy) -> Self {
        self.holes = policy;
        self
    }

    /// What a fault resolver does about a guest's write to a read-only mapping;
    /// [`ReadOnlyWrites::Drop`] if not set.
    #[cfg(feature = "fault")]
    #[must_use]
    pub fn read_only_writes(mut self, policy: ReadOnlyWrites) -> Self {
        self.read_only_writes = policy;
        self
    }

    /// The window as a range of offsets, if all figures make sense.
    pub(super) fn check(&self) -> Result<PageRange, Error> {
        let window = PageRange::new(0, self.len)?;
        check_base(self.base, self.len)?;
        let (size, len) = (self.segment, self.len);
        let segments = len.checked_div(size);
        if !size.is_multiple_of(PAGE_SIZE) || segments.is_none_or(|count| count > MAX_SEGMENTS) {
            return Err(Error::BadSegmentSize { size, len });
        }
        if let Some(page) = self.scratch {
            check_base(page, PAGE_SIZE)?;
        }
        Ok(window)
    }

    pub(super) fn geometry(&self, window: PageRange, arena: u64) -> Geometry {
        // `check` has seen that a segment is not 0 bytes.
        let skew = self.base.0.checked_rem(self.segment).unwrap_or(0);
        Geometry {
            window,
            arena,
            segment: self.segment,
            skew,
        }
    }
}

/// Whether `len` bytes of guest memory can lie at `base`.
pub(super) fn check_base(base: GuestAddress, len: u64) -> Result<(), Error> {
    if base.0.is_multiple_of(PAGE_SIZE) && base.checked_add(len).is_some() {
        return Ok(());
    }
    Err(Error::BadGuestAddress { base, len })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_refuses_nonsense_and_names_the_figures() {
        let text = |options: WindowOptions| options.check().unwrap_err().to_string();
        let good = WindowOptions::new(GuestAddress(0x1000), 0x1000);
        good.check().unwrap();
        assert_eq!(
            text(good.segment_size(0)),
            "cannot use segments of 0x0 bytes for a window of 0x1000: the size must be a multiple of \
             0x1000 above 0, and there can be 32764 segments"
        );
        assert_eq!(
            text(WindowOptions::new(GuestAddress(0x1001), 0x1000)),
            "cannot place a window of 0x1000 bytes at guest address 0x1001: the address must be a \
             multiple of 0x1000 and the end below 2^64"
        );
        assert!(text(WindowOptions::new(GuestAddress(0), 0)).starts_with("cannot use 0x0 bytes"));
        let at_the_end = WindowOptions::new(GuestAddress(u64::MAX - 0xfff), 0x1000);
        assert!(text(at_the_end).starts_with("cannot place a window of 0x1000 bytes"));
    }
}
