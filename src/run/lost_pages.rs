//! Owns that KVM reports a page which a file has lost, where it can. Never deals with one.
//!
//! Without that, KVM waits for the page in the background, finds nothing, and has the guest touch it
//! again, for ever. It does not where a halted vCPU stays in the guest; so the price is that an idle
//! vCPU looks busy to the host.

use kvm_bindings::{CpuId, KVM_CAP_X86_DISABLE_EXITS, KVM_X86_DISABLE_EXITS_HLT, kvm_enable_cap};
use kvm_ioctls::VmFd;

use super::cpuid;

/// Has KVM report such pages of `vm`, whose vCPUs are still to be made of `supported`; else says what
/// a share will do instead.
pub(super) fn report(vm: &VmFd, supported: &mut CpuId) {
    let offered = vm.check_extension_raw(KVM_CAP_X86_DISABLE_EXITS.into());
    report_if(vm, supported, offered);
}

/// The same, where KVM offers to switch these exits off. Some say yes to what they do not offer, and
/// do nothing (with `mitigate_smt_rsb`; Linux: `arch/x86/kvm/x86.c` `kvm_vm_ioctl_enable_cap`).
fn report_if(vm: &VmFd, supported: &mut CpuId, offered: i32) {
    let offered = u32::try_from(offered).unwrap_or(0);
    let why = if offered & KVM_X86_DISABLE_EXITS_HLT == 0 {
        "its KVM does not offer that".to_owned()
    } else {
        let halts = kvm_enable_cap {
            cap: KVM_CAP_X86_DISABLE_EXITS,
            args: [KVM_X86_DISABLE_EXITS_HLT.into(), 0, 0, 0],
            ..Default::default()
        };
        match vm.enable_cap(&halts) {
            Ok(()) => return cpuid::forget_async_faults(supported),
            Err(error) => error.to_string(),
        }
    };
    log::warn!(
        "cannot keep halted vCPUs in the guest on this host: {why}. Where somebody cuts a file that \
         the guest has mapped, the process that touches the rest of it hangs, and keeps its vCPU \
         busy; let nobody cut files of the share, or share without dax"
    );
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use kvm_bindings::kvm_cpuid_entry2;
    use kvm_ioctls::Kvm;

    use super::*;

    fn features() -> CpuId {
        let leaf = kvm_cpuid_entry2 {
            function: 0x4000_0001,
            eax: !0,
            ..Default::default()
        };
        CpuId::from_entries(&[leaf]).unwrap()
    }

    fn vm(test: &str) -> Option<VmFd> {
        let vm = Kvm::new().and_then(|kvm| kvm.create_vm());
        vm.inspect_err(|error| {
            writeln!(std::io::stderr(), "SKIP {test}: no KVM: {error}").unwrap();
        })
        .ok()
    }

    /// KVM that mitigates what threads leak offers pauses alone, and says yes all the same, or refuses:
    /// a process hung without a word, or nothing could be shared.
    #[test]
    fn host_that_offers_no_halts_in_the_guest_shares_without() {
        let test = "host_that_offers_no_halts_in_the_guest_shares_without";
        let Some(vm) = vm(test) else {
            return;
        };
        for offered in [-1, 0, 1 | 4 | 8] {
            let mut supported = features();
            report_if(&vm, &mut supported, offered);
            // KVM waits in the background then, and the guest may know.
            assert_eq!(supported.as_slice()[0].eax, !0, "{offered}");
        }
    }

    #[test]
    fn shares_can_each_ask_for_it() {
        let Some(vm) = vm("shares_can_each_ask_for_it") else {
            return;
        };
        let offered = vm.check_extension_raw(KVM_CAP_X86_DISABLE_EXITS.into());
        let mut supported = features();
        for _ in 0..2 {
            report(&vm, &mut supported);
        }
        let has = u32::try_from(offered).unwrap() & KVM_X86_DISABLE_EXITS_HLT != 0;
        assert_eq!(supported.as_slice()[0].eax != !0, has);
    }
}
