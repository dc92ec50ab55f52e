//! Owns the words between a VMM's loop and the resolver: how a run ended, and what comes next.
//! Never decides which.

use super::report::Report;
use crate::range::GuestAddress;

/// How a run of the vCPU ended, for [`VcpuFaults::after_run`](super::VcpuFaults::after_run).
#[derive(Debug)]
#[non_exhaustive]
pub enum Exit<'a> {
    /// The run failed with `EFAULT` (or `EHWPOISON`). The address is what the hypervisor tells, if
    /// it does: KVM by `KVM_EXIT_MEMORY_FAULT`, to be believed only if `exit_reason` was set to 0
    /// before the run, since Linux 6.1 leaves there what it was.
    Fault(Option<GuestAddress>),
    /// The vCPU's thread got a SIGBUS (`BUS_MCEERR_AR`) during the run, with this host address.
    HostFault(u64),
    /// The guest reads device memory here; the buffer is for the answer.
    MmioRead(GuestAddress, &'a mut [u8]),
    /// The guest writes device memory here.
    MmioWrite(GuestAddress, &'a [u8]),
    /// A debug exit.
    Debug,
    /// A shutdown (triple fault).
    Shutdown,
    /// Anything else: a signal, a device's ports, a halt.
    Other,
}

/// What the VMM does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum After {
    /// Run the vCPU again. The exit was the resolver's.
    RunAgain,
    /// The exit is the VMM's own. The resolver has no stake in it.
    Yours,
    /// Do not run the vCPU on as it is.
    Stop(Report),
}
