//! Owns the question to the VMM where a guest touches what is not there: is the guest told, or does
//! a page stand in? Never puts one there.

use super::find::Found;
use super::tally::count;
use super::vcpu::FaultedVcpu;
use super::vcpu_faults::VcpuFaults;
use crate::access::copy;
use crate::range::GuestAddress;
use crate::window::holes::HolePolicy;
use crate::window::touch::{Touch, Touched};

/// Tells a guest of memory that is not there.
pub(super) type OnAbsent<V> = Box<dyn FnMut(&mut V, GuestAddress) -> bool + Send + Sync>;

impl<V: FaultedVcpu> VcpuFaults<V> {
    /// Has `tell` called where the vCPU touches a hole, or what a file that became shorter has left of
    /// its mapping, before a page stands in. It gets the vCPU, stopped at the instruction, and the
    /// guest address.
    ///
    /// It says whether the vCPU is to run again as it is: since the guest has been told, by a machine
    /// check for instance, or since `tell` has mapped something there, which it may. Otherwise the
    /// touch ends as without it. Who says yes and has changed nothing is asked again, as often as the
    /// vCPU faults; see [`after_run`](Self::after_run) for how often that is.
    ///
    /// Only holes of the policy [`Trap`](HolePolicy::Trap) are told: the others say what the guest
    /// finds. Not told is a touch that the hypervisor reports as one of a device, where no memslot
    /// lies; a write to read-only memory; whatever an instruction touches once a page stands in for
    /// its write; and what does not fault, since a page stands in for another vCPU.
    #[must_use]
    pub fn on_absent(
        mut self,
        tell: impl FnMut(&mut V, GuestAddress) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.on_absent = Some(Box::new(tell));
        self
    }

    /// Whether the vCPU is to run again as it is, and nothing stands in.
    pub(super) fn is_told(&mut self, vcpu: &mut V, all: &[Found]) -> bool {
        // What has begun is brought to its end.
        if self.steps() || self.on_absent.is_none() {
            return false;
        }
        let Some(found) = self.first_absent(all) else {
            return false;
        };
        let address = found.place.address();
        let told = self
            .on_absent
            .as_mut()
            .is_some_and(|tell| tell(vcpu, address));
        if told {
            count(&self.resolver.tally.told);
            self.resolver.tell_once(&found.place, false);
        }
        told
    }

    /// The first of the touches that finds nothing, unless the policy is to stop at one of them.
    fn first_absent<'a>(&self, all: &'a [Found]) -> Option<&'a Found> {
        let mut first = None;
        for found in all {
            let touch = Touch {
                offset: found.place.offset,
                write: found.write,
                stand_in: false,
                own: &[],
                copy: &|host, into| copy::read(host, into).map_err(Into::into),
            };
            match self.touch_with(found, touch) {
                Touched::Refused(_) => return None,
                Touched::Absent if found.place.window.hole_policy() == HolePolicy::Trap => {
                    first = first.or(Some(found));
                }
                _ => {}
            }
        }
        first
    }
}
