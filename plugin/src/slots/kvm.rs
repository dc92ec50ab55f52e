//! Owns the slot provider for `kvm_ioctls::VmFd`: `KVM_SET_USER_MEMORY_REGION`, and nothing else
//! of KVM. Never chooses a slot.

// UNSAFETY: registering host memory with KVM gives the guest access to it, so the ioctl wrapper is
// an unsafe function.
#![expect(unsafe_code, reason = "KVM_SET_USER_MEMORY_REGION is an unsafe call")]

use std::io;

use kvm_bindings::{
    KVM_CAP_DISABLE_QUIRKS2, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_enable_cap,
    kvm_userspace_memory_region,
};
use kvm_ioctls::VmFd;

use super::{Slot, SlotProvider};

/// `KVM_X86_QUIRK_SLOT_ZAP_ALL` (Linux 6.12: `arch/x86/include/uapi/asm/kvm.h`).
const QUIRK_SLOT_ZAP_ALL: u64 = 1 << 7;

fn region(slot: &Slot, len: u64) -> kvm_userspace_memory_region {
    let flag = |set: bool, flag: u32| if set { flag } else { 0 };
    kvm_userspace_memory_region {
        slot: slot.number(),
        flags: flag(slot.is_read_only(), KVM_MEM_READONLY)
            | flag(slot.logs_dirty_pages(), KVM_MEM_LOG_DIRTY_PAGES),
        guest_phys_addr: slot.guest_address().0,
        memory_size: len,
        userspace_addr: slot.host_address(),
    }
}

// SAFETY: KVM deletes a memslot by invalidating its translations and waiting for every vCPU that
// may still use the old set of slots, before the ioctl returns (Linux: virt/kvm/kvm_main.c
// `kvm_set_memslot`, `kvm_swap_active_memslots`); it reports a deletion that it did not make.
unsafe impl SlotProvider for VmFd {
    unsafe fn register(&self, slot: &Slot) -> io::Result<()> {
        // SAFETY: the caller promises that the memory stays mapped until the slot is unregistered
        // and that no Rust reference points there.
        unsafe { self.set_user_memory_region(region(slot, slot.len())) }.map_err(Into::into)
    }

    fn unregister(&self, slot: &Slot) -> io::Result<()> {
        // SAFETY: a length of 0 deletes the slot and gives the guest access to nothing.
        unsafe { self.set_user_memory_region(region(slot, 0)) }.map_err(Into::into)
    }

    fn can_log_dirty_pages(&self) -> bool {
        true
    }

    unsafe fn log_dirty_pages(&self, slot: &Slot) -> io::Result<()> {
        // SAFETY: the caller promises that the slot is registered with these figures, so only its
        // flag changes (Linux: `virt/kvm/kvm_main.c`, `KVM_MR_FLAGS_ONLY`), and the guest reaches
        // no memory that it did not.
        unsafe { self.set_user_memory_region(region(slot, slot.len())) }.map_err(Into::into)
    }

    fn enable_precise_zap(&self) -> io::Result<bool> {
        let offered = self.check_extension_raw(KVM_CAP_DISABLE_QUIRKS2.into());
        if !u64::try_from(offered).is_ok_and(|quirks| quirks & QUIRK_SLOT_ZAP_ALL != 0) {
            return Ok(false);
        }
        let mut cap = kvm_enable_cap {
            cap: KVM_CAP_DISABLE_QUIRKS2,
            ..Default::default()
        };
        cap.args = [QUIRK_SLOT_ZAP_ALL, 0, 0, 0];
        self.enable_cap(&cap)?;
        Ok(true)
    }
}
