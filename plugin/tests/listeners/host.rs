//! Owns a hypervisor and the listeners for DMA beside it, which fail as they were told to, call by
//! call. A listener keeps what it was given as an IOMMU does: what it saw when it mapped a page is
//! what its devices reach. Never reaches real ones.

#![expect(unsafe_code, reason = "the providers' traits are unsafe to implement")]

use std::collections::BTreeMap;
use std::io;
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_remap::{DmaListener, DmaMapping, PAGE_SIZE, Slot, SlotProvider};

use crate::eyes::peek_pages;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Refuse,
    PanicBefore,
    PanicAfter,
    RefuseFromHere,
    RefuseMapsFromHere,
    RefuseUnmapsFromHere,
}

impl Fault {
    pub const ALL: [Self; 6] = [
        Self::Refuse,
        Self::PanicBefore,
        Self::PanicAfter,
        Self::RefuseFromHere,
        Self::RefuseMapsFromHere,
        Self::RefuseUnmapsFromHere,
    ];
}

/// Which calls fail, counted from 0, and how.
pub type Plan = BTreeMap<u64, Fault>;

/// The payload of a panic that the plan asked for.
#[derive(Debug)]
pub struct Told;

/// A call: of the hypervisor, or of the listener with this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Register(Slot),
    Unregister(Slot),
    Map(usize, DmaMapping),
    Unmap(usize, DmaMapping),
}

/// What a listener has mapped, and the first byte of each page as it was then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinned {
    pub mapping: DmaMapping,
    pub bytes: Vec<Option<u8>>,
}

#[derive(Debug, Default)]
struct State {
    plan: Plan,
    from_here: Option<Fault>,
    calls: u64,
    /// The calls since the log was cleared.
    log: Vec<(Call, Option<Fault>)>,
    slots: Vec<Slot>,
    pinned: BTreeMap<usize, Vec<Pinned>>,
    /// What is mapped although somebody tried, last, to unmap it.
    kept: Vec<Call>,
    misuse: Option<String>,
}

#[derive(Debug, Default)]
pub struct Host(Mutex<State>);

/// The listener with this number.
#[derive(Debug)]
pub struct Listener {
    pub number: usize,
    pub host: Arc<Host>,
}

pub fn look(mapping: &DmaMapping) -> Vec<Option<u8>> {
    peek_pages(mapping.host_address(), mapping.len() / PAGE_SIZE)
}

impl Host {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows `plan` from the next call on.
    pub fn follow(&self, plan: &Plan) {
        let mut state = self.state();
        state.plan.clone_from(plan);
        state.from_here = None;
        state.calls = 0;
    }

    pub fn calls(&self) -> u64 {
        self.state().calls
    }

    pub fn clear_log(&self) {
        self.state().log.clear();
    }

    pub fn log(&self) -> Vec<(Call, Option<Fault>)> {
        self.state().log.clone()
    }

    pub fn slots(&self) -> Vec<Slot> {
        self.state().slots.clone()
    }

    /// What the listener with this number has mapped, by guest address.
    pub fn pinned(&self, number: usize) -> Vec<Pinned> {
        let mut pinned = self
            .state()
            .pinned
            .get(&number)
            .cloned()
            .unwrap_or_default();
        pinned.sort_by_key(|one| one.mapping.guest_address());
        pinned
    }

    /// Whether something is mapped for DMA that nobody tried in vain to unmap.
    pub fn forgot_one(&self) -> bool {
        let state = self.state();
        let kept = |number, one: &Pinned| state.kept.contains(&Call::Unmap(number, one.mapping));
        let mut all = state.pinned.iter();
        all.any(|(number, pinned)| pinned.iter().any(|one| !kept(*number, one)))
    }

    /// What was asked for that must never be, if that happened.
    pub fn misuse(&self) -> Option<String> {
        self.state().misuse.clone()
    }

    fn call(&self, call: Call) -> io::Result<()> {
        let mut state = self.state();
        let fault = state.fault(&call);
        state.log.push((call, fault));
        state.kept.retain(|kept| *kept != call);
        match fault {
            None | Some(Fault::PanicAfter) => state.carry_out(call)?,
            Some(_) => state.kept.push(call),
        }
        drop(state);
        match fault {
            None => Ok(()),
            // Unlike `panic!`, this writes nothing.
            Some(Fault::PanicBefore | Fault::PanicAfter) => resume_unwind(Box::new(Told)),
            Some(_) => Err(io::Error::from_raw_os_error(12)),
        }
    }
}

impl State {
    /// How the call that comes now fails, if it does.
    fn fault(&mut self, call: &Call) -> Option<Fault> {
        let planned = self.plan.get(&self.calls).copied();
        self.calls += 1;
        match planned {
            Some(Fault::Refuse | Fault::PanicBefore | Fault::PanicAfter) => return planned,
            Some(from_here) => self.from_here = Some(from_here),
            None => {}
        }
        self.from_here.filter(|fault| match fault {
            Fault::RefuseMapsFromHere => matches!(call, Call::Map(..)),
            Fault::RefuseUnmapsFromHere => matches!(call, Call::Unmap(..)),
            _ => true,
        })
    }

    fn carry_out(&mut self, call: Call) -> io::Result<()> {
        let wrong = match call {
            Call::Register(slot) => {
                self.slots.push(slot);
                None
            }
            Call::Unregister(slot) => {
                self.slots.retain(|live| *live != slot);
                None
            }
            Call::Map(number, mapping) => self.map(number, mapping),
            Call::Unmap(number, mapping) => self.unmap(number, &mapping),
        };
        let Some(wrong) = wrong else {
            return Ok(());
        };
        self.misuse = Some(format!("{wrong}: {call:?}"));
        Err(io::Error::from_raw_os_error(17))
    }

    fn map(&mut self, number: usize, mapping: DmaMapping) -> Option<&'static str> {
        let end = |one: &DmaMapping| one.guest_address().0 + one.len();
        let pinned = self.pinned.entry(number).or_default();
        if pinned.iter().any(|one| {
            one.mapping.guest_address().0 < end(&mapping)
                && mapping.guest_address().0 < end(&one.mapping)
        }) {
            return Some("mapped over another");
        }
        let bytes = look(&mapping);
        if bytes.iter().any(Option::is_none) {
            return Some("a hole is mapped for DMA");
        }
        pinned.push(Pinned { mapping, bytes });
        None
    }

    fn unmap(&mut self, number: usize, mapping: &DmaMapping) -> Option<&'static str> {
        let pinned = self.pinned.entry(number).or_default();
        let Some(at) = pinned.iter().position(|one| one.mapping == *mapping) else {
            return Some("not mapped like that");
        };
        let one = pinned.remove(at);
        (look(mapping) != one.bytes).then_some("memory has changed before the unmap")
    }
}

// SAFETY: no hypervisor ever learns of the memory.
unsafe impl SlotProvider for Host {
    unsafe fn register(&self, slot: &Slot) -> io::Result<()> {
        self.call(Call::Register(*slot))
    }

    fn unregister(&self, slot: &Slot) -> io::Result<()> {
        self.call(Call::Unregister(*slot))
    }
}

// SAFETY: no device ever learns of the memory.
unsafe impl DmaListener for Listener {
    unsafe fn map(&self, mapping: &DmaMapping) -> io::Result<()> {
        self.host.call(Call::Map(self.number, *mapping))
    }

    fn unmap(&self, mapping: &DmaMapping) -> io::Result<()> {
        self.host.call(Call::Unmap(self.number, *mapping))
    }
}
