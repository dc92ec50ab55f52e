//! Owns the seam to the hypervisor crate's vCPU: what a resolver asks of it. Never decides what a
//! fault means.

use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use hypervisor::arch::x86::{DescriptorTable, SegmentRegister, SpecialRegisters};
use hypervisor::{HypervisorCpuError, Vcpu};
use vm_remap::GuestAddress;
use vm_remap::fault::{CodeSize, FaultedVcpu, Registers, StepEnd};

use crate::error::errno_of;

/// `EFER.LMA`: the vCPU is in long mode.
const LONG_MODE: u64 = 1 << 10;
/// `RFLAGS.RF`, which a fault sets and nothing rests on.
const RESUME: u64 = 1 << 16;
/// `RFLAGS.AC`. A translation walks the page tables as ring 0 does, and `CR4.SMAP` keeps that out of
/// the pages of ring 3 while this flag is clear (Linux: `arch/x86/kvm/mmu.h` `permission_fault`).
const ALIGNMENT_CHECK: u64 = 1 << 18;

/// What the VMM asked of guest debugging.
type Debugging = (Vec<vm_memory::GuestAddress>, bool);

/// The decorated vCPU, and what was changed in it.
pub(super) struct Faulted {
    pub(super) vcpu: Box<dyn Vcpu>,
    /// What the VMM wants; a step takes it away.
    pub(super) immediate_exit: bool,
    steps: Option<StepEnd>,
    debugging: Mutex<Debugging>,
}

/// The guest's own interrupt table, where a step hides it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hidden(Option<DescriptorTable>);

impl Faulted {
    pub(super) fn new(vcpu: Box<dyn Vcpu>) -> Self {
        Self {
            vcpu,
            immediate_exit: false,
            steps: None,
            debugging: Mutex::default(),
        }
    }

    /// How the step ends that the next run is, if it is one.
    pub(super) fn steps(&self) -> Option<StepEnd> {
        self.steps
    }

    /// Passes the VMM's wish, and keeps it for the end of a step.
    pub(super) fn debug(
        &self,
        addresses: &[vm_memory::GuestAddress],
        steps: bool,
    ) -> Result<(), HypervisorCpuError> {
        self.vcpu.set_guest_debug(addresses, steps)?;
        *self.debugging() = (addresses.to_vec(), steps);
        Ok(())
    }

    fn debugging(&self) -> MutexGuard<'_, Debugging> {
        self.debugging
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn set_interrupt_table(&self, table: DescriptorTable) -> io::Result<()> {
        let mut special = self.vcpu.get_sregs().map_err(failed)?;
        special.idt = table;
        self.vcpu.set_sregs(&special).map_err(failed)
    }
}

/// A step of the resolver's takes the place of the VMM's guest debugging, which is put back after
/// it. The hypervisor crate cannot switch guest debugging off again: from the first step on, the
/// guest's own breakpoints and single steps do not work on this vCPU. (A `set_guest_debug` that
/// switches it off where nothing is asked for mends that.)
///
/// On a host with KVM's PVM flavour, the debug exception of a step goes to the guest. There the
/// guest's interrupt table is hidden while the step runs, and the step ends as a shutdown.
impl FaultedVcpu for Faulted {
    type Stepping = Hidden;

    fn registers(&self) -> io::Result<Registers> {
        let regs = self.vcpu.get_regs().map_err(failed)?;
        let special = self.vcpu.get_sregs().map_err(failed)?;
        let base = |segment: SegmentRegister| segment.base;
        Ok(Registers {
            general: [
                regs.get_rax(),
                regs.get_rcx(),
                regs.get_rdx(),
                regs.get_rbx(),
                regs.get_rsp(),
                regs.get_rbp(),
                regs.get_rsi(),
                regs.get_rdi(),
                regs.get_r8(),
                regs.get_r9(),
                regs.get_r10(),
                regs.get_r11(),
                regs.get_r12(),
                regs.get_r13(),
                regs.get_r14(),
                regs.get_r15(),
            ],
            rip: regs.get_rip(),
            flags: regs.get_rflags() & !RESUME,
            segment_bases: [
                special.es, special.cs, special.ss, special.ds, special.fs, special.gs,
            ]
            .map(base),
            code_size: code_size(&special),
        })
    }

    fn translate(&self, linear: u64) -> Option<GuestAddress> {
        let walk = || {
            let (guest, _) = self.vcpu.translate_gva(linear, 0).ok()?;
            Some(GuestAddress(guest))
        };
        if let Some(found) = walk() {
            return Some(found);
        }
        let regs = self.vcpu.get_regs().ok()?;
        if regs.get_rflags() & ALIGNMENT_CHECK != 0 {
            return None;
        }
        let mut allowed = regs;
        allowed.set_rflags(regs.get_rflags() | ALIGNMENT_CHECK);
        self.vcpu.set_regs(&allowed).ok()?;
        let found = walk();
        self.vcpu.set_regs(&regs).ok()?;
        found
    }

    fn begin_step(&mut self) -> io::Result<(Hidden, StepEnd)> {
        let (hidden, end) = if steps_reach_the_guest() {
            let table = self.vcpu.get_sregs().map_err(failed)?.idt;
            self.set_interrupt_table(DescriptorTable { limit: 0, ..table })?;
            (Hidden(Some(table)), StepEnd::Shutdown)
        } else {
            (Hidden(None), StepEnd::Debug)
        };
        if let Err(error) = self.vcpu.set_guest_debug(&[], true) {
            if let Some(table) = hidden.0 {
                self.set_interrupt_table(table)?;
            }
            return Err(failed(error));
        }
        self.steps = Some(end);
        Ok((hidden, end))
    }

    fn end_step(&mut self, hidden: Hidden) -> io::Result<()> {
        self.steps = None;
        let debugging = self.debugging();
        let ended = self.vcpu.set_guest_debug(&debugging.0, debugging.1);
        drop(debugging);
        // Whatever fails, as little as can be is left behind.
        let shown = hidden
            .0
            .map_or(Ok(()), |table| self.set_interrupt_table(table));
        ended.map_err(failed).and(shown)
    }
}

fn failed(error: HypervisorCpuError) -> io::Error {
    match errno_of(&error) {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::Error::other(error),
    }
}

fn code_size(special: &SpecialRegisters) -> CodeSize {
    match (
        special.efer & LONG_MODE != 0 && special.cs.l != 0,
        special.cs.db,
    ) {
        (true, _) => CodeSize::Bits64,
        (false, 0) => CodeSize::Bits16,
        (false, _) => CodeSize::Bits32,
    }
}

/// Whether this host's KVM is the PVM flavour.
fn steps_reach_the_guest() -> bool {
    static PVM: OnceLock<bool> = OnceLock::new();
    *PVM.get_or_init(|| Path::new("/sys/module/kvm_pvm").exists())
}
