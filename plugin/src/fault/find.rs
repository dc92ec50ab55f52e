//! Owns the search for the addresses that a faulting instruction touches inside the windows.
//! Never changes anything.

use super::decode::{Decoded, LONGEST, decode};
use super::vcpu::{FaultedVcpu, Registers};
use super::{FaultResolver, Place};
use crate::access::copy;
use crate::range::{GuestAddress, PAGE_SIZE};
use crate::window::Window;

/// A place in a window that an instruction touches.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) place: Place,
    /// Whether it may be a write.
    pub(super) write: bool,
}

/// All of them, and whether the instruction repeats.
#[derive(Debug)]
pub(super) struct Search {
    pub(super) found: Vec<Found>,
    pub(super) repeats: bool,
    /// Whether the guest's own page tables have nothing for one of its accesses: it will take a
    /// page fault of its own.
    pub(super) guest_faults: bool,
}

impl FaultResolver {
    /// Everything inside a window that the instruction at RIP touches, itself included.
    pub(super) fn search<V: FaultedVcpu>(&self, vcpu: &V, registers: &Registers) -> Search {
        let (code, in_window) = self.fetch(vcpu, registers);
        let Decoded { accesses, repeats } = decode(&code, registers);
        let mut guest_faults = false;
        let mut found: Vec<Found> = in_window.into_iter().collect();
        for access in accesses {
            let last = access.linear.wrapping_add(access.len.saturating_sub(1));
            let last = registers.wrapped(last);
            let pages = if access.linear / PAGE_SIZE == last / PAGE_SIZE {
                [Some(access.linear), None]
            } else {
                [Some(access.linear), Some(last)]
            };
            for linear in pages.into_iter().flatten() {
                let at = vcpu.translate(linear);
                guest_faults |= at.is_none();
                if let Some(place) = at.and_then(|at| self.place_at(at)) {
                    let write = access.write;
                    found.push(Found { place, write });
                }
            }
        }
        Search {
            found,
            repeats,
            guest_faults,
        }
    }

    pub(super) fn place_at(&self, guest: GuestAddress) -> Option<Place> {
        self.place(|window: &Window| window.offset_of(guest))
    }

    pub(super) fn place_of_host(&self, host: u64) -> Option<Place> {
        self.place(|window: &Window| window.offset_of_host(host))
    }

    /// The bytes at RIP, as many as can be read. Where they lie in a window and cannot be read,
    /// the fetch itself is what faulted.
    fn fetch<V: FaultedVcpu>(&self, vcpu: &V, registers: &Registers) -> (Vec<u8>, Option<Found>) {
        let mut code = Vec::with_capacity(LONGEST);
        let mut linear = registers.wrapped(registers.code_base().wrapping_add(registers.rip));
        while code.len() < LONGEST {
            let in_page = PAGE_SIZE.wrapping_sub(linear % PAGE_SIZE);
            let left = LONGEST.wrapping_sub(code.len());
            let len = usize::try_from(in_page).map_or(left, |in_page| in_page.min(left));
            let Some(guest) = vcpu.translate(linear) else {
                break;
            };
            let mut bytes = [0; LONGEST];
            let Some(part) = bytes.get_mut(..len) else {
                break;
            };
            if let Some(place) = self.place_at(guest) {
                let there = place.window.lookup(guest);
                if there.is_none_or(|there| copy::read(there.host_address, part).is_err()) {
                    return (
                        code,
                        Some(Found {
                            place,
                            write: false,
                        }),
                    );
                }
            } else if !self.code.read(guest, part) {
                break;
            }
            code.extend_from_slice(part);
            linear = registers.wrapped(linear.wrapping_add(len as u64));
        }
        (code, None)
    }
}
