//! Owns the public face: a window, and the operations on it. Never calls the kernel itself: each
//! operation is prepared and then carried out under the window's lock (`change`).

mod alignment;
#[cfg(feature = "fault")]
pub(crate) mod armed;
pub(crate) mod batch;
#[cfg(test)]
mod call_faults;
mod change;
mod content;
pub(crate) mod counters;
pub(crate) mod dirty;
pub(crate) mod hold;
pub(crate) mod holes;
mod huge;
mod listeners;
mod merge;
mod open;
pub(crate) mod options;
pub(crate) mod pins;
mod plan;
mod prefault;
mod prepare;
pub(crate) mod prepared;
mod recovery;
mod replay;
mod saved;
mod shared;
#[cfg(feature = "fault")]
pub(crate) mod substitute;
#[cfg(feature = "fault")]
pub(crate) mod touch;
mod transaction;

use std::sync::PoisonError;

use batch::{Batch, Change};
use counters::{Counters, count};
use options::{Zap, check_base};
use recovery::OnFailure;
use shared::Shared;
use transaction::State;

use crate::backend::BackendKind;
use crate::error::Error;
use crate::host::{ZapMode, ZapReport};
use crate::layout::Mapping;
use crate::layout::record::LayoutRecord;
use crate::range::{GuestAddress, PAGE_SIZE, PageRange};
use crate::source::{Protection, Source};
use crate::sync::Mutex;

/// A guest-physical range whose backing the VMM changes while the guest runs.
///
/// **Ordering.** When a call returns, no vCPU can reach the old memory any more and every vCPU sees
/// the new: KVM's range zap ran in the calling task, inside the system call (Linux:
/// `Documentation/virt/kvm/api.rst`, `KVM_CAP_SYNC_MMU`; `virt/kvm/kvm_main.c`
/// `kvm_mmu_notifier_invalidate_range_start`). Answer a peer after the call, not before.
///
/// **Threads.** All calls take `&self` and can be made from any thread; a window makes one change
/// at a time, and what a source needs before that runs side by side.
///
/// **Failures.** A call that fails has changed nothing, unless its error says otherwise with
/// [`Error::state_after`]. A segment that was registered for it stays registered.
///
/// **Memory.** The library hands out no reference to guest memory, and reads and writes it through
/// a [`Pin`](crate::Pin) only. A change that meets a pin waits for it, or is refused with
/// [`Error::Pinned`], as [`OnPinned`](crate::OnPinned) says; that goes for every change below.
///
/// ```
/// # #[cfg(feature = "kvm")]
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::os::fd::AsFd;
/// use std::sync::Arc;
/// use vm_remap::{GuestAddress, PageRange, Protection, SlotNumbers, Source, WindowOptions};
///
/// # let Ok(kvm) = kvm_ioctls::Kvm::new() else { return Ok(()) };
/// let vm = Arc::new(kvm.create_vm()?);
/// // 1 GiB at guest address 4 GiB, with slot numbers that nothing else in the VM uses.
/// let window = WindowOptions::new(GuestAddress(4 << 30), 1 << 30)
///     .open(vm, SlotNumbers::new(16..32))?;
///
/// let blob = rustix::fs::memfd_create("blob", rustix::fs::MemfdFlags::CLOEXEC)?;
/// rustix::fs::ftruncate(&blob, 2 << 20)?;
/// let range = PageRange::new(0, 2 << 20)?;
/// window.map(range, &Source::descriptor(blob.as_fd(), 0), Protection::ReadWrite)?;
/// // The guest reads and writes the blob at 4 GiB now.
/// window.unmap(range)?;
/// window.close()?;
/// # Ok(())
/// # }
/// # #[cfg(not(feature = "kvm"))]
/// # fn main() {}
/// ```
#[derive(Debug)]
pub struct Window {
    // Dropped before the arena: `close` empties the table while the memory is still there.
    state: Mutex<State>,
    shared: Shared,
    kind: BackendKind,
    zap: Zap,
    scratch: Option<GuestAddress>,
    closed: bool,
}

/// What lies at a guest address.
#[derive(Clone, Debug)]
pub struct Found {
    /// The whole mapping.
    pub mapping: Mapping,
    /// How far into the mapping the address lies, in bytes.
    pub offset: u64,
    /// The host address of that byte, for calls of the hypervisor or an IOMMU. Memory there can
    /// vanish with the next call on the window: nothing in the VMM may touch it.
    pub host_address: u64,
}

/// Whether [`Window::invalidate_roots`] may run where workers on any CPU do the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnWorkers {
    /// Return an error instead.
    Refuse,
    /// Go ahead; the caller's CPU affinity and priority do not hold for the work.
    Allow,
}

impl Window {
    /// Puts `source` at `range`, which must be a hole.
    ///
    /// # Errors
    /// [`Error::Occupied`] where anything is mapped there already, and every error that tells
    /// what is wrong with the range or the source. All of these leave everything as it was. The
    /// kernel refusing the last step ([`Error::Place`], [`Error::Slot`]) leaves the hole there was.
    pub fn map(
        &self,
        range: PageRange,
        source: &Source<'_>,
        protection: Protection,
    ) -> Result<(), Error> {
        self.change(
            &[Change::Map {
                range,
                source: *source,
                protection,
            }],
            OnFailure::Hole,
        )
    }

    /// Puts `source` at `range`, whatever is there; mappings that reach beyond it are cut.
    ///
    /// With `fixed` it is atomic for the guest: each access sees the old memory or the new, never
    /// a hole between them. With `memslot` the guest meets a range without memory in between, as
    /// deleting and creating a memslot has it.
    ///
    /// # Errors
    /// As [`map`](Self::map), but for [`Error::Occupied`]. Where the kernel refuses the last step,
    /// the range is a hole.
    pub fn replace(
        &self,
        range: PageRange,
        source: &Source<'_>,
        protection: Protection,
    ) -> Result<(), Error> {
        self.change(
            &[Change::Replace {
                range,
                source: *source,
                protection,
            }],
            OnFailure::Hole,
        )
    }

    /// Makes `range` a hole; mappings that reach beyond it are cut. Holes in it stay as they are.
    ///
    /// Cutting a mapping at an address that is no multiple of 2 MiB makes the kernel drop the
    /// guest's translations of the whole 2 MiB around it, once (Linux: `mm/huge_memory.c`
    /// `vma_adjust_trans_huge`).
    ///
    /// # Errors
    /// [`Error::OutsideWindow`]; [`Error::Place`] where the kernel refused, which leaves what was
    /// there. With `memslot`, also [`Error::Slot`] and, for what a cut leaves over,
    /// [`Error::SlotNumbers`]; these leave everything as it was.
    pub fn unmap(&self, range: PageRange) -> Result<(), Error> {
        self.change(&[Change::Unmap { range }], OnFailure::Hole)
    }

    /// Makes all changes of `batch`, or none of them: what is there in the end is what making them
    /// in their order gives.
    ///
    /// Changes that lie side by side are made together where one system call can: unmaps, and
    /// maps or replaces that go on in the same descriptor with the same protection. Then KVM drops
    /// what the guest had there at once, with one TLB flush, instead of once for each change, and
    /// where the guest had nothing, without any. They stay mappings of their own, each with its
    /// label.
    ///
    /// The guest can see some changes before others, in any order, and of each range the old
    /// memory or what is there in the end, nothing between. A batch that fails half-way is taken
    /// back, and the guest can see that as well. An empty batch does nothing.
    ///
    /// # Errors
    /// As the single operations, each with everything left as it was, or with the window poisoned
    /// where the kernel refused even that ([`Error::state_after`] tells).
    pub fn commit(&self, batch: &Batch<'_>) -> Result<(), Error> {
        let on_pinned = batch.on_pinned.unwrap_or(self.shared.on_pinned);
        self.change_when(&batch.changes, OnFailure::PutBack, on_pinned)?;
        count(&self.shared.tally.batches);
        Ok(())
    }

    /// Moves the whole window to another guest address, as when the guest moves a BAR: the one
    /// operation that deletes memslots and creates them again. Mappings keep their offsets and
    /// their memory. Nothing of the window is visible to the guest in between.
    ///
    /// The arena stays where it is. A `base` that is not congruent with the old one modulo 2 MiB
    /// costs the guest its huge translations there, and nothing else.
    ///
    /// # Errors
    /// [`Error::BadGuestAddress`]; [`Error::Slot`] where the hypervisor refused, for an overlap
    /// with another slot of the VM for instance; [`Error::Dma`] where a listener did. The window
    /// stays where it was then, or is poisoned where even that was refused.
    pub fn relocate(&self, base: GuestAddress) -> Result<(), Error> {
        check_base(base, self.shared.geometry.window.len())?;
        self.guarded(|state| state.relocate(&self.shared, base))
    }

    /// Unmaps everything for DMA, unregisters every memslot of the window and gives its address
    /// space back. Dropping a window does the same, and logs what fails.
    ///
    /// # Errors
    /// [`Error::Slot`] where the hypervisor kept a slot, [`Error::Dma`] where a listener kept a
    /// mapping. The address space under it is then never given back, since the guest or a device
    /// still reaches it; the window is gone all the same.
    pub fn close(mut self) -> Result<(), Error> {
        self.shut()
    }

    fn shut(&mut self) -> Result<(), Error> {
        self.closed = true;
        // Given back only when every slot is known to be gone: a hypervisor can fail, or panic.
        self.shared.arena.set_leaked(true);
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        // Prepared batches can live on, and the budget with them.
        let mappings = isize::try_from(state.layout.len()).unwrap_or(isize::MAX);
        self.shared.areas.give_back(mappings);
        let unmapped = state.dma.unmap_what_goes();
        state.slots.unregister_what_goes().and(unmapped)?;
        // What lies in a poisoned arena is not known.
        self.shared.arena.set_leaked(state.poisoned);
        Ok(())
    }

    /// Makes KVM drop every translation of the VM, by creating a memslot of one page and deleting
    /// it. When the call returns the work is done: by the calling task, unless the answer says
    /// otherwise. A last resort, for a VMM that must be sure of more than this window.
    ///
    /// Precise zapping that something else switched on for the VM is not seen here: the call then
    /// invalidates nothing.
    ///
    /// # Errors
    /// [`Error::WorkerZaps`] on a host that leaves the work to workers, unless `on_workers` allows
    /// it; [`Error::PreciseZap`] where this window switched precise zapping on;
    /// [`Error::NoScratchPage`] where no guest page is free; [`Error::SlotNumbers`] and
    /// [`Error::Slot`] from the slot itself. Nothing has changed then.
    pub fn invalidate_roots(&self, on_workers: OnWorkers) -> Result<ZapMode, Error> {
        if self.zap == Zap::Precise {
            return Err(Error::PreciseZap);
        }
        let report = ZapReport::of_this_host();
        if report.mode == ZapMode::Worker && on_workers == OnWorkers::Refuse {
            return Err(Error::WorkerZaps {
                evidence: report.evidence.clone(),
            });
        }
        let window = self.shared.geometry.window;
        self.guarded(|state| {
            let slots = &mut state.slots;
            // Each page of the window lies over its own part of the arena; a scratch page, over
            // the first.
            let own = slots.free_page(window);
            let guest = match own {
                Some(offset) => slots.base().checked_add(offset),
                None => self.scratch,
            };
            let host = self.shared.arena.address(own.unwrap_or(0));
            slots.flash(guest.ok_or(Error::NoScratchPage)?, host, PAGE_SIZE)
        })?;
        Ok(report.mode)
    }

    /// What is mapped at a guest address, if anything.
    #[must_use]
    pub fn lookup(&self, address: GuestAddress) -> Option<Found> {
        let state = self.state();
        let offset = address.0.checked_sub(state.slots.base().0)?;
        let mapping = state.layout.at(offset)?.clone();
        let into = mapping.range.distance_to(offset);
        let host_address = match mapping.in_place() {
            Some(address) => address.wrapping_add(into),
            None => self.shared.arena.address(offset),
        };
        Some(Found {
            mapping,
            offset: into,
            host_address,
        })
    }

    /// The mapping at an offset, wherever the window lies by now.
    #[cfg(feature = "vhost-user")]
    pub(crate) fn mapping_at(&self, offset: u64) -> Option<Mapping> {
        self.state().layout.at(offset).cloned()
    }

    /// All mappings at this instant, by ascending offset.
    #[must_use]
    pub fn mappings(&self) -> Vec<Mapping> {
        self.state().layout.iter().cloned().collect()
    }

    /// What the window has done, and what it holds.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let state = self.state();
        let (slots_registered, slots_unregistered) = state.slots.calls();
        Counters {
            slots_registered,
            slots_unregistered,
            slots: state.slots.len() as u64,
            mappings: state.layout.len() as u64,
            mapped_bytes: state.layout.mapped(),
            pins: state.pins.len() as u64,
            ..self.shared.tally.read()
        }
    }

    /// A record of what is mapped where, for a snapshot. It has no memory contents in it.
    #[must_use]
    pub fn record(&self) -> LayoutRecord {
        let state = self.state();
        LayoutRecord::of(
            &state.layout,
            state.slots.base(),
            self.shared.geometry.window.len(),
        )
    }

    /// The guest address of the window's first byte.
    #[must_use]
    pub fn base(&self) -> GuestAddress {
        self.state().slots.base()
    }

    /// The window's length in bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a window is never of 0 bytes")]
    pub fn len(&self) -> u64 {
        self.shared.geometry.window.len()
    }

    /// The backend that the window was opened with.
    #[must_use]
    pub fn backend(&self) -> BackendKind {
        self.kind
    }

    /// What deleting a memslot drops: [`Zap::Precise`] only where it was asked for and the
    /// hypervisor offers it.
    #[must_use]
    pub fn zap(&self) -> Zap {
        self.zap
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        if !self.closed
            && let Err(error) = self.shut()
        {
            log::error!("cannot close the window: {error}");
        }
    }
}
