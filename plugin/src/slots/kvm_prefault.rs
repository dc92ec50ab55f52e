//! Owns the slot provider for KVM that can also fill the guest's translations: a VM, and a vCPU
//! of it that never runs. Never creates that vCPU and never runs it.

// UNSAFETY: kvm-ioctls has no KVM_PRE_FAULT_MEMORY, and a provider vouches for its hypervisor.
#![expect(unsafe_code, reason = "KVM_PRE_FAULT_MEMORY has no safe wrapper")]

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{KVM_CAP_PRE_FAULT_MEMORY, KVMIO, kvm_pre_fault_memory};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iowr_nr;

use super::{Slot, SlotProvider};
use crate::range::{GuestAddress, PAGE_SIZE};

ioctl_iowr_nr!(KVM_PRE_FAULT_MEMORY, KVMIO, 0xd5, kvm_pre_fault_memory);

/// How often KVM may ask in a row to try again, without any page filled in between.
const TRIES: u32 = 1000;

/// A VM as a slot provider, with what [`Prefault::Guest`](crate::Prefault::Guest) needs.
///
/// A plain `VmFd` is a provider as well, one that cannot prefault. This one can, once it has a
/// spare vCPU and where KVM offers `KVM_PRE_FAULT_MEMORY` (Linux 6.11, with a TDP MMU).
#[derive(Debug)]
pub struct KvmSlots {
    vm: Arc<VmFd>,
    spare: Option<Mutex<VcpuFd>>,
}

impl KvmSlots {
    /// A provider for `vm` that cannot prefault yet.
    #[must_use]
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, spare: None }
    }

    /// Gives it a vCPU of the same VM that the VMM never runs. `KVM_PRE_FAULT_MEMORY` waits for a
    /// vCPU that is running, and vCPUs share their translations: a spare one fills them for all,
    /// at any time, while the others run.
    ///
    /// It needs the CPUID of the others, so that KVM gives it the same page tables; an id that the
    /// guest is told nothing of; and no register set. It counts towards the VM's vCPUs. One that
    /// does not share the others' tables costs their memory and fills them for nobody.
    ///
    /// From then on every memslot of the VM that is deleted while a window may prefault must be
    /// deleted through this provider: share it among the VM's windows, and prefault nothing while
    /// the VMM deletes a memslot of its own. Linux 6.12 at least never ends a prefault that meets a
    /// deletion of another task, until a signal comes; this provider keeps its own two apart.
    #[must_use]
    pub fn spare_vcpu(mut self, vcpu: VcpuFd) -> Self {
        self.spare = Some(Mutex::new(vcpu));
        self
    }

    /// The spare vCPU, for as long as no memslot may go. It has no state that a panic could leave
    /// half-way.
    fn spare(&self) -> Option<MutexGuard<'_, VcpuFd>> {
        let spare = self.spare.as_ref()?;
        Some(spare.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Makes KVM take up the page tables that the VM has now. A vCPU that runs does so by itself after
/// a memslot was deleted. One that never runs keeps the tables that were thrown away, and
/// `KVM_PRE_FAULT_MEMORY` tries to fill these for ever (Linux 6.12: `arch/x86/kvm/mmu/mmu.c`
/// `kvm_tdp_map_page`, `is_page_fault_stale`). Another CR3 makes KVM look for its tables anew
/// (`arch/x86/kvm/x86.c` `__set_sregs_common`); the vCPU has no use for the register.
fn take_up_tables(vcpu: &VcpuFd) -> io::Result<()> {
    let mut registers = vcpu.get_sregs()?;
    registers.cr3 ^= PAGE_SIZE;
    vcpu.set_sregs(&registers)?;
    Ok(())
}

// SAFETY: registering and unregistering are those of `VmFd`, whose implementation says why they
// keep the promise; filling translations gives the guest nothing that the slots do not.
unsafe impl SlotProvider for KvmSlots {
    unsafe fn register(&self, slot: &Slot) -> io::Result<()> {
        // SAFETY: the caller promises what `VmFd` asks for.
        unsafe { self.vm.register(slot) }
    }

    fn unregister(&self, slot: &Slot) -> io::Result<()> {
        let _no_prefault_meanwhile = self.spare();
        self.vm.unregister(slot)
    }

    fn can_log_dirty_pages(&self) -> bool {
        self.vm.can_log_dirty_pages()
    }

    unsafe fn log_dirty_pages(&self, slot: &Slot) -> io::Result<()> {
        let _no_prefault_meanwhile = self.spare();
        // SAFETY: the caller promises what `VmFd` asks for.
        unsafe { self.vm.log_dirty_pages(slot) }
    }

    fn enable_precise_zap(&self) -> io::Result<bool> {
        self.vm.enable_precise_zap()
    }

    fn can_prefault(&self) -> bool {
        let offered = self.vm.check_extension_raw(KVM_CAP_PRE_FAULT_MEMORY.into());
        self.spare.is_some() && offered > 0
    }

    fn prefault(&self, guest: GuestAddress, len: u64) -> io::Result<()> {
        let Some(vcpu) = self.spare() else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        take_up_tables(&vcpu)?;
        let mut rest = kvm_pre_fault_memory {
            gpa: guest.0,
            size: len,
            ..Default::default()
        };
        let mut tries = 0_u32;
        while rest.size > 0 {
            let before = rest.size;
            // SAFETY: the structure is the one that the ioctl reads and writes, and KVM writes
            // nothing else of this process (Linux: `virt/kvm/kvm_main.c`
            // `kvm_vcpu_pre_fault_memory`).
            let answer = unsafe { ioctl_with_mut_ref(&*vcpu, KVM_PRE_FAULT_MEMORY(), &mut rest) };
            let error = io::Error::last_os_error();
            let again = matches!(
                error.kind(),
                io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
            );
            if answer < 0 && !again {
                return Err(error);
            }
            // What KVM has filled it has taken off; it stops early for a signal, and where a slot
            // is about to go.
            tries = if rest.size < before {
                0
            } else {
                tries.saturating_add(1)
            };
            if tries > TRIES {
                return Err(io::ErrorKind::WouldBlock.into());
            }
        }
        Ok(())
    }
}
