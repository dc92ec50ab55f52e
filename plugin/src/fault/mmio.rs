//! Owns the answer to an access that the hypervisor emulated and left to the VMM, at an address
//! inside a window. Never looks at an instruction.

use super::Place;
use super::exit::After;
use super::find::Found;
use super::tally::count;
use super::vcpu::FaultedVcpu;
use super::vcpu_faults::VcpuFaults;
use crate::access::copy;
use crate::access::pin::Pin;
use crate::error::Error;
use crate::range::{GuestAddress, PAGE_SIZE, PageRange};
use crate::window::holes::HolePolicy;
use crate::window::touch::{Obstacle, Touch, Touched};

/// What to do about an access.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// Nothing is there.
    Hole(HolePolicy),
    /// Memory is there.
    Memory,
    /// The write is dropped.
    Dropped,
    /// Not at all.
    Stop(Obstacle),
}

impl<V: FaultedVcpu> VcpuFaults<V> {
    /// Answers a read of device memory, if it lies in a window.
    pub(super) fn mmio_read(&mut self, address: GuestAddress, into: &mut [u8]) -> After {
        let Some(place) = self.resolver.place_at(address) else {
            return After::Yours;
        };
        let memory = place.clone();
        self.mmio(place, false, |way| match way {
            Way::Memory => memory.pinned(into.len(), |pin, at| pin.read(at, into)),
            Way::Hole(HolePolicy::Zero) => {
                into.fill(0);
                true
            }
            Way::Hole(_) | Way::Dropped | Way::Stop(_) => {
                into.fill(0xff);
                true
            }
        })
    }

    /// Takes a write of device memory, if it lies in a window.
    pub(super) fn mmio_write(&mut self, address: GuestAddress, from: &[u8]) -> After {
        let Some(place) = self.resolver.place_at(address) else {
            return After::Yours;
        };
        let memory = place.clone();
        self.mmio(place, true, |way| match way {
            Way::Memory => memory.pinned(from.len(), |pin, at| pin.write(at, from)),
            Way::Hole(_) | Way::Dropped | Way::Stop(_) => true,
        })
    }

    fn mmio(&mut self, place: Place, write: bool, mut answer: impl FnMut(Way) -> bool) -> After {
        count(&self.resolver.tally.mmio);
        self.keep_pace();
        let found = Found { place, write };
        let (mut way, mut read_only) = self.way(&found);
        if matches!(way, Way::Memory) {
            if answer(way) {
                return After::RunAgain;
            }
            // The memory has gone since.
            (way, read_only) = self.way(&found);
        }
        if let Way::Stop(obstacle) = way {
            return After::Stop(self.report(None, Some(&found), obstacle));
        }
        if matches!(way, Way::Memory) && answer(way) {
            return After::RunAgain;
        }
        answer(match way {
            Way::Dropped => way,
            _ => Way::Hole(found.place.window.hole_policy()),
        });
        self.answered(&found.place, read_only);
        After::RunAgain
    }

    /// What to do, and whether a read-only mapping is there.
    fn way(&mut self, found: &Found) -> (Way, bool) {
        let place = &found.place;
        let Some(there) = place.window.lookup(place.address()) else {
            let policy = place.window.hole_policy();
            return match policy {
                HolePolicy::Stop => (Way::Stop(Obstacle::Hole), false),
                HolePolicy::Trap | HolePolicy::Zero => (Way::Hole(policy), false),
            };
        };
        if found.write && !there.mapping.protection().is_writable() {
            return match place.window.drops_read_only_writes() {
                true => (Way::Dropped, true),
                false => {
                    let label = there.mapping.label();
                    (Way::Stop(Obstacle::ReadOnly { label }), true)
                }
            };
        }
        let touch = Touch {
            offset: place.offset,
            write: found.write,
            stand_in: false,
            own: &[],
            copy: &|host, into| copy::read(host, into).map_err(Into::into),
        };
        (self.probe(found, touch), false)
    }

    fn probe(&mut self, found: &Found, touch: Touch<'_>) -> Way {
        match self.touch_with(found, touch) {
            Touched::Present(_) | Touched::Standing | Touched::Substituted(..) => Way::Memory,
            // The mapping has gone meanwhile, or has lost its pages.
            Touched::Absent => Way::Hole(found.place.window.hole_policy()),
            Touched::Refused(obstacle) => Way::Stop(obstacle),
        }
    }
}

impl Place {
    /// Accesses `len` bytes from here on, which cannot be unmapped meanwhile. Tells whether all of
    /// them could be.
    fn pinned(&self, len: usize, access: impl FnOnce(&Pin<'_>, u64) -> Result<(), Error>) -> bool {
        let into = self.offset % PAGE_SIZE;
        let end = self.offset.checked_add(len as u64);
        let end = end.and_then(|end| end.checked_next_multiple_of(PAGE_SIZE));
        let pages = end.and_then(|end| PageRange::between(self.offset.wrapping_sub(into), end));
        let pin = pages.and_then(|pages| self.window.pin(pages).ok());
        pin.is_some_and(|pin| access(&pin, into).is_ok())
    }
}
