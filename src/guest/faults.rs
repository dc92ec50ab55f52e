//! Owns what deals with the faults of a guest's vCPUs, once somebody wants that. Never runs one.

use std::fmt;
use std::sync::{Arc, OnceLock};

use kvm_ioctls::VcpuFd;
use vm_remap::GuestAddress;
use vm_remap::fault::{FaultResolver, VcpuFaults};

/// Whether a vCPU that touched what is not there, at this address, is to run again as it is.
type Tell = Box<dyn Fn(&mut VcpuFd, GuestAddress) -> bool + Send + Sync>;

/// A resolver, and what is done first where a vCPU touches what is not there.
#[derive(Default)]
pub(super) struct Faults {
    pub(super) resolver: OnceLock<Arc<FaultResolver>>,
    pub(super) tell: OnceLock<Tell>,
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults")
            .field("resolver", &self.resolver)
            .finish_non_exhaustive()
    }
}

impl Faults {
    /// The part for one vCPU, if there is a resolver by now.
    pub(super) fn vcpu(self: &Arc<Self>) -> Option<VcpuFaults<VcpuFd>> {
        let faults = self.resolver.get()?.vcpu();
        if self.tell.get().is_none() {
            return Some(faults);
        }
        let all = Arc::clone(self);
        Some(
            faults.on_absent(move |vcpu, address| {
                all.tell.get().is_some_and(|tell| tell(vcpu, address))
            }),
        )
    }
}
