//! Owns the run of a decorated vCPU: what ended it, and whether that was a window's. Never decides
//! what a fault means.

mod faulted;
mod passed;

use std::sync::Arc;

use hypervisor::{HypervisorCpuError, Vcpu, VmExit};
use vm_remap::fault::{After, Exit, Report, StepEnd, VcpuFaults};

use self::faulted::Faulted;
use crate::error::errno_of;
use crate::ops::{Met, WindowOps};
use crate::vm::Faults;

/// How often a run that a signal ended is repeated, so that a step comes to its end.
const PUT_OFF: u32 = 4;

/// A vCPU whose accesses to windows never end it, unless the window says so.
pub(crate) struct RemapVcpu {
    vcpu: Faulted,
    faults: VcpuFaults<Faulted>,
    ops: Arc<WindowOps>,
    shared: Arc<Faults>,
    /// The resolver has left something with the vCPU, for its next run.
    owes: bool,
}

/// What comes after a run.
enum Next {
    Again,
    Ended(Result<VmExit, HypervisorCpuError>),
}

impl RemapVcpu {
    pub(crate) fn new(vcpu: Box<dyn Vcpu>, ops: Arc<WindowOps>, shared: &Arc<Faults>) -> Self {
        Self {
            vcpu: Faulted::new(vcpu),
            faults: shared.resolver.vcpu(),
            ops,
            shared: Arc::clone(shared),
            owes: false,
        }
    }

    /// Runs until an exit that is the VMM's. A fault that was dealt with is none; an access that
    /// KVM emulated is one to be ignored, as those are that the VMM answers.
    fn run_on(&mut self) -> Result<VmExit, HypervisorCpuError> {
        // A signal that came while a step waits inside KVM for its end.
        let mut signals = 0;
        loop {
            let (vcpu, faults) = (&mut self.vcpu.vcpu, &mut self.faults);
            let (ran, touched) = faults.listen(|| vcpu.run());
            let met = self.ops.take_met();
            if !self.owes && !self.shared.matter() {
                return ran;
            }
            let next = match met {
                Met::Answered if self.vcpu.steps().is_some() => Next::Again,
                Met::Answered => Next::Ended(ran),
                Met::Stopped(report) => self.hand_over(Err(stopped(report))),
                Met::Passed => self.hand_over(ran),
                Met::Nothing => self.after(ran, touched, &mut signals),
            };
            if let Next::Ended(ended) = next {
                return ended;
            }
        }
    }

    /// What comes after a run that asked the VMM for nothing.
    fn after(
        &mut self,
        ran: Result<VmExit, HypervisorCpuError>,
        touched: Option<u64>,
        signals: &mut u32,
    ) -> Next {
        let exit = match &ran {
            Ok(VmExit::Ignore) if let Some(host) = touched => Exit::HostFault(host),
            Err(error) if is_fault(error) => Exit::Fault(None),
            Ok(VmExit::Debug) => Exit::Debug,
            // How the hypervisor crate tells a shutdown.
            Ok(VmExit::Reset) => Exit::Shutdown,
            // A signal. The shutdown that ends the step may wait inside KVM, where nobody can take
            // it away: it comes before KVM looks for signals again.
            Ok(VmExit::Ignore) if self.vcpu.steps() == Some(StepEnd::Shutdown) => {
                *signals = signals.saturating_add(1);
                if *signals <= PUT_OFF {
                    self.vcpu.vcpu.set_immediate_exit(false);
                    return Next::Again;
                }
                Exit::Other
            }
            _ => Exit::Other,
        };
        match self.faults.after_run(&mut self.vcpu, exit) {
            // What waited inside KVM has come.
            After::RunAgain if *signals > 0 => self.hand_over(Ok(VmExit::Ignore)),
            After::RunAgain => {
                self.owes = true;
                Next::Again
            }
            After::Yours => {
                self.owes = false;
                Next::Ended(ran)
            }
            After::Stop(report) => {
                self.owes = false;
                Next::Ended(Err(stopped(report)))
            }
        }
    }

    /// Ends what the resolver has begun, and gives `ended` to the VMM.
    fn hand_over(&mut self, ended: Result<VmExit, HypervisorCpuError>) -> Next {
        self.owes = false;
        Next::Ended(match self.faults.after_run(&mut self.vcpu, Exit::Other) {
            After::Stop(report) => Err(stopped(report)),
            After::Yours | After::RunAgain => ended,
        })
    }

    fn run_to_the_next_exit(&mut self) -> Result<VmExit, HypervisorCpuError> {
        let ended = self.run_on();
        if self.vcpu.immediate_exit {
            self.vcpu.vcpu.set_immediate_exit(true);
        }
        ended
    }
}

fn stopped(report: Report) -> HypervisorCpuError {
    HypervisorCpuError::RunVcpu(report.into())
}

/// Whether KVM could not serve an access of the guest's. `KvmVcpu` makes a text of the number, so
/// the text it is where no cause carries the number.
fn is_fault(error: &HypervisorCpuError) -> bool {
    const FAULTS: [i32; 2] = [libc::EFAULT, libc::EHWPOISON];
    let HypervisorCpuError::RunVcpu(cause) = error else {
        return false;
    };
    match errno_of(cause.as_ref()) {
        Some(errno) => FAULTS.contains(&errno),
        None => {
            let text = cause.to_string();
            FAULTS
                .iter()
                .any(|errno| text == format!("VCPU error Error({errno})"))
        }
    }
}
