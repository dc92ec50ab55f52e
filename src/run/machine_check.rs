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
    let told = || -> io::Result<bool> {
        // A second one while the first is dealt with would end the guest.
        if !runs_a_process(vcpu)? || is_dealing(vcpu)? {
            return Ok(false);
        }
        raise(vcpu)?;
        // KVM says yes as well where the guest has switched the bank off, and raises nothing.
        is_dealing(vcpu)
    };
    match told() {
        Ok(told) => told,
        Err(error) => {
            log::debug!("cannot raise a machine check: {error}");
            false
        }
    }
}

/// Whether that is where `vcpu` stands, and machine checks can come there.
fn runs_a_process(vcpu: &VcpuFd) -> io::Result<bool> {
    let registers = vcpu.get_sregs()?;
    Ok(registers.ss.dpl == 3 && registers.cr4 & CR4_MCE != 0)
}

/// Whether a machine check is being dealt with.
fn is_dealing(vcpu: &VcpuFd) -> io::Result<bool> {
    let status = kvm_msr_entry {
        index: MCG_STATUS,
        ..Default::default()
    };
    let mut status = Msrs::from_entries(&[status]).map_err(io::Error::other)?;
    let read = vcpu.get_msrs(&mut status)?;
    let status = status.as_slice().first().filter(|_| read == 1);
    let status = status.ok_or_else(|| io::Error::other("KVM does not tell MCG_STATUS"))?;
    Ok(status.data & MCIP != 0)
}

fn raise(vcpu: &VcpuFd) -> io::Result<()> {
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
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use kvm_bindings::kvm_cpuid_entry2;
    use kvm_ioctls::{Kvm, VmFd};

    use super::*;

    /// `IA32_MC1_CTL`.
    const BANK_CONTROL: u32 = 0x404;

    fn set(vcpu: &VcpuFd, index: u32, data: u64) {
        let entry = kvm_msr_entry {
            index,
            data,
            ..Default::default()
        };
        let entry = Msrs::from_entries(&[entry]).unwrap();
        assert_eq!(vcpu.set_msrs(&entry).unwrap(), 1);
    }

    /// A vCPU that never runs, as its kernel has left it: in ring `ring`, with machine checks, and
    /// with a bank 1 that reports what `control` says.
    fn vcpu(test: &str, ring: u8, control: u64) -> Option<(VmFd, VcpuFd)> {
        let vm = match Kvm::new().and_then(|kvm| kvm.create_vm()) {
            Ok(vm) => vm,
            Err(error) => {
                writeln!(io::stderr(), "SKIP {test}: no KVM: {error}").unwrap();
                return None;
            }
        };
        let vcpu = vm.create_vcpu(0).unwrap();
        let mut registers = vcpu.get_sregs().unwrap();
        registers.cr4 |= CR4_MCE;
        registers.cr0 |= 1;
        for segment in [&mut registers.ss, &mut registers.cs] {
            segment.dpl = ring;
            segment.selector = 8 | u16::from(ring);
        }
        vcpu.set_sregs(&registers).unwrap();
        set(&vcpu, BANK_CONTROL, control);
        Some((vm, vcpu))
    }

    #[test]
    fn process_is_told_once_until_its_kernel_has_dealt_with_it() {
        let test = "process_is_told_once_until_its_kernel_has_dealt_with_it";
        let Some((_vm, vcpu)) = vcpu(test, 3, u64::MAX) else {
            return;
        };
        assert!(tell(&vcpu));
        assert_eq!(vcpu.get_vcpu_events().unwrap().exception.nr, 18);
        assert!(!tell(&vcpu));
        set(&vcpu, MCG_STATUS, 0);
        assert!(tell(&vcpu));
    }

    /// The process would have touched the page for ever.
    #[test]
    fn bank_that_the_guest_has_switched_off_tells_nobody() {
        let test = "bank_that_the_guest_has_switched_off_tells_nobody";
        let Some((_vm, vcpu)) = vcpu(test, 3, 0) else {
            return;
        };
        assert!(!tell(&vcpu));
        assert_eq!(vcpu.get_vcpu_events().unwrap().exception.pending, 0);
    }

    #[test]
    fn kernel_is_not_told() {
        let Some((_vm, vcpu)) = vcpu("kernel_is_not_told", 0, u64::MAX) else {
            return;
        };
        assert!(!tell(&vcpu));
    }

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
