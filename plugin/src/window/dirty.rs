//! Owns the window's side of dirty logging: what its own changes did to the guest's pages, slot by
//! slot, in the form that KVM has. Never reads a page, and never asks KVM itself.

use std::io;

use super::Window;
use super::transaction::State;
use crate::error::Error;
use crate::layout::Undo;
use crate::range::{GuestAddress, PAGE_SIZE, PageRange};
use crate::slots::Slot;

/// The pages of one memslot that have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlotDirtyLog {
    /// The slot, as it is registered.
    pub slot: Slot,
    /// Bit `n % 64` of word `n / 64` stands for page `n` of the slot, counted from 0 in pages of
    /// 4 KiB. There are as many words as `KVM_GET_DIRTY_LOG` has for the slot.
    pub bitmap: Vec<u64>,
}

impl SlotDirtyLog {
    /// The guest addresses of the pages that have changed, ascending.
    pub fn addresses(&self) -> impl Iterator<Item = GuestAddress> {
        let words = self.bitmap.iter();
        let bits = words.flat_map(|word| (0..u64::BITS).map(move |bit| word.wrapping_shr(bit) & 1));
        let dirty = (0_u64..).zip(bits).filter(|(_, bit)| *bit == 1);
        let base = self.slot.guest_address();
        dirty.filter_map(move |(page, _)| base.checked_add(page.checked_mul(PAGE_SIZE)?))
    }
}

/// Dirty logging, for live migration.
///
/// KVM logs the pages that the guest writes. It logs nothing when memory is put under a slot, and
/// forgets its log when a slot is deleted. From [`start_dirty_log`](Self::start_dirty_log) to
/// [`stop_dirty_log`](Self::stop_dirty_log) the window keeps track of both, so that the two logs
/// together miss nothing:
///
/// 1. `start_dirty_log`, and start the VM's other slots; then copy everything.
/// 2. In each round, [`take_dirty_log_with`](Self::take_dirty_log_with) and KVM's log **before**
///    the round's first page is read. For each page: where [`lookup`](Self::lookup) finds a
///    mapping, copy the page from it; where it finds none, the page is a hole and the copy has
///    none either.
/// 3. At the end pause the vCPUs, make no more changes, take a last round and the
///    [`record`](Self::record). **What the record does not list is a hole**, also where no slot
///    lies and no log speaks of it.
///
/// A page counts as changed where a change put other memory there or took it away (its content is
/// gone then, also where the call failed and left a hole, or put the old memory back), where
/// [`mark_dirty`](Self::mark_dirty) says so, and where its memslot was deleted and created again.
/// That is the case for every page of the window in [`relocate`](Self::relocate), of the mapping
/// with the backend `memslot`, and of the segment where `fixed` falls back to a memslot.
///
/// What writes to a file behind the window's back is nobody's to see: another process, a device,
/// or the guest through a second mapping of the same bytes. Whoever allows that copies those pages
/// in the last round.
///
/// It takes a bit for each page of a registered slot, 32 KiB for each GiB, and nothing when it is
/// off.
impl Window {
    /// The memslots that are registered now, by ascending guest address. Another thread's call can
    /// change them: numbers that came back are given out again.
    #[must_use]
    pub fn slots(&self) -> Vec<Slot> {
        self.state().slots.slots()
    }

    /// Starts dirty logging: the hypervisor's, for every slot that is registered and every one that
    /// will be, and the window's own. All pages are clean at first.
    ///
    /// # Errors
    /// [`Error::DirtyLogUnsupported`] where the provider cannot; [`Error::DirtyLogOn`];
    /// [`Error::DirtyLogSwitch`] where the hypervisor refused, with every slot put back.
    pub fn start_dirty_log(&self) -> Result<(), Error> {
        self.guarded(|state| state.slots.start_dirty_log())
    }

    /// The pages that have changed by the window's own doing since the log was started, or taken
    /// the last time, for every registered slot. They are clean afterwards.
    ///
    /// Whoever asks KVM for its log apart from this must know that no other thread changes the
    /// window meanwhile: a slot number can be another slot's by then, with a longer bitmap.
    /// [`take_dirty_log_with`](Self::take_dirty_log_with) asks in time.
    ///
    /// # Errors
    /// [`Error::DirtyLogOff`] where logging is not on.
    pub fn take_dirty_log(&self) -> Result<Vec<SlotDirtyLog>, Error> {
        self.take(|_| Ok(None))
    }

    /// The same, with the pages that the guest has written: `fetch` returns the hypervisor's bitmap
    /// for a slot and clears it there (`KVM_GET_DIRTY_LOG`, or that and `KVM_CLEAR_DIRTY_LOG`). It
    /// runs under the window's lock, so no slot changes meanwhile, and must not call the window.
    ///
    /// ```
    /// # #[cfg(feature = "kvm")]
    /// # fn round(window: &vm_remap::Window, vm: &kvm_ioctls::VmFd) -> Result<(), vm_remap::Error> {
    /// let logs = window.take_dirty_log_with(|slot| {
    ///     Ok(vm.get_dirty_log(slot.number(), slot.len() as usize)?)
    /// })?;
    /// # let _ = logs;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::DirtyLogOff`] where logging is not on; [`Error::DirtyLogFetch`] where `fetch`
    /// failed or its bitmap has another length. The bitmaps fetched before are kept, so that the
    /// next call has them.
    pub fn take_dirty_log_with(
        &self,
        mut fetch: impl FnMut(&Slot) -> io::Result<Vec<u64>>,
    ) -> Result<Vec<SlotDirtyLog>, Error> {
        self.take(|slot| fetch(slot).map(Some))
    }

    fn take(
        &self,
        fetch: impl FnMut(&Slot) -> io::Result<Option<Vec<u64>>>,
    ) -> Result<Vec<SlotDirtyLog>, Error> {
        let mut state = self.state();
        if state.poisoned {
            return Err(Error::Poisoned);
        }
        let logs = state.slots.take_dirty_log(fetch)?;
        Ok(logs
            .into_iter()
            .map(|(slot, bitmap)| SlotDirtyLog { slot, bitmap })
            .collect())
    }

    /// Stops dirty logging. The window's own log is gone in any case.
    ///
    /// # Errors
    /// [`Error::DirtyLogOff`] where logging is not on; [`Error::DirtyLogSwitch`] where a slot could
    /// not be switched off: it goes on logging, which costs the guest time and harms nothing, and
    /// another call tries again.
    pub fn stop_dirty_log(&self) -> Result<(), Error> {
        self.guarded(|state| state.slots.stop_dirty_log())
    }

    /// Says that the VMM has written to the pages of `range`. Call it after the write. Does nothing
    /// while logging is off, and for what lies under no slot or outside the window.
    pub fn mark_dirty(&self, range: PageRange) {
        self.state().slots.mark_dirty(range);
    }
}

impl State {
    /// What a change is about to change, where anybody wants to know.
    pub(super) fn to_report(&self, undos: &[Undo]) -> Vec<PageRange> {
        if !self.slots.logs_dirty_pages() {
            return Vec::new();
        }
        undos.iter().map(Undo::range).collect()
    }

    /// Marks what has changed, when the slots are what they will be.
    pub(super) fn report(&mut self, changed: &[PageRange], placed: bool) {
        if placed {
            for range in changed {
                self.slots.mark_dirty(*range);
            }
        }
        self.slots.settle_dirty_log();
    }
}
