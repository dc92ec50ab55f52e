//! Owns a vCPU that ends its runs as a test says, and writes down what it is asked. Never runs
//! anything.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::anyhow;
use hypervisor::arch::x86::{CpuIdEntry, FpuState, LapicState, MsrEntry, SpecialRegisters};
use hypervisor::{
    CpuState, HypervisorCpuError, HypervisorType, MpState, StandardRegisters, Vcpu, VmExit, VmOps,
};
use vm_memory::GuestAddress;
use vm_remap::fault::SigbusHook;
use vmm_sys_util::errno;

type Result<T> = std::result::Result<T, HypervisorCpuError>;

/// How a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// As `KvmVcpu` has it at the revision that is built against.
    Fault,
    /// With the error number among the causes.
    FaultWithCause,
    /// As a single step does on this host.
    Step,
    Debug,
    Reset,
    Shutdown,
    Signal,
    /// A SIGBUS at this host address, which the handler of a `SigbusHook` sees.
    Touch(u64),
    Read(u64),
    Port,
}

/// What a test and its vCPU share.
#[derive(Default)]
pub struct Script {
    pub endings: Mutex<VecDeque<Ending>>,
    pub names: Mutex<Vec<String>>,
    pub regs: Mutex<kvm_bindings::kvm_regs>,
    pub special: Mutex<SpecialRegisters>,
    /// What reads of devices have been answered with.
    pub read: Mutex<Vec<u8>>,
}

pub struct Scripted {
    pub script: Arc<Script>,
    pub ops: Option<Arc<dyn VmOps>>,
}

impl Script {
    pub fn names(&self) -> Vec<String> {
        std::mem::take(&mut self.names.lock().unwrap())
    }

    fn note(&self, name: &str) {
        self.names.lock().unwrap().push(name.to_owned());
    }
}

impl Scripted {
    fn ended(&self, ending: Ending) -> Result<VmExit> {
        let ops = self.ops.as_deref().unwrap();
        Ok(match ending {
            Ending::Fault => {
                let cause = anyhow!("VCPU error {:?}", errno::Error::new(libc::EFAULT));
                return Err(HypervisorCpuError::RunVcpu(cause));
            }
            Ending::FaultWithCause => {
                let cause = anyhow::Error::new(errno::Error::new(libc::EFAULT));
                return Err(HypervisorCpuError::RunVcpu(cause.context("VCPU error")));
            }
            Ending::Step if Path::new("/sys/module/kvm_pvm").exists() => VmExit::Reset,
            Ending::Step | Ending::Debug => VmExit::Debug,
            Ending::Reset => VmExit::Reset,
            Ending::Shutdown => VmExit::Shutdown,
            Ending::Signal => VmExit::Ignore,
            Ending::Touch(host) => {
                assert!(SigbusHook::took(libc::BUS_MCEERR_AR, host));
                VmExit::Ignore
            }
            Ending::Read(at) => {
                let mut into = [0; 4];
                let read = ops.mmio_read(at, &mut into);
                read.map_err(|error| HypervisorCpuError::RunVcpu(error.into()))?;
                *self.script.read.lock().unwrap() = into.to_vec();
                VmExit::Ignore
            }
            Ending::Port => {
                let read = ops.pio_read(8, &mut [0]);
                read.map_err(|error| HypervisorCpuError::RunVcpu(error.into()))?;
                VmExit::Ignore
            }
        })
    }
}

/// What is only written down.
macro_rules! noted {
    ($($name:ident($($argument:ident: $type:ty),*) -> $answer:ty = $own:expr;)*) => {
        $(fn $name(&self $(, $argument: $type)*) -> $answer {
            $(let _ = $argument;)*
            self.script.note(stringify!($name));
            $own
        })*
    };
}

fn unknown<T>() -> Result<T> {
    Err(HypervisorCpuError::GetRegister(anyhow!("scripted")))
}

impl Vcpu for Scripted {
    fn run(&mut self) -> Result<VmExit> {
        let ending = self.script.endings.lock().unwrap().pop_front();
        self.ended(ending.unwrap())
    }

    fn get_regs(&self) -> Result<StandardRegisters> {
        Ok(StandardRegisters::Kvm(*self.script.regs.lock().unwrap()))
    }

    fn get_sregs(&self) -> Result<SpecialRegisters> {
        Ok(*self.script.special.lock().unwrap())
    }

    fn set_sregs(&self, special: &SpecialRegisters) -> Result<()> {
        *self.script.special.lock().unwrap() = *special;
        Ok(())
    }

    fn translate_gva(&self, gva: u64, _: u64) -> Result<(u64, u32)> {
        Ok((gva, 0))
    }

    fn set_guest_debug(&self, at: &[GuestAddress], steps: bool) -> Result<()> {
        self.script.note(&format!("debug {} {steps}", at.len()));
        Ok(())
    }

    fn set_immediate_exit(&mut self, exit: bool) {
        self.script.note(&format!("immediate_exit {exit}"));
    }

    noted! {
        create_standard_regs() -> StandardRegisters = StandardRegisters::Kvm(Default::default());
        set_regs(regs: &StandardRegisters) -> Result<()> = Ok(());
        get_fpu() -> Result<FpuState> = unknown();
        set_fpu(fpu: &FpuState) -> Result<()> = Ok(());
        set_cpuid2(cpuid: &[CpuIdEntry]) -> Result<()> = Ok(());
        enable_hyperv_synic() -> Result<()> = Ok(());
        get_cpuid2(num_entries: usize) -> Result<Vec<CpuIdEntry>> = unknown();
        get_lapic() -> Result<LapicState> = unknown();
        set_lapic(lapic: &LapicState) -> Result<()> = Ok(());
        get_msrs(msrs: &mut Vec<MsrEntry>) -> Result<usize> = Ok(1);
        set_msrs(msrs: &[MsrEntry]) -> Result<usize> = Ok(1);
        get_mp_state() -> Result<MpState> = unknown();
        set_mp_state(state: MpState) -> Result<()> = Ok(());
        notify_guest_clock_paused() -> Result<()> = Ok(());
        state() -> Result<CpuState> = unknown();
        set_state(state: &CpuState) -> Result<()> = Ok(());
        boot_msr_entries() -> Vec<MsrEntry> = Vec::new();
        tsc_khz() -> Result<Option<u32>> = Ok(Some(7));
        set_tsc_khz(freq: u32) -> Result<()> = Ok(());
        tsc_offset() -> Result<Option<u64>> = Ok(Some(7));
        set_tsc_offset(offset: u64) -> Result<()> = Ok(());
        get_cpuid_values(f: u32, i: u32, xfem: u64, xss: u64) -> Result<[u32; 4]> = Ok([7; 4]);
        nmi() -> Result<()> = Ok(());
        hypervisor_type() -> HypervisorType = HypervisorType::Kvm;
    }
}
