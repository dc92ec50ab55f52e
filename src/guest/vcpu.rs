//! Owns what happens on a vCPU's thread: it takes commands, runs the guest and
//! deals with its exits. Never decides what to run.

use std::fmt::Display;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use kvm_bindings::kvm_regs;
use kvm_ioctls::{VcpuExit, VcpuFd};
use rustix::time::{ClockId, clock_gettime};
use vm_remap::fault::{Report, VcpuFaults};

use super::error::GuestError;
use super::faults::Faults;
use super::memory::{Layout, PASSES};
use super::ram::Ram;

/// More pieces than one instruction's access is ever split into.
const SETTLE_LIMIT: u32 = 64;

/// What the thread is asked to do. A closed channel asks it to end.
#[derive(Debug)]
pub(super) enum Command {
    /// Run until the stop flag is up.
    Endless(kvm_regs),
    /// Run until the doorbell rings.
    Once(kvm_regs),
}

/// What the thread answers.
#[derive(Debug)]
pub(super) enum Reply {
    /// The registers of an endless program are loaded; the next step runs it.
    Started,
    /// An endless program ended.
    Ran(Result<Ran, GuestError>),
    /// A one-shot program ended.
    Once(Result<Access<u64>, GuestError>),
}

/// What an endless program did between start and stop.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Ran {
    /// CPU time the vCPU's thread used, guest and host side together.
    pub cpu: Duration,
    /// Completed passes.
    pub passes: u64,
    /// Completed accesses, those of the unfinished pass included: a finer
    /// measure of the same work.
    pub accesses: u64,
    /// How often `KVM_RUN` ended with EFAULT.
    pub efaults: u64,
    /// MMIO exits; their reads were answered with all ones.
    pub mmio: u64,
    /// How often a signal ended `KVM_RUN`.
    pub signals: u64,
}

/// How one access (or a run of them) by the guest ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Access<T> {
    /// It was done, with this result.
    Done(T),
    /// `KVM_RUN` ended with EFAULT. KVM does not tell the address.
    Fault,
    /// The fault resolver gave up.
    Stopped(Report),
    /// `KVM_RUN` ended with an MMIO exit: no slot, or one KVM cannot write.
    Mmio {
        /// The guest-physical address of the access.
        gpa: u64,
        /// Whether the guest wrote.
        write: bool,
    },
}

/// One return from `KVM_RUN`.
#[derive(Clone, Copy, Debug)]
enum Step {
    Interrupted,
    Fault,
    Read { gpa: u64 },
    Write { gpa: u64, value: u64 },
    Stopped(Report),
}

/// The vCPU, as its thread sees it.
#[derive(Debug)]
pub(super) struct Runner {
    pub(super) index: usize,
    pub(super) fd: VcpuFd,
    /// Keeps guest memory alive for as long as the vCPU may run.
    pub(super) ram: Arc<Ram>,
    pub(super) doorbell: u64,
    /// Filled in once somebody wants faults to be resolved.
    pub(super) all_faults: Arc<Faults>,
    pub(super) faults: Option<VcpuFaults<VcpuFd>>,
    pub(super) stop: Arc<AtomicBool>,
    pub(super) commands: Receiver<Command>,
    pub(super) replies: Sender<Reply>,
}

impl Runner {
    /// Serves commands until the other side hangs up.
    pub(super) fn serve(mut self) {
        while let Ok(command) = self.commands.recv() {
            let reply = match command {
                Command::Endless(regs) => Reply::Ran(self.endless(&regs)),
                Command::Once(regs) => Reply::Once(self.once(&regs)),
            };
            if self.replies.send(reply).is_err() {
                return;
            }
        }
    }

    fn load(&self, regs: &kvm_regs) -> Result<(), GuestError> {
        self.fd
            .set_regs(regs)
            .map_err(GuestError::kvm("load the guest's registers"))
    }

    fn endless(&mut self, regs: &kvm_regs) -> Result<Ran, GuestError> {
        self.load(regs)?;
        let mut ran = Ran::default();
        // Nobody to hear it means nobody to stop us: do not even begin.
        if self.replies.send(Reply::Started).is_err() {
            return Ok(ran);
        }
        let begun = cpu_time();
        while !self.stop.load(Ordering::SeqCst) {
            let count = match self.step()? {
                Step::Interrupted => &mut ran.signals,
                Step::Fault => &mut ran.efaults,
                Step::Read { .. } | Step::Write { .. } => &mut ran.mmio,
                Step::Stopped(report) => return Err(self.odd_exit(&report)),
            };
            *count = count.saturating_add(1);
        }
        ran.cpu = cpu_time().saturating_sub(begun);
        self.settle()?;
        let regs = self
            .fd
            .get_regs()
            .map_err(GuestError::kvm("read the guest's registers"))?;
        ran.accesses = regs.r15;
        ran.passes = self
            .ram
            .load(Layout::counters(self.index).wrapping_add(PASSES.into()))?;
        Ok(ran)
    }

    fn once(&mut self, regs: &kvm_regs) -> Result<Access<u64>, GuestError> {
        self.load(regs)?;
        let ended = loop {
            // Only a caller who lost patience raises the flag; it knows what
            // the answer is worth.
            if self.stop.load(Ordering::SeqCst) {
                break Access::Fault;
            }
            match self.step()? {
                Step::Interrupted => {}
                Step::Fault => break Access::Fault,
                Step::Write { gpa, value } if gpa == self.doorbell => break Access::Done(value),
                Step::Write { gpa, .. } => break Access::Mmio { gpa, write: true },
                Step::Stopped(report) => break Access::Stopped(report),
                Step::Read { gpa } => break Access::Mmio { gpa, write: false },
            }
        };
        self.settle()?;
        Ok(ended)
    }

    /// Runs the guest up to its next exit; MMIO reads get all ones.
    fn step(&mut self) -> Result<Step, GuestError> {
        if self.faults.is_none() {
            self.faults = self.all_faults.vcpu();
        }
        let step = match &mut self.faults {
            None => classify(self.fd.run().map_err(Into::into)),
            Some(faults) => match faults.run(&mut self.fd, classify) {
                Ok(step) => step,
                Err(report) => Ok(Step::Stopped(report)),
            },
        };
        step.map_err(|exit| self.odd_exit(&exit))
    }

    fn odd_exit(&self, exit: &dyn Display) -> GuestError {
        GuestError::Exit {
            vcpu: self.index,
            exit: exit.to_string(),
            rip: self.fd.get_regs().map_or(0, |regs| regs.rip),
        }
    }

    /// Lets KVM finish an instruction that waits for its MMIO answer, without
    /// running the guest on: else it would write its result into the
    /// registers of the next program.
    fn settle(&mut self) -> Result<(), GuestError> {
        self.fd.set_kvm_immediate_exit(1);
        let mut left = SETTLE_LIMIT;
        let ended = loop {
            match self.step() {
                Ok(Step::Read { .. } | Step::Write { .. }) if left > 0 => {
                    left = left.wrapping_sub(1);
                }
                other => break other,
            }
        };
        self.fd.set_kvm_immediate_exit(0);
        ended.map(|_| ())
    }
}

/// What an exit is to this guest; MMIO reads get all ones.
fn classify(exit: io::Result<VcpuExit<'_>>) -> Result<Step, String> {
    match exit {
        Ok(VcpuExit::MmioRead(gpa, data)) => {
            data.fill(0xff);
            Ok(Step::Read { gpa })
        }
        Ok(VcpuExit::MmioWrite(gpa, data)) => {
            let value = data.try_into().map_or(0, u64::from_le_bytes);
            Ok(Step::Write { gpa, value })
        }
        Ok(VcpuExit::MemoryFault { .. }) => Ok(Step::Fault),
        Ok(VcpuExit::Intr) => Ok(Step::Interrupted),
        Ok(other) => Err(format!("{other:?}")),
        Err(error) => match error.raw_os_error() {
            Some(libc::EINTR) => Ok(Step::Interrupted),
            Some(libc::EFAULT) => Ok(Step::Fault),
            _ => Err(format!("the error {error}")),
        },
    }
}

/// The CPU time of the calling thread.
fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}
