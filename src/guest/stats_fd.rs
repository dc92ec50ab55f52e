//! Owns the call that opens KVM's binary statistics. Never reads them.

// UNSAFETY: kvm-ioctls has no wrapper for KVM_GET_STATS_FD, and a descriptor
// number that comes out of an ioctl has to be given an owner.
#![expect(unsafe_code, reason = "kvm-ioctls does not wrap KVM_GET_STATS_FD")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::raw::c_ulong;

use vmm_sys_util::ioctl::{_IOC_NONE, ioctl, ioctl_expr};

const KVMIO: u32 = 0xae;
const KVM_GET_STATS_FD: c_ulong = ioctl_expr(_IOC_NONE, KVMIO, 0xce, 0);

/// Opens the statistics of a VM or vCPU descriptor.
pub(super) fn open(of: &impl AsRawFd) -> io::Result<OwnedFd> {
    // SAFETY: the request takes no argument, so the kernel touches no memory
    // of ours; on a descriptor that is not KVM's it fails with ENOTTY.
    let fd = unsafe { ioctl(of, KVM_GET_STATS_FD) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so `fd` is a new descriptor (Linux,
    // Documentation/virt/kvm/api.rst, KVM_GET_STATS_FD) that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
