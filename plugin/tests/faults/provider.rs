//! Owns a hypervisor that fails as it was told to, call by call, and remembers which slots live.
//! Never reaches a real one.

#![expect(unsafe_code, reason = "the provider trait is unsafe to implement")]

use std::collections::BTreeMap;
use std::io;
use std::panic::resume_unwind;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vm_remap::{Slot, SlotProvider};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Refuse,
    PanicBefore,
    PanicAfter,
    RefuseFromHere,
    RefuseRegistersFromHere,
    RefuseUnregistersFromHere,
}

/// Which calls fail, counted from 0, and how.
pub type Plan = BTreeMap<u64, Fault>;

/// The payload of a panic that the plan asked for.
#[derive(Debug)]
pub struct Told;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Register,
    Unregister,
}

#[derive(Debug, Default)]
struct State {
    plan: Plan,
    from_here: Option<Fault>,
    calls: u64,
    /// The calls of the step that is being made.
    log: Vec<(Verb, Slot, Option<Fault>)>,
    live: Vec<Slot>,
    /// Live slots whose last call was an `unregister` that failed.
    kept: Vec<Slot>,
    misuse: Option<String>,
}

#[derive(Debug, Default)]
pub struct Flaky(Mutex<State>);

impl Flaky {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows `plan` from the next call on.
    pub fn follow(&self, plan: &Plan) {
        let mut state = self.state();
        state.plan.clone_from(plan);
        state.calls = 0;
    }

    pub fn calls(&self) -> u64 {
        self.state().calls
    }

    pub fn live(&self) -> Vec<Slot> {
        self.state().live.clone()
    }

    /// Whether some slot lives that nobody tried in vain to take back.
    pub fn forgot_one(&self) -> bool {
        let state = self.state();
        state.live.iter().any(|slot| !state.kept.contains(slot))
    }

    /// What a hypervisor must never be asked for, if that happened.
    pub fn misuse(&self) -> Option<String> {
        self.state().misuse.clone()
    }

    pub fn clear_log(&self) {
        self.state().log.clear();
    }

    pub fn log(&self) -> String {
        format!("{:?}", self.state().log)
    }

    fn call(&self, verb: Verb, slot: &Slot) -> io::Result<()> {
        let mut state = self.state();
        let fault = state.fault(verb);
        state.log.push((verb, *slot, fault));
        state.kept.retain(|kept| kept != slot);
        match fault {
            None | Some(Fault::PanicAfter) => state.carry_out(verb, slot)?,
            Some(_) if verb == Verb::Unregister => state.kept.push(*slot),
            Some(_) => {}
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
    fn fault(&mut self, verb: Verb) -> Option<Fault> {
        let planned = self.plan.get(&self.calls).copied();
        self.calls += 1;
        match planned {
            Some(Fault::Refuse | Fault::PanicBefore | Fault::PanicAfter) => return planned,
            Some(from_here) => self.from_here = Some(from_here),
            None => {}
        }
        self.from_here.filter(|fault| match fault {
            Fault::RefuseRegistersFromHere => verb == Verb::Register,
            Fault::RefuseUnregistersFromHere => verb == Verb::Unregister,
            _ => true,
        })
    }

    fn carry_out(&mut self, verb: Verb, slot: &Slot) -> io::Result<()> {
        let end = |slot: &Slot| slot.guest_address().0 + slot.len();
        let overlap =
            |live: &Slot| live.guest_address().0 < end(slot) && slot.guest_address().0 < end(live);
        if verb == Verb::Register {
            let mut live = self.live.iter();
            if live.any(|live| live.number() == slot.number() || overlap(live)) {
                self.misuse = Some(format!("{slot:?} over {:?}", self.live));
                return Err(io::Error::from_raw_os_error(17));
            }
            self.live.push(*slot);
        } else {
            let before = self.live.len();
            self.live.retain(|live| live != slot);
            if self.live.len() + 1 != before {
                self.misuse = Some(format!("{slot:?} was not registered like that"));
            }
        }
        Ok(())
    }
}

// SAFETY: no hypervisor ever learns of the memory.
unsafe impl SlotProvider for Flaky {
    unsafe fn register(&self, slot: &Slot) -> io::Result<()> {
        self.call(Verb::Register, slot)
    }

    fn unregister(&self, slot: &Slot) -> io::Result<()> {
        self.call(Verb::Unregister, slot)
    }
}
