//! Owns the state of one vCPU from one fault to the next, and what is answered to the VMM. Never runs
//! the vCPU.

use std::fmt;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Instant;

use super::absent::OnAbsent;
use super::exit::{After, Exit};
use super::find::{Found, Search};
use super::hunt::Hunt;
use super::rate::Pace;
use super::report::{Event, Report};
use super::step::Step;
use super::tally::count;
use super::vcpu::{FaultedVcpu, Registers, StepEnd};
use super::{FaultResolver, Place};
use crate::access::copy;
use crate::range::PAGE_SIZE;
use crate::window::Window;
use crate::window::substitute::Ticket;
use crate::window::touch::{Obstacle, Touch, Touched};

/// How often nothing can be in the way of the same instruction, with the same registers and
/// unchanged windows, before it is given up.
const FRUITLESS: u32 = 64;
/// How often that is before its address is hunted for: where a page stands in, and where none does.
const PATIENCE_STANDING: u32 = 8;
const PATIENCE: u32 = 1;

/// One vCPU's part of a [`FaultResolver`], used by its thread.
///
/// Dropped, or given up half-way, it leaves no substitute behind; what it asked of the vCPU stays,
/// so a vCPU should not be used without it after an [`After::RunAgain`].
pub struct VcpuFaults<V: FaultedVcpu> {
    pub(super) resolver: Arc<FaultResolver>,
    pub(super) step: Option<Step<V>>,
    /// A vCPU that does not leave the guest keeps no window open.
    held: Vec<(Weak<Window>, Ticket)>,
    pace: Pace,
    slowed_told: bool,
    fruitless: (Registers, u64, u32),
    pub(super) hunt: Hunt,
    pub(super) on_absent: Option<OnAbsent<V>>,
}

/// What has become of the touches of one instruction.
#[derive(Default)]
struct Dealt {
    /// The newest state of a window in which nothing is in the way.
    present: Option<u64>,
    /// A page stands in.
    stands: bool,
    /// It, or another, does for a write.
    written: bool,
}

impl<V: FaultedVcpu> fmt::Debug for VcpuFaults<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VcpuFaults")
            .field("steps", &self.step.is_some())
            .field("held", &self.held.len())
            .finish_non_exhaustive()
    }
}

impl<V: FaultedVcpu> VcpuFaults<V> {
    pub(super) fn new(resolver: Arc<FaultResolver>) -> Self {
        Self {
            resolver,
            step: None,
            held: Vec::new(),
            pace: Pace::new(),
            slowed_told: false,
            fruitless: (Registers::default(), 0, 0),
            hunt: Hunt::default(),
            on_absent: None,
        }
    }

    /// Deals with the end of a run. Call it once after each run of `vcpu`, before anything else is
    /// done about the exit, and with the same vCPU always.
    ///
    /// It sleeps where the vCPU faults without end: from the 2001st fault in a second on, 1 ms for
    /// each.
    pub fn after_run(&mut self, vcpu: &mut V, exit: Exit<'_>) -> After {
        match exit {
            Exit::Fault(address) => {
                let place = address.and_then(|address| self.resolver.place_at(address));
                self.fault(vcpu, place)
            }
            Exit::HostFault(address) => match self.resolver.place_of_host(address) {
                Some(place) => {
                    self.hunt.found();
                    self.fault(vcpu, Some(place))
                }
                None => self.not_ours(vcpu),
            },
            Exit::MmioRead(address, into) => {
                let after = self.mmio_read(address, into);
                self.emulated(vcpu, after)
            }
            Exit::MmioWrite(address, from) => {
                let after = self.mmio_write(address, from);
                self.emulated(vcpu, after)
            }
            Exit::Debug => self.stepped(vcpu, StepEnd::Debug),
            Exit::Shutdown => self.stepped(vcpu, StepEnd::Shutdown),
            Exit::Other => self.not_ours(vcpu),
        }
    }

    /// What comes after an emulated access: no step outlives one that is not answered.
    fn emulated(&mut self, vcpu: &mut V, after: After) -> After {
        match after {
            After::RunAgain => After::RunAgain,
            After::Yours => self.not_ours(vcpu),
            After::Stop(report) => After::Stop(self.finish(vcpu).err().unwrap_or(report)),
        }
    }

    /// The VMM deals with the exit: no step waits for it, no page stands in.
    pub(super) fn not_ours(&mut self, vcpu: &mut V) -> After {
        self.fruitless.2 = 0;
        match self.finish(vcpu) {
            Ok(()) => After::Yours,
            Err(report) => After::Stop(report),
        }
    }

    fn fault(&mut self, vcpu: &mut V, told: Option<Place>) -> After {
        self.hunt.disarm();
        count(&self.resolver.tally.faults);
        self.keep_pace();
        let Ok(registers) = vcpu.registers() else {
            return self.stop(vcpu, None, None, Obstacle::Unknown);
        };
        if let Err(report) = self.drop_what_is_over(vcpu, &registers) {
            return After::Stop(report);
        }
        let Search {
            mut found,
            repeats,
            guest_faults,
        } = self.resolver.search(vcpu, &registers);
        let told_nothing = told.is_none();
        if let Some(place) = told
            && !found.iter().any(|found| same_page(&found.place, &place))
        {
            // A write, for all that is known.
            found.push(Found { place, write: true });
        }
        if self.is_told(vcpu, &found) {
            return After::RunAgain;
        }
        let Dealt {
            present,
            stands,
            written,
        } = match self.touch_all(&found) {
            Ok(dealt) => dealt,
            Err((found, obstacle)) => {
                return self.stop(vcpu, Some(&registers), Some(found), obstacle);
            }
        };
        // A page that is only read can stay until the next exit. So must all, where the guest will
        // take a page fault of its own first: that does not go with a step.
        let stays = self.step.is_none() && (guest_faults || !written);
        if stands && !stays {
            return self.step(vcpu, registers, repeats);
        }
        let fruitless = self.is_fruitless(registers, present);
        if told_nothing && self.goes_hunting(stands) {
            return After::RunAgain;
        }
        if fruitless {
            let first = found.first();
            let obstacle = first.map_or(Obstacle::Unknown, unseen);
            return self.stop(vcpu, Some(&registers), first, obstacle);
        }
        if !stands {
            count(&self.resolver.tally.present);
        }
        After::RunAgain
    }

    /// Deals with everything that an instruction touches, until something cannot be.
    fn touch_all<'a>(&mut self, all: &'a [Found]) -> Result<Dealt, (&'a Found, Obstacle)> {
        let mut dealt = Dealt::default();
        for found in all {
            match self.touch(found) {
                Touched::Present(changes) => dealt.present = dealt.present.max(Some(changes)),
                Touched::Substituted(ticket, changes) => {
                    dealt.present = dealt.present.max(Some(changes));
                    self.held
                        .push((Arc::downgrade(&found.place.window), ticket));
                    dealt.stands = true;
                    dealt.written |= found.write;
                }
                Touched::Standing => {
                    dealt.stands = true;
                    dealt.written |= found.write;
                }
                // A page may stand in, so it does.
                Touched::Absent => {}
                Touched::Refused(obstacle) => return Err((found, obstacle)),
            }
        }
        Ok(dealt)
    }

    fn touch(&self, found: &Found) -> Touched {
        let place = &found.place;
        let own: Vec<Ticket> = self
            .held
            .iter()
            .filter(|(window, _)| std::ptr::eq(window.as_ptr(), Arc::as_ptr(&place.window)))
            .map(|(_, ticket)| *ticket)
            .collect();
        let touch = Touch {
            offset: place.offset,
            write: found.write,
            stand_in: true,
            own: &own,
            copy: &|host, into| copy::read(host, into).map_err(Into::into),
        };
        let touched = self.touch_with(found, touch);
        if matches!(touched, Touched::Substituted(..)) {
            let read_only = place.window.lookup(place.address()).is_some();
            self.answered(place, read_only);
        }
        touched
    }

    pub(super) fn touch_with(&self, found: &Found, touch: Touch<'_>) -> Touched {
        let mut lost = None;
        let touched = found.place.window.touch(touch, &mut lost);
        if let Some(lost) = lost {
            count(&self.resolver.tally.lost);
            self.resolver.tell(Event::Lost(lost));
        }
        touched
    }

    /// Counts an access that was answered in place of memory.
    pub(super) fn answered(&self, place: &Place, read_only: bool) {
        let tally = &self.resolver.tally;
        count(if read_only {
            &tally.dropped_writes
        } else {
            &tally.holes
        });
        self.resolver.tell_once(place, read_only);
    }

    pub(super) fn finish(&mut self, vcpu: &mut V) -> Result<(), Report> {
        self.hunt.disarm();
        if !self.held.is_empty() {
            self.give_up_pages();
        }
        match self.end_step(vcpu) {
            After::Stop(report) => Err(report),
            After::RunAgain | After::Yours => Ok(()),
        }
    }

    pub(super) fn give_up_pages(&mut self) {
        for (window, ticket) in self.held.drain(..) {
            if let Some(window) = window.upgrade() {
                window.end_substitutes(&[ticket]);
            }
        }
    }

    pub(super) fn stop(
        &mut self,
        vcpu: &mut V,
        registers: Option<&Registers>,
        found: Option<&Found>,
        obstacle: Obstacle,
    ) -> After {
        let report = self.report(registers, found, obstacle);
        self.fruitless.2 = 0;
        After::Stop(self.finish(vcpu).err().unwrap_or(report))
    }

    pub(super) fn report(
        &self,
        registers: Option<&Registers>,
        found: Option<&Found>,
        obstacle: Obstacle,
    ) -> Report {
        count(&self.resolver.tally.stops);
        Report {
            address: found.map(|found| found.place.address()),
            window: found.map(|found| found.place.base()),
            obstacle,
            write: found.is_some_and(|found| found.write),
            rip: registers.map(|registers| registers.rip),
        }
    }

    /// Whether the same instruction has come here too often with nothing in its way.
    fn is_fruitless(&mut self, registers: Registers, changes: Option<u64>) -> bool {
        let changes = changes.unwrap_or(u64::MAX);
        let (before, then, times) = &mut self.fruitless;
        if (*before, *then) == (registers, changes) {
            *times = times.saturating_add(1);
        } else {
            self.fruitless = (registers, changes, 0);
        }
        self.fruitless.2 > FRUITLESS
    }

    /// Whether the address is hunted for, where nothing is known to be in the way.
    fn goes_hunting(&mut self, stands: bool) -> bool {
        let times = self.fruitless.2;
        if times == 0 {
            self.hunt.restart();
        }
        let patience = if stands { PATIENCE_STANDING } else { PATIENCE };
        let goes = times >= patience && self.hunt();
        if goes {
            // A hunt has bounds of its own.
            self.fruitless.2 = patience;
        }
        goes
    }

    pub(super) fn keep_pace(&mut self) {
        if let Some(pause) = self.pace.fault(Instant::now()) {
            count(&self.resolver.tally.slowed);
            if !std::mem::replace(&mut self.slowed_told, true) {
                self.resolver.tell(Event::Slowed);
            }
            thread::sleep(pause);
        }
    }
}

impl<V: FaultedVcpu> Drop for VcpuFaults<V> {
    fn drop(&mut self) {
        self.hunt.disarm();
        self.give_up_pages();
    }
}

/// What must be in the way where nothing is seen to be.
fn unseen(found: &Found) -> Obstacle {
    match found.place.window.lookup(found.place.address()) {
        Some(there) => Obstacle::Mapping {
            label: there.mapping.label(),
            errno: rustix::io::Errno::FAULT.raw_os_error(),
        },
        None => Obstacle::Unknown,
    }
}

fn same_page(a: &Place, b: &Place) -> bool {
    Arc::ptr_eq(&a.window, &b.window) && a.offset / PAGE_SIZE == b.offset / PAGE_SIZE
}
