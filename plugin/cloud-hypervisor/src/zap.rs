//! Owns the two questions that only the VM's own descriptor answers: how many memslots there are,
//! and whether the deletion of one drops its own translations only. Never registers a slot.

// UNSAFETY: both are ioctls of a descriptor that the hypervisor crate does not lend out, so its
// safe wrappers cannot make them.
#![expect(unsafe_code, reason = "an ioctl is an unsafe call")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use kvm_bindings::{KVM_CAP_DISABLE_QUIRKS2, KVM_CAP_NR_MEMSLOTS, KVMIO, kvm_enable_cap};
use vmm_sys_util::ioctl::{ioctl_with_ref, ioctl_with_val};
use vmm_sys_util::{ioctl_io_nr, ioctl_iow_nr};

ioctl_io_nr!(KVM_CHECK_EXTENSION, KVMIO, 0x03);
ioctl_iow_nr!(KVM_ENABLE_CAP, KVMIO, 0xa3, kvm_enable_cap);

/// `KVM_X86_QUIRK_SLOT_ZAP_ALL` (Linux 6.12: `arch/x86/include/uapi/asm/kvm.h`).
const QUIRK_SLOT_ZAP_ALL: u32 = 1 << 7;

/// How many memslots the VM has, if it says so.
pub(crate) fn memslots(vm: BorrowedFd<'_>) -> Option<u32> {
    extension(vm, KVM_CAP_NR_MEMSLOTS).filter(|slots| *slots > 0)
}

/// Switches precise zapping on, for good, where KVM offers it. Returns whether it is on.
pub(crate) fn enable(vm: BorrowedFd<'_>) -> io::Result<bool> {
    let offered = extension(vm, KVM_CAP_DISABLE_QUIRKS2).unwrap_or(0);
    if offered & QUIRK_SLOT_ZAP_ALL == 0 {
        return Ok(false);
    }
    let cap = kvm_enable_cap {
        cap: KVM_CAP_DISABLE_QUIRKS2,
        args: [u64::from(QUIRK_SLOT_ZAP_ALL), 0, 0, 0],
        ..Default::default()
    };
    let vm = vm.as_raw_fd();
    // SAFETY: KVM_ENABLE_CAP reads a `kvm_enable_cap`, which `cap` is for the whole call, and
    // writes nothing (Linux: `Documentation/virt/kvm/api.rst`). Another descriptor refuses it.
    let answer = unsafe { ioctl_with_ref(&vm, KVM_ENABLE_CAP(), &cap) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(true)
}

fn extension(vm: BorrowedFd<'_>, capability: u32) -> Option<u32> {
    let vm = vm.as_raw_fd();
    // SAFETY: KVM_CHECK_EXTENSION takes a number and touches no memory of the caller's.
    let answer = unsafe { ioctl_with_val(&vm, KVM_CHECK_EXTENSION(), capability.into()) };
    u32::try_from(answer).ok()
}
