//! Owns what a vCPU's run asks of the VMM while it lasts: accesses that KVM emulated, and guest RAM
//! to read instructions from. Answers those inside windows, and passes the others.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use hypervisor::{HypervisorVmError, VmOps};
use vm_remap::GuestAddress;
use vm_remap::fault::{
    After, Exit, FaultedVcpu, GuestCode, Registers, Report, StepEnd, VcpuFaults,
};

use crate::vm::Faults;

type Result<T> = std::result::Result<T, HypervisorVmError>;

/// Guest RAM, through the VMM's own operations.
#[derive(Default)]
pub(crate) struct GuestRam {
    // The VMM's operations can hold the VM.
    ops: RwLock<Option<Weak<dyn VmOps>>>,
}

impl fmt::Debug for GuestRam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestRam").finish_non_exhaustive()
    }
}

impl GuestRam {
    /// From now on it is read with `ops`, as long as they live.
    pub(crate) fn is_read_with(&self, ops: &Arc<dyn VmOps>) {
        let mut own = self.ops.write().unwrap_or_else(PoisonError::into_inner);
        *own = Some(Arc::downgrade(ops));
    }
}

impl GuestCode for GuestRam {
    fn read(&self, address: GuestAddress, into: &mut [u8]) -> bool {
        let ops = self.ops.read().unwrap_or_else(PoisonError::into_inner);
        let Some(ops) = ops.as_ref().and_then(Weak::upgrade) else {
            return false;
        };
        let wanted = into.len();
        ops.guest_mem_read(address.0, into)
            .is_ok_and(|read| read == wanted)
    }
}

/// What a run met on its way.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Met {
    /// Nothing.
    #[default]
    Nothing,
    /// An access that was the VMM's own.
    Passed,
    /// An access that was answered here.
    Answered,
    /// An access that the guest cannot get past.
    Stopped(Report),
}

/// The VMM's operations, with those inside windows answered first. One for each vCPU.
pub(crate) struct WindowOps {
    inner: Option<Arc<dyn VmOps>>,
    faults: Arc<Faults>,
    state: Mutex<State>,
}

struct State {
    resolver: VcpuFaults<Elsewhere>,
    met: Met,
}

impl WindowOps {
    pub(crate) fn new(inner: Option<Arc<dyn VmOps>>, faults: &Arc<Faults>) -> Self {
        Self {
            inner,
            faults: Arc::clone(faults),
            state: Mutex::new(State {
                resolver: faults.resolver.vcpu(),
                met: Met::Nothing,
            }),
        }
    }

    /// What the last run met. Never called while one lasts.
    pub(crate) fn take_met(&self) -> Met {
        std::mem::take(&mut self.state().met)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the access is dealt with; an error where the guest cannot get past it.
    fn is_answered(&self, exit: Exit<'_>) -> std::result::Result<bool, Report> {
        let mut state = self.state();
        state.met = Met::Passed;
        if !self.faults.matter() {
            return Ok(false);
        }
        match state.resolver.after_run(&mut Elsewhere, exit) {
            After::RunAgain => {
                state.met = Met::Answered;
                Ok(true)
            }
            After::Yours => Ok(false),
            After::Stop(report) => {
                state.met = Met::Stopped(report);
                Err(report)
            }
        }
    }

    fn passed<T>(&self, call: impl FnOnce(&dyn VmOps) -> Result<T>, without: T) -> Result<T> {
        self.inner.as_deref().map_or(Ok(without), call)
    }

    fn passed_port<T>(&self, call: impl FnOnce(&dyn VmOps) -> Result<T>, without: T) -> Result<T> {
        self.state().met = Met::Passed;
        self.passed(call, without)
    }
}

impl VmOps for WindowOps {
    fn guest_mem_write(&self, gpa: u64, buf: &[u8]) -> Result<usize> {
        self.passed(|ops| ops.guest_mem_write(gpa, buf), 0)
    }

    fn guest_mem_read(&self, gpa: u64, buf: &mut [u8]) -> Result<usize> {
        self.passed(|ops| ops.guest_mem_read(gpa, buf), 0)
    }

    fn mmio_read(&self, gpa: u64, data: &mut [u8]) -> Result<()> {
        let exit = Exit::MmioRead(GuestAddress(gpa), data);
        let answered = self.is_answered(exit);
        if answered.map_err(|report| HypervisorVmError::MmioBusRead(report.into()))? {
            return Ok(());
        }
        self.passed(|ops| ops.mmio_read(gpa, data), ())
    }

    fn mmio_write(&self, gpa: u64, data: &[u8]) -> Result<()> {
        let answered = self.is_answered(Exit::MmioWrite(GuestAddress(gpa), data));
        if answered.map_err(|report| HypervisorVmError::MmioBusWrite(report.into()))? {
            return Ok(());
        }
        self.passed(|ops| ops.mmio_write(gpa, data), ())
    }

    fn pio_read(&self, port: u64, data: &mut [u8]) -> Result<()> {
        self.passed_port(|ops| ops.pio_read(port, data), ())
    }

    fn pio_write(&self, port: u64, data: &[u8]) -> Result<()> {
        self.passed_port(|ops| ops.pio_write(port, data), ())
    }
}

/// The vCPU, while it is busy with the run that asks: an emulated access needs nothing of it.
struct Elsewhere;

impl FaultedVcpu for Elsewhere {
    type Stepping = ();

    fn registers(&self) -> io::Result<Registers> {
        Err(io::ErrorKind::ResourceBusy.into())
    }

    fn translate(&self, _: u64) -> Option<GuestAddress> {
        None
    }

    fn begin_step(&mut self) -> io::Result<((), StepEnd)> {
        Err(io::ErrorKind::ResourceBusy.into())
    }

    fn end_step(&mut self, (): ()) -> io::Result<()> {
        Ok(())
    }
}
