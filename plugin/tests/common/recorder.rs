//! Owns a slot provider for tests: it records every call and fails where told to.
//! Never reaches a hypervisor.

#![expect(unsafe_code, reason = "the provider trait is unsafe to implement")]

use std::collections::BTreeSet;
use std::io;
use std::sync::{Mutex, PoisonError};

use vm_remap::{GuestAddress, Slot, SlotProvider};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    pub register: bool,
    pub number: u32,
    pub guest: GuestAddress,
}

#[derive(Debug, Default)]
struct State {
    events: Vec<Event>,
    live: Vec<Slot>,
    fail_register: Option<GuestAddress>,
    fail_unregister: Option<GuestAddress>,
    fail_next_register: bool,
    panic_on_unregister: bool,
    offers_precise_zap: bool,
    offers_prefault: bool,
    fail_prefault: bool,
    prefaults: Vec<(GuestAddress, u64)>,
    logs_nothing: bool,
    fail_log_of: Option<GuestAddress>,
    /// The log that a hypervisor keeps of what the guest writes: guest addresses of pages, for as
    /// long as their slot is registered.
    written: BTreeSet<u64>,
}

#[derive(Debug, Default)]
pub struct Recorder(Mutex<State>);

impl Recorder {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn events(&self) -> Vec<Event> {
        self.state().events.clone()
    }

    pub fn live(&self) -> Vec<Slot> {
        self.state().live.clone()
    }

    pub fn registered(&self) -> usize {
        self.state().live.len()
    }

    pub fn fail_register_of(&self, guest: GuestAddress) {
        self.state().fail_register = Some(guest);
    }

    pub fn fail_next_register(&self) {
        self.state().fail_next_register = true;
    }

    pub fn offer_precise_zap(&self) {
        self.state().offers_precise_zap = true;
    }

    pub fn offer_prefault(&self) {
        self.state().offers_prefault = true;
    }

    pub fn fail_prefault(&self) {
        self.state().fail_prefault = true;
    }

    /// The prefaults asked for, in their order.
    pub fn prefaults(&self) -> Vec<(GuestAddress, u64)> {
        self.state().prefaults.clone()
    }

    /// Takes away what `start_dirty_log` needs.
    pub fn log_nothing(&self) {
        self.state().logs_nothing = true;
    }

    /// Fails every switch of the log of the slot at `guest`, until told otherwise.
    pub fn fail_log_of(&self, guest: Option<GuestAddress>) {
        self.state().fail_log_of = guest;
    }

    /// The guest writes to a page that lies under a slot.
    pub fn write(&self, page: GuestAddress) {
        let mut state = self.state();
        let end = |slot: &Slot| slot.guest_address().0 + slot.len();
        let mut live = state.live.iter();
        let slot = live
            .find(|live| live.guest_address() <= page && page.0 < end(live))
            .unwrap();
        if slot.logs_dirty_pages() {
            state.written.insert(page.0);
        }
    }

    /// What `KVM_GET_DIRTY_LOG` does.
    pub fn dirty_log(&self, slot: &Slot) -> Vec<u64> {
        let mut state = self.state();
        let logs = state.live.contains(slot) && slot.logs_dirty_pages();
        assert!(logs, "{slot:?} has no log");
        let from = slot.guest_address().0;
        let bits = (0..slot.len().div_ceil(4096)).map(|page| from + page * 4096);
        let bits: Vec<bool> = bits.map(|page| state.written.remove(&page)).collect();
        let word = |bits: &[bool]| {
            let bits = bits.iter().rev();
            bits.fold(0, |word, bit| word << 1 | u64::from(*bit))
        };
        bits.chunks(64).map(word).collect()
    }

    pub fn panic_on_unregister(&self) {
        self.state().panic_on_unregister = true;
    }

    pub fn fail_unregister_of(&self, guest: GuestAddress) {
        self.state().fail_unregister = Some(guest);
    }
}

// SAFETY: no hypervisor ever learns of the memory.
unsafe impl SlotProvider for Recorder {
    unsafe fn register(&self, slot: &Slot) -> io::Result<()> {
        let mut state = self.state();
        if std::mem::take(&mut state.fail_next_register) {
            return Err(io::Error::from_raw_os_error(12));
        }
        if state.fail_register == Some(slot.guest_address()) {
            return Err(io::Error::from_raw_os_error(12));
        }
        let end = |slot: &Slot| slot.guest_address().0 + slot.len();
        let clash = state.live.iter().any(|live| {
            live.number() == slot.number()
                || (live.guest_address().0 < end(slot) && slot.guest_address().0 < end(live))
        });
        assert!(!clash, "{slot:?} over {:?}", state.live);
        state.events.push(Event {
            register: true,
            number: slot.number(),
            guest: slot.guest_address(),
        });
        state.live.push(*slot);
        state.live.sort_by_key(|slot| slot.guest_address());
        Ok(())
    }

    fn can_log_dirty_pages(&self) -> bool {
        !self.state().logs_nothing
    }

    unsafe fn log_dirty_pages(&self, slot: &Slot) -> io::Result<()> {
        let mut state = self.state();
        if state.fail_log_of == Some(slot.guest_address()) {
            return Err(io::Error::from_raw_os_error(12));
        }
        let mut live = state.live.iter_mut();
        let live = live.find(|live| live.number() == slot.number()).unwrap();
        let same = |slot: &Slot| (slot.guest_address(), slot.len(), slot.host_address());
        assert_eq!(same(live), same(slot), "more than the flag would change");
        assert_ne!(live.logs_dirty_pages(), slot.logs_dirty_pages());
        *live = *slot;
        Ok(())
    }

    fn enable_precise_zap(&self) -> io::Result<bool> {
        Ok(self.state().offers_precise_zap)
    }

    fn can_prefault(&self) -> bool {
        self.state().offers_prefault
    }

    fn prefault(&self, guest: GuestAddress, len: u64) -> io::Result<()> {
        let mut state = self.state();
        assert!(state.offers_prefault, "nobody may ask");
        let end = |slot: &Slot| slot.guest_address().0 + slot.len();
        let under_a_slot = state
            .live
            .iter()
            .any(|live| live.guest_address() <= guest && guest.0 + len <= end(live));
        assert!(under_a_slot, "{guest} is not the guest's yet");
        state.prefaults.push((guest, len));
        if state.fail_prefault {
            return Err(io::Error::from_raw_os_error(14));
        }
        Ok(())
    }

    fn unregister(&self, slot: &Slot) -> io::Result<()> {
        let mut state = self.state();
        assert!(!state.panic_on_unregister, "told to");
        if state.fail_unregister == Some(slot.guest_address()) {
            return Err(io::Error::from_raw_os_error(16));
        }
        let before = state.live.len();
        state.live.retain(|live| live != slot);
        let from = slot.guest_address().0;
        state
            .written
            .retain(|page| !(from..from + slot.len()).contains(page));
        assert_eq!(
            state.live.len() + 1,
            before,
            "{slot:?} was not registered like that"
        );
        state.events.push(Event {
            register: false,
            number: slot.number(),
            guest: slot.guest_address(),
        });
        Ok(())
    }
}
