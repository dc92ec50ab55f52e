//! Owns what a memslot is and the two calls that a host hypervisor offers for it, as a trait.
//! Never decides which slots there are.

mod dirty;
#[cfg(feature = "kvm")]
mod kvm;
#[cfg(feature = "kvm")]
pub(crate) mod kvm_prefault;
#[cfg(test)]
#[path = "../../tests/common/recorder.rs"]
#[expect(
    unreachable_pub,
    dead_code,
    reason = "shared with the tests of the public face"
)]
pub(crate) mod recorder;
pub(crate) mod switch;
pub(crate) mod table;

use std::fmt::Debug;
use std::io;
use std::ops::Range;

use crate::range::GuestAddress;

/// A memslot: host memory registered at a guest address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    number: u32,
    guest: GuestAddress,
    len: u64,
    host: u64,
    read_only: bool,
    logs_dirty_pages: bool,
}

impl Slot {
    /// The slot's number, one of those that the window was given.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Guest address of its first byte, a multiple of 4 KiB.
    #[must_use]
    pub fn guest_address(&self) -> GuestAddress {
        self.guest
    }

    /// Its length in bytes, a multiple of 4 KiB and above 0.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a slot is never empty")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Host address of its first byte, a multiple of 4 KiB.
    #[must_use]
    pub fn host_address(&self) -> u64 {
        self.host
    }

    /// Whether guest writes leave to the VMM (`KVM_MEM_READONLY`).
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether the hypervisor keeps a log of the pages that the guest writes (KVM:
    /// `KVM_MEM_LOG_DIRTY_PAGES`).
    #[must_use]
    pub fn logs_dirty_pages(&self) -> bool {
        self.logs_dirty_pages
    }
}

/// The host hypervisor's side: register a slot, unregister a slot.
///
/// One provider can serve several windows of a VM, from several threads.
///
/// # Safety
/// The memory of a slot may be given back, and reused for anything, once `unregister` has
/// returned `Ok` for it: from then on the hypervisor must not touch it on behalf of the guest, on
/// any vCPU. An implementation that cannot promise that returns an error, and the window then
/// never gives the memory back. Likewise, once `register` has returned an error for a slot, the
/// hypervisor must not touch its memory. After a panic in either, the window takes the slot for
/// registered.
///
/// Both are called under the window's lock: they must not call back into the window.
#[expect(
    unsafe_code,
    reason = "the window frees memory on the word of the implementor"
)]
pub unsafe trait SlotProvider: Debug + Send + Sync {
    /// Registers `slot`; the guest reaches the memory from then on.
    ///
    /// # Safety
    /// The memory of the slot must be mapped, with no Rust reference into it, until `unregister`
    /// has returned `Ok` for it.
    ///
    /// # Errors
    /// What the hypervisor said; the slot is not registered then.
    unsafe fn register(&self, slot: &Slot) -> io::Result<()>;

    /// Unregisters `slot`, exactly as it was registered, and waits until no vCPU can reach it.
    ///
    /// # Errors
    /// What the hypervisor said; the slot is still registered then.
    fn unregister(&self, slot: &Slot) -> io::Result<()>;

    /// Makes the deletion of a memslot drop that slot's translations only, where the hypervisor
    /// offers that (KVM: `KVM_X86_QUIRK_SLOT_ZAP_ALL`, Linux 6.12 on). It holds for the whole VM,
    /// and cannot be taken back. Returns whether it holds now; `false` by default.
    ///
    /// # Errors
    /// What the hypervisor said, where it offers the switch and refused it.
    fn enable_precise_zap(&self) -> io::Result<bool> {
        Ok(false)
    }

    /// Whether the provider heeds [`Slot::logs_dirty_pages`], in [`register`](Self::register) and in
    /// [`log_dirty_pages`](Self::log_dirty_pages); `false` by default, and
    /// [`start_dirty_log`](crate::Window::start_dirty_log) is refused then.
    fn can_log_dirty_pages(&self) -> bool {
        false
    }

    /// Switches the log of dirty pages of a registered slot on or off, as
    /// [`slot.logs_dirty_pages()`](Slot::logs_dirty_pages) says, without unregistering it.
    ///
    /// # Safety
    /// `slot` must be registered, with the same figures but for that flag.
    ///
    /// # Errors
    /// What the hypervisor said; the flag is what it was then. [`io::ErrorKind::Unsupported`] by
    /// default.
    unsafe fn log_dirty_pages(&self, slot: &Slot) -> io::Result<()> {
        let _ = slot;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Whether [`prefault`](Self::prefault) can be expected to work. A window asks once, when it
    /// opens; `false` by default.
    fn can_prefault(&self) -> bool {
        false
    }

    /// Fills the guest's translations of `len` bytes at `guest`, as if the guest had read each
    /// page; both are multiples of 4 KiB. It changes nothing that the guest can see but the time
    /// that it takes. Calls can come from several threads at once.
    ///
    /// # Errors
    /// What the hypervisor said; a part may be filled then. [`io::ErrorKind::Unsupported`] by
    /// default.
    fn prefault(&self, guest: GuestAddress, len: u64) -> io::Result<()> {
        let _ = (guest, len);
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// The slot numbers that a window may use, and nothing else in the VM does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotNumbers(pub(crate) Range<u32>);

impl SlotNumbers {
    /// The numbers of `range`. How many a window needs: `fixed` one for each segment, `memslot`
    /// one for each mapping, and either one more for
    /// [`invalidate_roots`](crate::Window::invalidate_roots).
    #[must_use]
    pub fn new(range: Range<u32>) -> Self {
        Self(range)
    }
}
