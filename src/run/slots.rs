//! Owns the memslots of guest RAM, and advice to the host about that memory. Never touches a
//! window's slot.

// UNSAFETY: `KVM_SET_USER_MEMORY_REGION` gives the guest a piece of this process, and `madvise`
// takes an address; no safe wrapper can know that the piece is mapped, and outlives the slot.
#![expect(
    unsafe_code,
    reason = "registering guest memory and advising on it are unsafe calls"
)]

use std::sync::Arc;

use anyhow::{Context as _, Result};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use rustix::mm::Advice;
use vm_memory::{
    GuestMemoryBackend as _, GuestMemoryMmap, GuestMemoryRegion as _, GuestRegionMmap,
};

use vm_remap::spec::MemorySpec;

/// The slot numbers that RAM uses, from 0; windows get those above.
pub(super) const RAM_SLOTS: u32 = 8;

/// Guest RAM, registered for as long as this lives.
#[derive(Debug)]
pub(super) struct RegisteredRam {
    vm: Arc<VmFd>,
    memory: GuestMemoryMmap,
    slots: u32,
}

impl RegisteredRam {
    /// Registers each region of `memory`, the first as slot 0.
    pub(super) fn new(vm: Arc<VmFd>, memory: &GuestMemoryMmap) -> Result<Self> {
        let mut ram = Self {
            vm,
            memory: memory.clone(),
            slots: 0,
        };
        for region in memory.iter() {
            ram.register(region)?;
        }
        Ok(ram)
    }

    /// The memory.
    pub(super) fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    fn register(&mut self, region: &GuestRegionMmap) -> Result<()> {
        let (guest, len) = (region.start_addr().0, region.len());
        let region = kvm_userspace_memory_region {
            slot: self.slots,
            flags: 0,
            guest_phys_addr: guest,
            memory_size: len,
            userspace_addr: region.as_ptr().addr() as u64,
        };
        // SAFETY: the callee asks for memory that stays mapped while the slot lives. The range is
        // exactly the mapping of `region`, which `self.memory` holds; `drop` removes the slot
        // before it lets the mapping go, or never lets it go.
        unsafe { self.vm.set_user_memory_region(region) }.with_context(|| {
            format!("cannot register {len:#x} bytes of guest memory at {guest:#x} with KVM")
        })?;
        self.slots = self.slots.saturating_add(1);
        Ok(())
    }

    fn remove(&self, slot: u32) -> Result<(), kvm_ioctls::Error> {
        let region = kvm_userspace_memory_region {
            slot,
            ..Default::default()
        };
        // SAFETY: a length of 0 deletes the slot and gives the guest access to nothing.
        unsafe { self.vm.set_user_memory_region(region) }
    }
}

impl Drop for RegisteredRam {
    fn drop(&mut self) {
        for slot in 0..self.slots {
            if let Err(error) = self.remove(slot) {
                log::warn!("cannot remove memslot {slot}: {error}; guest memory is leaked");
                Box::leak(Box::new(self.memory.clone()));
            }
        }
    }
}

/// Tells the host what to do about the memory, as `spec` asks.
pub(super) fn advise(spec: &MemorySpec, memory: &GuestMemoryMmap) -> Result<()> {
    let wanted = [
        (spec.thp && !spec.hugepages, Advice::LinuxHugepage),
        (spec.prefault, Advice::LinuxPopulateWrite),
    ];
    for (_, advice) in wanted.into_iter().filter(|(wanted, _)| *wanted) {
        for region in memory.iter() {
            let (address, len) = (region.as_ptr(), usize::try_from(region.len())?);
            // SAFETY: the range is exactly the mapping of `region`, borrowed for the call. Neither
            // piece of advice unmaps, discards or reorders a byte: one is a hint, the other makes
            // pages present as a write of what is there would.
            let advised = unsafe { rustix::mm::madvise(address.cast(), len, advice) };
            match advised {
                // It is a wish, and a kernel without them has its reasons.
                Err(error) if advice == Advice::LinuxHugepage => {
                    log::debug!("no transparent huge pages for guest memory: {error}");
                }
                advised => advised.with_context(|| {
                    format!("cannot make {len:#x} bytes of guest memory present; ask for less")
                })?,
            }
        }
    }
    Ok(())
}
