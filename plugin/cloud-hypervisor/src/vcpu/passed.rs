//! Owns cloud-hypervisor's `Vcpu` as a decorated vCPU has it: everything passes but the run. Never
//! changes an answer.

use hypervisor::arch::x86::{CpuIdEntry, FpuState, LapicState, MsrEntry, SpecialRegisters};
use hypervisor::{
    CpuState, HypervisorCpuError, HypervisorType, MpState, StandardRegisters, Vcpu, VmExit,
};
use vm_memory::GuestAddress;

use super::RemapVcpu;

type Result<T> = std::result::Result<T, HypervisorCpuError>;

/// The decorated vCPU's own.
macro_rules! passed {
    ($($name:ident(&self $(, $argument:ident: $type:ty)*) -> $answer:ty;)*) => {
        $(fn $name(&self $(, $argument: $type)*) -> $answer {
            self.vcpu.vcpu.$name($($argument),*)
        })*
    };
}

// A method with a body of its own in the trait would hide the decorated one.
#[deny(clippy::missing_trait_methods)]
impl Vcpu for RemapVcpu {
    fn run(&mut self) -> Result<VmExit> {
        self.run_to_the_next_exit()
    }

    fn set_immediate_exit(&mut self, exit: bool) {
        self.vcpu.immediate_exit = exit;
        self.vcpu.vcpu.set_immediate_exit(exit);
    }

    fn set_guest_debug(&self, addrs: &[GuestAddress], singlestep: bool) -> Result<()> {
        self.vcpu.debug(addrs, singlestep)
    }

    passed! {
        create_standard_regs(&self) -> StandardRegisters;
        get_regs(&self) -> Result<StandardRegisters>;
        set_regs(&self, regs: &StandardRegisters) -> Result<()>;
        get_sregs(&self) -> Result<SpecialRegisters>;
        set_sregs(&self, sregs: &SpecialRegisters) -> Result<()>;
        get_fpu(&self) -> Result<FpuState>;
        set_fpu(&self, fpu: &FpuState) -> Result<()>;
        set_cpuid2(&self, cpuid: &[CpuIdEntry]) -> Result<()>;
        enable_hyperv_synic(&self) -> Result<()>;
        get_cpuid2(&self, num_entries: usize) -> Result<Vec<CpuIdEntry>>;
        get_lapic(&self) -> Result<LapicState>;
        set_lapic(&self, lapic: &LapicState) -> Result<()>;
        get_msrs(&self, msrs: &mut Vec<MsrEntry>) -> Result<usize>;
        set_msrs(&self, msrs: &[MsrEntry]) -> Result<usize>;
        get_mp_state(&self) -> Result<MpState>;
        set_mp_state(&self, mp_state: MpState) -> Result<()>;
        notify_guest_clock_paused(&self) -> Result<()>;
        state(&self) -> Result<CpuState>;
        set_state(&self, state: &CpuState) -> Result<()>;
        translate_gva(&self, gva: u64, flags: u64) -> Result<(u64, u32)>;
        boot_msr_entries(&self) -> Vec<MsrEntry>;
        tsc_khz(&self) -> Result<Option<u32>>;
        set_tsc_khz(&self, freq: u32) -> Result<()>;
        tsc_offset(&self) -> Result<Option<u64>>;
        set_tsc_offset(&self, offset: u64) -> Result<()>;
        get_cpuid_values(&self, function: u32, index: u32, xfem: u64, xss: u64) -> Result<[u32; 4]>;
        nmi(&self) -> Result<()>;
        hypervisor_type(&self) -> HypervisorType;
    }
}
