//! Owns what a listener for DMA is: who else, beside the hypervisor, has to hear of a change of
//! memory. Never decides what is mapped.

pub(crate) mod table;
#[cfg(feature = "vfio")]
pub(crate) mod vfio;

use std::fmt::Debug;
use std::io;

use crate::range::GuestAddress;

/// Memory that devices reach by DMA: one whole mapping of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaMapping {
    guest: GuestAddress,
    len: u64,
    host: u64,
    writable: bool,
}

impl DmaMapping {
    /// Guest address of its first byte, the address that a device uses; a multiple of 4 KiB.
    #[must_use]
    pub fn guest_address(&self) -> GuestAddress {
        self.guest
    }

    /// Its length in bytes, a multiple of 4 KiB and above 0.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a mapping is never empty")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Host address of its first byte, a multiple of 4 KiB.
    #[must_use]
    pub fn host_address(&self) -> u64 {
        self.host
    }

    /// Whether a device may write; it may always read.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.writable
    }
}

/// Who gives devices access to a window's memory: the container of an IOMMU.
///
/// An IOMMU keeps the pages that it was given. It does not follow when other memory comes to their
/// host address, so a window tells its listeners of each change: `unmap` before the memory
/// changes, `map` after it has changed.
///
/// - Holes are never mapped. A window of holes costs a listener nothing.
/// - Each mapping is mapped whole, and unmapped as it was mapped. A mapping that is cut is
///   unmapped whole, and what is left of it is mapped again.
/// - A listener may leave a mapping out and say `Ok`: devices then find nothing there.
/// - Of several listeners the one that was added first maps first and unmaps last.
/// - A batch unmaps all that it changes, makes all of its changes, and maps.
///
/// **What a device sees.** Between the two calls its access to the range, and to the rest of a
/// mapping that is cut, finds nothing: the IOMMU refuses it and reports a fault to the host, and
/// the device gets an abort or reads ones. The guest has no such moment. A guest that changes a
/// mapping while a device works on it would not get away with it on real hardware either; a VMM
/// that changes one on its own account must stop the device's DMA to it first.
///
/// # Safety
/// The memory of a mapping may be given back, and reused for anything, once `unmap` has returned
/// `Ok` for it: from then on no device may reach it by way of this listener. An implementation
/// that cannot promise that returns an error, and the window then never gives the memory back.
/// Likewise, once `map` has returned an error for a mapping, no device may reach any part of it.
/// After a panic in either, the window takes the mapping for mapped.
///
/// Both are called under the window's lock: they must not call back into the window.
#[expect(
    unsafe_code,
    reason = "the window frees memory on the word of the implementor"
)]
pub unsafe trait DmaListener: Debug + Send + Sync {
    /// Lets devices reach the mapping at its guest address; they may write where it says so.
    ///
    /// # Safety
    /// The memory must be mapped, with no Rust reference into it, until `unmap` has returned `Ok`
    /// for it.
    ///
    /// # Errors
    /// What the IOMMU said; no part of it is mapped then.
    unsafe fn map(&self, mapping: &DmaMapping) -> io::Result<()>;

    /// Takes the mapping away from devices, exactly as it was mapped, and waits until none can
    /// reach it.
    ///
    /// # Errors
    /// What the IOMMU said; all of it is still mapped then.
    fn unmap(&self, mapping: &DmaMapping) -> io::Result<()>;
}

/// A listener of one window, as [`add_dma_listener`](crate::Window::add_dma_listener) named it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DmaListenerId(u64);
