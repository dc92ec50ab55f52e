//! Owns the seam to KVM: what a resolver asks of `kvm_ioctls::VcpuFd`, and the loop around its run.
//! Never decides what a fault means.

use std::io;
use std::path::Path;
use std::sync::OnceLock;

use kvm_bindings::{
    KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, kvm_debugregs, kvm_dtable, kvm_guest_debug,
    kvm_sregs,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::exit::{After, Exit};
use super::report::Report;
use super::sigbus;
use super::vcpu::{CodeSize, FaultedVcpu, Registers, StepEnd};
use super::vcpu_faults::VcpuFaults;
use crate::range::GuestAddress;

/// `KVM_GUESTDBG_BLOCKIRQ` (Linux 5.15: `arch/x86/include/uapi/asm/kvm.h`); a kernel without it
/// takes no notice.
const BLOCK_INTERRUPTS: u32 = 1 << 20;
/// `EFER.LMA`: the vCPU is in long mode.
const LONG_MODE: u64 = 1 << 10;
/// How often a run that a signal ended is repeated, so that a step comes to its end.
const PUT_OFF: u32 = 4;
/// `RFLAGS.RF`, which a fault sets and nothing rests on.
const RESUME: u64 = 1 << 16;
/// `RFLAGS.AC`. `KVM_TRANSLATE` walks the page tables as ring 0 does, and `CR4.SMAP` keeps that out
/// of the pages of ring 3 while this flag is clear (Linux: `arch/x86/kvm/mmu.h`
/// `permission_fault`).
const ALIGNMENT_CHECK: u64 = 1 << 18;
/// `kvm_run.exit_reason` of no exit at all.
const NO_EXIT: u32 = 0;

/// What a step changed in a vCPU.
#[derive(Clone, Copy, Debug)]
pub struct KvmStepping {
    guest: Option<(kvm_dtable, kvm_debugregs)>,
}

/// Single steps work by `KVM_SET_GUEST_DEBUG`; the VMM itself must not use that call on a vCPU that
/// has a resolver, or it loses its settings to the next step.
///
/// On a host with KVM's PVM flavour (measured on Linux 6.18) the debug exception of a step goes to
/// the guest instead of the VMM. There, the guest's interrupt table is hidden while the step runs:
/// the exception cannot be delivered, and the step ends as a shutdown exit with all registers as
/// the instruction left them.
impl FaultedVcpu for VcpuFd {
    type Stepping = KvmStepping;

    fn registers(&self) -> io::Result<Registers> {
        let regs = self.get_regs()?;
        let sregs = self.get_sregs()?;
        let base = |segment: kvm_bindings::kvm_segment| segment.base;
        Ok(Registers {
            general: [
                regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi,
                regs.r8, regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
            ],
            rip: regs.rip,
            flags: regs.rflags & !RESUME,
            segment_bases: [sregs.es, sregs.cs, sregs.ss, sregs.ds, sregs.fs, sregs.gs].map(base),
            code_size: code_size(&sregs),
        })
    }

    fn translate(&self, linear: u64) -> Option<GuestAddress> {
        let walk = || {
            let found = self.translate_gva(linear).ok()?;
            (found.valid != 0).then_some(GuestAddress(found.physical_address))
        };
        if let Some(found) = walk() {
            return Some(found);
        }
        let regs = self.get_regs().ok()?;
        if regs.rflags & ALIGNMENT_CHECK != 0 {
            return None;
        }
        let mut allowed = regs;
        allowed.rflags |= ALIGNMENT_CHECK;
        self.set_regs(&allowed).ok()?;
        let found = walk();
        self.set_regs(&regs).ok()?;
        found
    }

    fn begin_step(&mut self) -> io::Result<(KvmStepping, StepEnd)> {
        if !steps_reach_the_guest() {
            self.set_guest_debug(&stepping())?;
            return Ok((KvmStepping { guest: None }, StepEnd::Debug));
        }
        let mut sregs = self.get_sregs()?;
        let guest = (sregs.idt, self.get_debug_regs()?);
        sregs.idt.limit = 0;
        self.set_sregs(&sregs)?;
        if let Err(error) = self.set_guest_debug(&stepping()) {
            sregs.idt = guest.0;
            self.set_sregs(&sregs)?;
            return Err(error.into());
        }
        Ok((KvmStepping { guest: Some(guest) }, StepEnd::Shutdown))
    }

    fn end_step(&mut self, stepping: KvmStepping) -> io::Result<()> {
        let ended = self.set_guest_debug(&kvm_guest_debug::default());
        let Some((table, debug)) = stepping.guest else {
            return Ok(ended?);
        };
        // Whatever fails, as little as can be is left behind.
        let shown = self.get_sregs().and_then(|mut sregs| {
            sregs.idt = table;
            self.set_sregs(&sregs)
        });
        let restored = self.set_debug_regs(&debug);
        Ok(ended.and(shown).and(restored)?)
    }
}

impl VcpuFaults<VcpuFd> {
    /// Runs `vcpu` until an exit that is the VMM's own, and hands that to `on_exit`: instead of
    /// `VcpuFd::run`. Faults in a window, and MMIO inside one, never get there.
    ///
    /// A run that a signal ends comes back as an error of the kind
    /// [`Interrupted`](io::ErrorKind::Interrupted), with nothing left to undo: the vCPU can be
    /// paused then, and its state be saved. A signal that comes while faults are dealt with is one
    /// that comes outside `KVM_RUN`: to be seen for sure, its handler sets `immediate_exit`, or it
    /// is blocked but in `KVM_RUN` (`KVM_SET_SIGNAL_MASK`).
    ///
    /// # Errors
    /// A [`Report`] of what the guest cannot get past. The vCPU may be run again once that has
    /// gone.
    pub fn run<R>(
        &mut self,
        vcpu: &mut VcpuFd,
        on_exit: impl FnOnce(io::Result<VcpuExit<'_>>) -> R,
    ) -> Result<R, Report> {
        let mut signal = Signal::default();
        self.hunt.listens = true;
        loop {
            if signal.came() && !self.is_step_end(StepEnd::Shutdown) {
                return self.leave(vcpu, &signal, libc::EINTR, on_exit);
            }
            // Linux 6.1 leaves the last exit's reason where a run fails.
            vcpu.get_kvm_run().exit_reason = NO_EXIT;
            let (ran, touched) = sigbus::listen(|| vcpu.run());
            let exit = match ran {
                Ok(VcpuExit::MemoryFault { gpa, .. }) => Exit::Fault(Some(GuestAddress(gpa))),
                Ok(VcpuExit::Debug(_)) if self.is_step_end(StepEnd::Debug) => Exit::Debug,
                Ok(VcpuExit::Shutdown) if self.is_step_end(StepEnd::Shutdown) => Exit::Shutdown,
                Ok(VcpuExit::MmioRead(address, into)) => {
                    match self.mmio_read(GuestAddress(address), into) {
                        After::RunAgain => continue,
                        After::Stop(report) => return self.hand_over(vcpu, &signal, Err(report)),
                        After::Yours => {
                            let answer = on_exit(Ok(VcpuExit::MmioRead(address, into)));
                            return self.hand_over(vcpu, &signal, Ok(answer));
                        }
                    }
                }
                Ok(VcpuExit::MmioWrite(address, from)) => {
                    match self.mmio_write(GuestAddress(address), from) {
                        After::RunAgain => continue,
                        After::Stop(report) => return self.hand_over(vcpu, &signal, Err(report)),
                        After::Yours => {
                            let answer = on_exit(Ok(VcpuExit::MmioWrite(address, from)));
                            return self.hand_over(vcpu, &signal, Ok(answer));
                        }
                    }
                }
                Ok(exit) => {
                    let answer = on_exit(Ok(exit));
                    return self.hand_over(vcpu, &signal, Ok(answer));
                }
                Err(error) => match (error.errno(), touched) {
                    (libc::EINTR, Some(host)) => Exit::HostFault(host),
                    (libc::EFAULT | libc::EHWPOISON, _) => Exit::Fault(None),
                    (libc::EINTR, None)
                        if self.is_step_end(StepEnd::Shutdown) && signal.put_off(vcpu) =>
                    {
                        continue;
                    }
                    (errno, _) => return self.leave(vcpu, &signal, errno, on_exit),
                },
            };
            let piece_over = matches!(exit, Exit::Shutdown);
            match self.after_run(vcpu, exit) {
                // What waited inside KVM has come. A repeating instruction would go on for as long as
                // the guest likes.
                After::RunAgain if piece_over && signal.came() => {
                    return self.leave(vcpu, &signal, libc::EINTR, on_exit);
                }
                After::RunAgain => {}
                After::Stop(report) => return self.hand_over(vcpu, &signal, Err(report)),
                After::Yours => {
                    // The window that was touched is closed by now.
                    let errno = touched.map_or(libc::EFAULT, |_| libc::EINTR);
                    return self.leave(vcpu, &signal, errno, on_exit);
                }
            }
        }
    }

    /// Ends what a step has begun, after the VMM has had the exit.
    fn hand_over<R>(
        &mut self,
        vcpu: &mut VcpuFd,
        signal: &Signal,
        answer: Result<R, Report>,
    ) -> Result<R, Report> {
        signal.put_back(vcpu);
        match self.not_ours(vcpu) {
            After::Stop(report) => Err(report),
            After::Yours | After::RunAgain => answer,
        }
    }

    /// Ends what a step has begun, and hands over a run that failed.
    fn leave<R>(
        &mut self,
        vcpu: &mut VcpuFd,
        signal: &Signal,
        errno: i32,
        on_exit: impl FnOnce(io::Result<VcpuExit<'_>>) -> R,
    ) -> Result<R, Report> {
        self.hand_over(vcpu, signal, Ok(()))?;
        Ok(on_exit(Err(io::Error::from_raw_os_error(errno))))
    }
}

/// A signal that came during a step that ends as a shutdown. By then, the debug exception of the
/// step, or the shutdown that it becomes, can wait inside KVM, where nobody can take it away: so the
/// step is run to its end first. KVM deals with what waits before it looks for signals (Linux:
/// `arch/x86/kvm/x86.c` `vcpu_enter_guest`), so a few runs are enough, also if the signal stays
/// pending; and if they bring nothing, nothing waited.
#[derive(Debug, Default)]
struct Signal {
    times: u32,
    immediate: bool,
}

impl Signal {
    fn came(&self) -> bool {
        self.times > 0
    }

    /// Whether the vCPU may be run on for a moment.
    fn put_off(&mut self, vcpu: &mut VcpuFd) -> bool {
        self.immediate |= vcpu.get_kvm_run().immediate_exit != 0;
        vcpu.set_kvm_immediate_exit(0);
        self.times = self.times.saturating_add(1);
        self.times <= PUT_OFF
    }

    fn put_back(&self, vcpu: &mut VcpuFd) {
        if self.immediate {
            vcpu.set_kvm_immediate_exit(1);
        }
    }
}

fn stepping() -> kvm_guest_debug {
    kvm_guest_debug {
        control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | BLOCK_INTERRUPTS,
        ..Default::default()
    }
}

fn code_size(sregs: &kvm_sregs) -> CodeSize {
    match (sregs.efer & LONG_MODE != 0 && sregs.cs.l != 0, sregs.cs.db) {
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
