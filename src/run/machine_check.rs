//! Owns what a guest process is told that touches memory which is gone: a machine check, as of memory
//! that broke. Never decides which memory is gone.
//!
//! The kernel of the guest ends that process with SIGBUS and runs on. It has to know that it can:
//! AMD's processors say so by a CPUID flag, which is set here. Intel's have more to agree on, and a
//! kernel that touches such memory itself may not survive being told; both find what an open bus has.

// UNSAFETY: `KVM_X86_SET_MCE` has no safe wrapper.
#![expect(unsafe_code, reason = "an ioctl without a wrapper")]

use std::io;

use kvm_bindings::{CpuId, KVMIO, Msrs, kvm_msr_entry, kvm_x86_mce};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

ioctl_iow_nr!(KVM_X86_SET_MCE, KVMIO, 0x9e, kvm_x86_mce);

/// `AuthenticAMD`, as EBX, EDX and ECX of leaf 0 have it.
const AMD: [u32; 3] = [0x6874_7541, 0x6974_6e65, 0x444d_4163];

/// `IA32_MCG_STATUS`.
const MCG_STATUS: u32 = 0x17a;
/// The instruction can be gone on from, is the one to blame, and a machine check is being dealt with.
const RIPV: u64 = 1 << 0;
const EIPV: u64 = 1 << 1;
const MCIP: u64 = 1 << 2;

/// The bank's content is valid, not corrected, and reported. Without an address: the page in the
/// window is not broken, and the guest is to go on using it.
const STATUS: u64 = 1 << 63 | 1 << 61 | 1 << 60;
/// A data read from memory, of any level of caches.
const DATA_READ: u64 = 0x0134;

/// One of the banks that KVM gives each vCPU; bank 0 has special meanings.
const BANK: u8 = 1;

/// CR4.MCE.
const CR4_MCE: u64 = 1 << 6;

/// Whether a guest with these features takes what [`tell`] says.
pub(super) fn is_understood(supported: &CpuId) -> bool {
    let mut leaves = supported.as_slice().iter();
    leaves.any(|leaf| leaf.function == 0 && [leaf.ebx, leaf.edx, leaf.ecx] == AMD)
}

/// Tells the process that `vcpu` runs, if it runs one and its kernel listens.
pub(super) fn tell(vcpu: &VcpuFd) -> bool {
    match listens(vcpu).and_then(|listens| if listens { raise(vcpu) } else { Ok(false) }) {
        Ok(told) => told,
        Err(error) => {
            log::debug!("cannot raise a machine check: {error}");
            false
        }
    }
}

fn listens(vcpu: &VcpuFd) -> io::Result<bool> {
    let registers = vcpu.get_sregs()?;
    if registers.ss.dpl != 3 || registers.cr4 & CR4_MCE == 0 {
        return Ok(false);
    }
    let status = kvm_msr_entry {
        index: MCG_STATUS,
        ..Default::default()
    };
    let mut status = Msrs::from_entries(&[status]).map_err(io::Error::other)?;
    vcpu.get_msrs(&mut status)?;
    // A second one while the first is dealt with would end the guest.
    let free = |entry: &kvm_msr_entry| entry.data & MCIP == 0;
    Ok(status.as_slice().first().is_some_and(free))
}

fn raise(vcpu: &VcpuFd) -> io::Result<bool> {
    let event = kvm_x86_mce {
        status: STATUS | DATA_READ,
        mcg_status: RIPV | EIPV | MCIP,
        bank: BANK,
        ..Default::default()
    };
    // SAFETY: the request reads one `kvm_x86_mce`, which lives until the call returns, and changes
    // nothing of this process.
    let done = unsafe { ioctl_with_ref(vcpu, KVM_X86_SET_MCE(), &event) };
    if done == 0 {
        return Ok(true);
    }
    Err(io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_cpuid_entry2;

    use super::*;

    #[test]
    fn only_amd_is_told() {
        let list = |text: &[u8; 12]| {
            let word = |at: usize| u32::from_le_bytes(text[at..at + 4].try_into().unwrap());
            let leaf = kvm_cpuid_entry2 {
                ebx: word(0),
                edx: word(4),
                ecx: word(8),
                ..Default::default()
            };
            CpuId::from_entries(&[leaf]).unwrap()
        };
        assert!(is_understood(&list(b"AuthenticAMD")));
        assert!(!is_understood(&list(b"GenuineIntel")));
    }
}
