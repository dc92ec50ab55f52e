//! Owns what a VM is decorated with. Never decorates one.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use hypervisor::Vm;
use vm_remap::{BackendKind, GuestAddress, HolePolicy, ReadOnlyWrites, WindowOptions, Zap};

type Descriptor = dyn Fn(&dyn Vm) -> Option<OwnedFd> + Send + Sync;

/// How memslots are left alone: the backend of every window, and the VM's zapping.
///
/// ```
/// use vm_remap::BackendKind;
/// use vm_remap_cloud_hypervisor::RemapOptions;
///
/// let options = RemapOptions::new(BackendKind::Fixed).segment_size(256 << 20);
/// # let _ = options;
/// ```
#[derive(Clone)]
pub struct RemapOptions {
    backend: BackendKind,
    zap: Zap,
    segment: u64,
    holes: HolePolicy,
    read_only_writes: ReadOnlyWrites,
    fallback: bool,
    descriptor: Option<Arc<Descriptor>>,
}

/// Numbers for mappings that get a memslot of their own, in each window.
const SPARE: u64 = 257;
/// Numbers for a window that makes every mapping a memslot.
const MAPPINGS: u32 = 1024;

impl RemapOptions {
    /// With `fixed`, precise zapping is asked for; with `memslot` it is not, and a VM without
    /// windows is then exactly what it was without the decorator. A window of `memslot` holds 1024
    /// mappings.
    #[must_use]
    pub fn new(backend: BackendKind) -> Self {
        Self {
            backend,
            zap: match backend {
                BackendKind::Fixed => Zap::Precise,
                BackendKind::Memslot => Zap::All,
            },
            segment: WindowOptions::DEFAULT_SEGMENT,
            holes: HolePolicy::default(),
            read_only_writes: ReadOnlyWrites::default(),
            fallback: true,
            descriptor: None,
        }
    }

    /// What deleting a memslot should drop, of a window or not. [`Zap::Precise`] needs
    /// [`vm_descriptor`](Self::vm_descriptor); [`RemapVm::zap`](crate::RemapVm::zap) says what
    /// came of it.
    #[must_use]
    pub fn zap(mut self, zap: Zap) -> Self {
        self.zap = zap;
        self
    }

    /// The size of a segment, see [`WindowOptions::segment_size`].
    #[must_use]
    pub fn segment_size(mut self, bytes: u64) -> Self {
        self.segment = bytes;
        self
    }

    /// What the guest finds where nothing is mapped, see [`WindowOptions::holes`].
    #[must_use]
    pub fn holes(mut self, policy: HolePolicy) -> Self {
        self.holes = policy;
        self
    }

    /// What becomes of a guest's write to a read-only region, see
    /// [`WindowOptions::read_only_writes`].
    #[must_use]
    pub fn read_only_writes(mut self, policy: ReadOnlyWrites) -> Self {
        self.read_only_writes = policy;
        self
    }

    /// Whether a region of private or hugetlb memory, which cannot be shared with the window, gets
    /// a memslot of its own inside one; see [`WindowOptions::fallback`]. **On if not set**, since
    /// the VMM passes an address and cannot pass a descriptor: without it such a region is refused.
    /// Each such region deletes the segment's memslot and creates its parts again. At most 128 of
    /// them go into a window.
    #[must_use]
    pub fn fallback(mut self, allowed: bool) -> Self {
        self.fallback = allowed;
        self
    }

    /// How to come by a duplicate of the VM's descriptor (`KVM_CREATE_VM`'s), which the hypervisor
    /// crate does not lend out. Called once for each VM, with the VM that is decorated; the
    /// duplicate is closed again at once. With it, precise zapping can be switched on, and KVM is
    /// asked how many memslots it has instead of taking 32764 for granted.
    #[must_use]
    pub fn vm_descriptor(
        mut self,
        descriptor: impl Fn(&dyn Vm) -> Option<OwnedFd> + Send + Sync + 'static,
    ) -> Self {
        self.descriptor = Some(Arc::new(descriptor));
        self
    }

    pub(crate) fn backend(&self) -> BackendKind {
        self.backend
    }

    pub(crate) fn wants_precise_zap(&self) -> bool {
        self.zap == Zap::Precise
    }

    pub(crate) fn descriptor_of(&self, vm: &dyn Vm) -> Option<OwnedFd> {
        self.descriptor.as_ref().and_then(|hook| hook(vm))
    }

    pub(crate) fn window(&self, base: GuestAddress, len: u64, zap: Zap) -> WindowOptions {
        WindowOptions::new(base, len)
            .backend(self.backend)
            .segment_size(self.segment)
            .holes(self.holes)
            .read_only_writes(self.read_only_writes)
            .fallback(self.fallback)
            .zap(zap)
    }

    /// How many memslot numbers a window of `len` bytes gets.
    pub(crate) fn numbers(&self, len: u64) -> u32 {
        if self.backend == BackendKind::Memslot {
            return MAPPINGS;
        }
        // One more where the window does not begin with a segment.
        let segments = len.checked_div(self.segment).unwrap_or(0).saturating_add(2);
        u32::try_from(segments.saturating_add(SPARE)).unwrap_or(u32::MAX)
    }
}

impl fmt::Debug for RemapOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemapOptions")
            .field("backend", &self.backend)
            .field("zap", &self.zap)
            .field("segment", &self.segment)
            .finish_non_exhaustive()
    }
}
