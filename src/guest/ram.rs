//! Owns the guest's RAM and its memslot, number 0. Never touches another slot.

// UNSAFETY: `KVM_SET_USER_MEMORY_REGION` gives the guest a piece of this
// process; no safe wrapper can know that the piece outlives the slot.
#![expect(
    unsafe_code,
    reason = "registering guest memory is unsafe in kvm-ioctls"
)]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::error::GuestError;

const SLOT: u32 = 0;

/// Guest RAM at guest-physical 0, registered for as long as this lives.
#[derive(Debug)]
pub(super) struct Ram {
    vm: Arc<VmFd>,
    /// Always there until drop, which leaks it if the slot cannot be removed.
    memory: Option<Box<GuestMemoryMmap>>,
}

impl Ram {
    /// Maps `len` bytes and registers them as slot 0.
    pub(super) fn new(vm: Arc<VmFd>, len: u64) -> Result<Self, GuestError> {
        let map_error = |source| GuestError::MapRam { len, source };
        let size = usize::try_from(len).map_err(|e| map_error(Box::new(e)))?;
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size)])
            .map_err(|e| map_error(Box::new(e)))?;
        let host = memory
            .get_host_address(GuestAddress(0))
            .map_err(|source| GuestError::RamAccess { gpa: 0, source })?;
        register(&vm, host.addr() as u64, len)
            .map_err(GuestError::kvm("register guest memory as memslot 0"))?;
        Ok(Self {
            vm,
            memory: Some(Box::new(memory)),
        })
    }

    fn memory(&self, gpa: u64) -> Result<&GuestMemoryMmap, GuestError> {
        let source = vm_memory::GuestMemoryError::InvalidGuestAddress(GuestAddress(gpa));
        self.memory
            .as_deref()
            .ok_or(GuestError::RamAccess { gpa, source })
    }

    /// Loads a word the guest may be writing.
    pub(super) fn load(&self, gpa: u64) -> Result<u64, GuestError> {
        self.memory(gpa)?
            .load(GuestAddress(gpa), Ordering::Acquire)
            .map_err(|source| GuestError::RamAccess { gpa, source })
    }

    /// Stores a word the guest may be reading.
    pub(super) fn store(&self, gpa: u64, value: u64) -> Result<(), GuestError> {
        self.memory(gpa)?
            .store(value, GuestAddress(gpa), Ordering::Release)
            .map_err(|source| GuestError::RamAccess { gpa, source })
    }

    /// Reads bytes the guest may be writing.
    pub(super) fn read(&self, gpa: u64, bytes: &mut [u8]) -> Result<(), GuestError> {
        self.memory(gpa)?
            .read_slice(bytes, GuestAddress(gpa))
            .map_err(|source| GuestError::RamAccess { gpa, source })
    }

    /// Writes bytes where no vCPU looks now.
    pub(super) fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), GuestError> {
        self.memory(gpa)?
            .write_slice(bytes, GuestAddress(gpa))
            .map_err(|source| GuestError::RamAccess { gpa, source })
    }
}

/// Registers slot 0; a length of 0 removes it.
fn register(vm: &VmFd, host: u64, len: u64) -> Result<(), kvm_ioctls::Error> {
    let region = kvm_userspace_memory_region {
        slot: SLOT,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: len,
        userspace_addr: host,
    };
    // SAFETY: the callee asks that the address points to valid memory and that
    // slots do not overlap. Either `len` is 0, which takes memory away from the
    // guest; or, in `Ram::new`, [host, host + len) is the mapping that `Ram`
    // owns and frees only after the slot is gone, and the kernel itself refuses
    // a slot that overlaps another.
    unsafe { vm.set_user_memory_region(region) }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // The caller may hold the VM longer than us, so the slot goes first.
        // If it will not go, the memory stays, for good.
        if let Err(error) = register(&self.vm, 0, 0) {
            log::warn!("cannot remove memslot 0: {error}; guest memory is leaked");
            if let Some(memory) = self.memory.take() {
                Box::leak(memory);
            }
        }
    }
}
