//! Owns the memslots of the windows, as the hypervisor crate makes them, and the VM's dirty log
//! while it is on. Never chooses a slot.
//!
//! The `Vm` trait cannot switch the log of one slot on. `KvmVm` notes each region that is created
//! with `log_dirty_pages`, creates it without the flag, and `start_dirty_log` sets the flag for all
//! that are noted; creating a region again with the same figures takes the flag away (Linux:
//! `KVM_MR_FLAGS_ONLY`), and one that has it already is left alone. So every slot of a window is
//! created as one that is to be logged, and switched on by starting the whole VM's log, again if
//! need be.

// UNSAFETY: giving the guest access to host memory is an unsafe call of the hypervisor's, and the
// library takes the word of a provider for its end.
#![expect(unsafe_code, reason = "the hypervisor's memory calls are unsafe")]

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hypervisor::{HypervisorVmError, Vm};
use vm_remap::{PAGE_SIZE, Slot, SlotProvider};

use crate::error::io_error;

/// Slots of the decorated VM.
pub(crate) struct VmSlots {
    vm: Arc<dyn Vm>,
    precise_zap: bool,
    /// Whether the VM's dirty log is on. Held while a slot comes, so that none comes without it.
    logs: Mutex<bool>,
}

impl fmt::Debug for VmSlots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VmSlots")
            .field("precise_zap", &self.precise_zap)
            .field("logs", &self.logs)
            .finish_non_exhaustive()
    }
}

impl VmSlots {
    pub(crate) fn new(vm: Arc<dyn Vm>, precise_zap: bool) -> Self {
        Self {
            vm,
            precise_zap,
            logs: Mutex::new(false),
        }
    }

    pub(crate) fn log_is_on(&self) -> bool {
        *self.logs()
    }

    /// Starts the log of the whole VM; after a failure it is as it was.
    pub(crate) fn start_log(&self) -> Result<(), HypervisorVmError> {
        let mut logs = self.logs();
        let started = self.vm.start_dirty_log();
        if started.is_err() && !*logs {
            // A part of the slots may log by now.
            if let Err(error) = self.vm.stop_dirty_log() {
                log::warn!("cannot put the dirty log back: {error}");
            }
        }
        started?;
        *logs = true;
        Ok(())
    }

    pub(crate) fn stop_log(&self) -> Result<(), HypervisorVmError> {
        let mut logs = self.logs();
        *logs = false;
        self.vm.stop_dirty_log()
    }

    /// The pages of a window's slot that the guest has written; they are clean afterwards.
    pub(crate) fn fetch_log(&self, slot: &Slot) -> io::Result<Vec<u64>> {
        if slot.is_read_only() {
            let words = (slot.len() / PAGE_SIZE).div_ceil(u64::BITS.into());
            return Ok(vec![0; usize::try_from(words).unwrap_or(usize::MAX)]);
        }
        let log = self
            .vm
            .get_dirty_log(slot.number(), slot.guest_address().0, slot.len());
        log.map_err(io_error)
    }

    fn logs(&self) -> MutexGuard<'_, bool> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// # Safety
    /// As [`SlotProvider::register`].
    unsafe fn create(&self, slot: &Slot) -> io::Result<()> {
        let (len, host) = figures(slot)?;
        let guest = slot.guest_address().0;
        let (read_only, logged) = (slot.is_read_only(), is_logged(slot));
        // SAFETY: the caller promises that the memory stays mapped until the slot is removed.
        let created = unsafe {
            self.vm
                .create_user_memory_region(slot.number(), guest, len, host, read_only, logged)
        };
        created.map_err(io_error)
    }

    fn remove(&self, slot: &Slot) -> io::Result<()> {
        let (len, host) = figures(slot)?;
        let guest = slot.guest_address().0;
        let (read_only, logged) = (slot.is_read_only(), is_logged(slot));
        // SAFETY: the figures are those of a slot that was created, so its memory is still there;
        // or of one that was not, and then nothing is removed.
        let removed = unsafe {
            self.vm
                .remove_user_memory_region(slot.number(), guest, len, host, read_only, logged)
        };
        removed.map_err(io_error)
    }
}

/// Whether the log can ever speak of the slot: KVM's decorated `Vm` refuses both flags together, and
/// the guest does not write there.
fn is_logged(slot: &Slot) -> bool {
    !slot.is_read_only()
}

fn figures(slot: &Slot) -> io::Result<(usize, *mut u8)> {
    let (Ok(len), Ok(host)) = (
        usize::try_from(slot.len()),
        usize::try_from(slot.host_address()),
    ) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    Ok((len, std::ptr::with_exposed_provenance_mut(host)))
}

// SAFETY: `KvmVm` removes a region by deleting its memslot: KVM has invalidated its translations
// and waited for every vCPU before the ioctl returns (Linux: virt/kvm/kvm_main.c
// `kvm_set_memslot`), and a deletion that was not made is an error. A slot whose creation failed
// is struck from the list that the VM's dirty log would create it from; where that fails, it is
// reported as registered.
unsafe impl SlotProvider for VmSlots {
    unsafe fn register(&self, slot: &Slot) -> io::Result<()> {
        let logs = self.logs();
        // SAFETY: the caller's promise is the same.
        let created = unsafe { self.create(slot) };
        if let Err(error) = created {
            // `KvmVm` has noted the region for the log already. KVM has nothing to delete.
            let _refused = self.remove(slot);
            return Err(error);
        }
        if !*logs || !is_logged(slot) {
            return Ok(());
        }
        let Err(error) = self.vm.start_dirty_log() else {
            return Ok(());
        };
        match self.remove(slot) {
            Ok(()) => Err(io_error(error)),
            Err(second) => {
                log::error!(
                    "cannot log memslot {}: {error}; nor remove it: {second}",
                    slot.number()
                );
                Ok(())
            }
        }
    }

    fn unregister(&self, slot: &Slot) -> io::Result<()> {
        self.remove(slot)
    }

    fn enable_precise_zap(&self) -> io::Result<bool> {
        Ok(self.precise_zap)
    }

    fn can_log_dirty_pages(&self) -> bool {
        true
    }

    unsafe fn log_dirty_pages(&self, slot: &Slot) -> io::Result<()> {
        let logs = self.logs();
        match (slot.logs_dirty_pages(), is_logged(slot)) {
            (_, false) => Ok(()),
            (true, true) if *logs => Ok(()),
            // It would log for everything else in the VM as well.
            (true, true) => Err(io::ErrorKind::Unsupported.into()),
            // SAFETY: the caller promises that the slot is registered with these figures: only its
            // flag changes.
            (false, true) => unsafe { self.create(slot) },
        }
    }
}
