//! Owns which slots are registered for a window, by number and place, and keeps that true
//! through failures. Never touches the memory behind them.
//!
//! A slot that the hypervisor did not let go stays in the table, under the number and the address
//! that it was registered with, so that whoever owns the memory knows.

// UNSAFETY: registering a slot promises that its memory stays, which only the owner of both, the
// window, can keep.
#![expect(unsafe_code, reason = "registering a slot is an unsafe call")]

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::dirty::DirtyBits;
use super::{Slot, SlotNumbers, SlotProvider};
use crate::error::{Error, StateAfter};
use crate::range::{GuestAddress, PageRange};

/// A slot that a backend wants: where in the window, over which host memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) range: PageRange,
    pub(crate) host: u64,
    pub(crate) read_only: bool,
}

/// The slots of one window.
pub(crate) struct SlotTable {
    pub(super) provider: Arc<dyn SlotProvider>,
    base: GuestAddress,
    given: usize,
    /// Numbers never used so far, and those that came back.
    unused: Range<u32>,
    returned: Vec<u32>,
    pub(super) by_start: BTreeMap<u64, (Extent, Slot)>,
    /// Scratch slots that the hypervisor did not let go.
    stuck: Vec<Slot>,
    /// While dirty pages are logged.
    pub(super) dirty: Option<DirtyBits>,
    created: u64,
    deleted: u64,
}

impl fmt::Debug for SlotTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlotTable")
            .field("base", &self.base)
            .field("registered", &self.by_start.len())
            .finish_non_exhaustive()
    }
}

impl SlotTable {
    pub(crate) fn new(
        provider: Arc<dyn SlotProvider>,
        base: GuestAddress,
        numbers: SlotNumbers,
    ) -> Self {
        let given = numbers.0.len();
        Self {
            provider,
            base,
            given,
            unused: numbers.0,
            returned: Vec::new(),
            by_start: BTreeMap::new(),
            stuck: Vec::new(),
            dirty: None,
            created: 0,
            deleted: 0,
        }
    }

    /// How often a slot was registered, and unregistered.
    pub(crate) fn calls(&self) -> (u64, u64) {
        (self.created, self.deleted)
    }

    pub(crate) fn len(&self) -> usize {
        self.by_start.len()
    }

    pub(crate) fn base(&self) -> GuestAddress {
        self.base
    }

    /// The registered extents that `range` touches.
    pub(crate) fn overlapping(&self, range: PageRange) -> impl Iterator<Item = Extent> {
        let before = self.by_start.range(..range.start()).next_back();
        let from = before
            .filter(|(_, (extent, _))| extent.range.end() > range.start())
            .map_or(range.start(), |(start, _)| *start);
        self.by_start
            .range(from..range.end())
            .map(|(_, (extent, _))| *extent)
    }

    /// Whether slots lie over all of `range`.
    pub(crate) fn covers(&self, range: PageRange) -> bool {
        let mut from = range.start();
        for extent in self.overlapping(range) {
            if extent.range.start() > from {
                return false;
            }
            from = extent.range.end();
        }
        from >= range.end()
    }

    /// Whether there are numbers for `added` more slots once `removed` are gone.
    pub(crate) fn has_room(&self, added: usize, removed: usize) -> Result<(), Error> {
        let free = self.unused.len().saturating_add(self.returned.len());
        if added <= free.saturating_add(removed) {
            return Ok(());
        }
        Err(self.out_of_numbers(added))
    }

    fn out_of_numbers(&self, needed: usize) -> Error {
        Error::SlotNumbers {
            needed,
            used: self.by_start.len(),
            given: self.given,
        }
    }

    /// Registers all of `extents` or, after a failure, none of them.
    pub(crate) fn register_all(&mut self, extents: &[Extent]) -> Result<(), Error> {
        self.has_room(extents.len(), 0)?;
        for (done, extent) in extents.iter().enumerate() {
            if let Err(error) = self.register(*extent) {
                let undone = extents
                    .iter()
                    .take(done)
                    .rev()
                    .all(|e| self.unregister(*e).is_ok());
                return Err(if undone {
                    error
                } else {
                    error.with_state(StateAfter::Poisoned)
                });
            }
        }
        Ok(())
    }

    /// Unregisters all of `extents` or, after a failure, none of them.
    pub(crate) fn unregister_all(&mut self, extents: &[Extent]) -> Result<(), Error> {
        for (done, extent) in extents.iter().enumerate() {
            if let Err(error) = self.unregister(*extent) {
                let undone = extents
                    .iter()
                    .take(done)
                    .rev()
                    .all(|e| self.register(*e).is_ok());
                return Err(if undone {
                    error
                } else {
                    error.with_state(StateAfter::Poisoned)
                });
            }
        }
        Ok(())
    }

    /// Moves every slot to another guest address or, after a failure, none of them.
    pub(crate) fn relocate(&mut self, base: GuestAddress) -> Result<(), Error> {
        let all: Vec<Extent> = self.by_start.values().map(|(extent, _)| *extent).collect();
        let old = self.base;
        self.unregister_all(&all)?;
        self.base = base;
        if let Err(error) = self.register_all(&all) {
            if error.state_after() == StateAfter::Poisoned {
                // Some slots are stuck at the new address: nothing may be put over them.
                return Err(error);
            }
            self.base = old;
            let undone = self.register_all(&all).is_ok();
            return Err(if undone {
                error
            } else {
                error.with_state(StateAfter::Poisoned)
            });
        }
        Ok(())
    }

    /// Unregisters every slot that lets itself be unregistered; the first failure is reported.
    pub(crate) fn unregister_what_goes(&mut self) -> Result<(), Error> {
        let all: Vec<Extent> = self.by_start.values().map(|(extent, _)| *extent).collect();
        let mut first = Ok(());
        for extent in all {
            first = first.and(self.unregister(extent));
        }
        let mut at = 0;
        while let Some(slot) = self.stuck.get(at).copied() {
            match self.provider.unregister(&slot) {
                Ok(()) => {
                    self.stuck.remove(at);
                }
                Err(source) => {
                    first = first.and(Err(failure("unregister", &slot, source)));
                    at = at.saturating_add(1);
                }
            }
        }
        first
    }

    /// Registers and unregisters `len` bytes of host memory at a guest address where no slot is.
    pub(crate) fn flash(&mut self, guest: GuestAddress, host: u64, len: u64) -> Result<(), Error> {
        let number = self.take_number()?;
        let slot = Slot {
            number,
            guest,
            len,
            host,
            read_only: false,
            logs_dirty_pages: false,
        };
        // Stuck until it is known to be gone.
        self.stuck.push(slot);
        if let Err(error) = self.provide(&slot) {
            self.stuck.pop();
            return Err(error);
        }
        if let Err(source) = self.provider.unregister(&slot) {
            return Err(failure("unregister", &slot, source).with_state(StateAfter::Poisoned));
        }
        self.stuck.pop();
        self.deleted = self.deleted.saturating_add(1);
        self.returned.push(number);
        Ok(())
    }

    /// A page of `window` over which no slot lies.
    pub(crate) fn free_page(&self, window: PageRange) -> Option<u64> {
        let mut offset = window.start();
        for (extent, _) in self.by_start.values() {
            if extent.range.start() > offset {
                break;
            }
            offset = extent.range.end();
        }
        window.contains(offset).then_some(offset)
    }

    fn take_number(&mut self) -> Result<u32, Error> {
        let number = self.returned.pop().or_else(|| self.unused.next());
        number.ok_or_else(|| self.out_of_numbers(1))
    }

    fn register(&mut self, extent: Extent) -> Result<(), Error> {
        let start = extent.range.start();
        assert!(
            !self.by_start.contains_key(&start),
            "no slot is registered over another"
        );
        let slot = Slot {
            number: self.take_number()?,
            // The window's end was seen to fit.
            guest: GuestAddress(self.base.0.saturating_add(start)),
            len: extent.range.len(),
            host: extent.host,
            read_only: extent.read_only,
            logs_dirty_pages: self.dirty.is_some(),
        };
        // Known before it is registered: a hypervisor that panics may have registered it.
        self.by_start.insert(start, (extent, slot));
        let provided = self.provide(&slot);
        match (&provided, &mut self.dirty) {
            (Ok(()), Some(dirty)) => dirty.came(extent.range),
            (Ok(()), None) => {}
            (Err(_), _) => {
                self.by_start.remove(&start);
            }
        }
        provided
    }

    /// Registers a slot with a number that `take_number` gave; a failure gives it back.
    fn provide(&mut self, slot: &Slot) -> Result<(), Error> {
        // SAFETY: the memory is the window's arena, or what the caller of `Source::host_memory`
        // promised to keep. It stays until `unregister` succeeds for the slot: this table forgets
        // none before that, and the window gives its arena back only when the table is empty.
        let provided = unsafe { self.provider.register(slot) };
        match provided {
            Ok(()) => {
                self.created = self.created.saturating_add(1);
                Ok(())
            }
            Err(source) => {
                self.returned.push(slot.number);
                Err(failure("register", slot, source))
            }
        }
    }

    fn unregister(&mut self, extent: Extent) -> Result<(), Error> {
        let start = extent.range.start();
        let Some((_, slot)) = self.by_start.get(&start).copied() else {
            return Ok(());
        };
        let refused = |source| failure("unregister", &slot, source);
        self.provider.unregister(&slot).map_err(refused)?;
        self.deleted = self.deleted.saturating_add(1);
        self.by_start.remove(&start);
        if let Some(dirty) = &mut self.dirty {
            dirty.went(extent.range);
        }
        self.returned.push(slot.number);
        Ok(())
    }
}

fn failure(verb: &'static str, slot: &Slot, source: io::Error) -> Error {
    let (number, guest, len) = (slot.number, slot.guest, slot.len);
    Error::Slot {
        verb,
        number,
        guest,
        len,
        state: StateAfter::Unchanged,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::range::PAGE_SIZE;
    use crate::slots::recorder::Recorder;

    fn extent(page: u64) -> Extent {
        let range = PageRange::new(page * PAGE_SIZE, PAGE_SIZE).unwrap();
        Extent {
            range,
            host: 0x7000_0000 + page * PAGE_SIZE,
            read_only: false,
        }
    }

    fn table(recorder: &Arc<Recorder>, numbers: u32) -> SlotTable {
        let provider = Arc::clone(recorder) as Arc<dyn SlotProvider>;
        SlotTable::new(
            provider,
            GuestAddress(0x10_0000),
            SlotNumbers::new(8..8 + numbers),
        )
    }

    #[test]
    fn numbers_are_reused() {
        let recorder = Arc::new(Recorder::default());
        let mut table = table(&recorder, 1);
        for page in 0..5 {
            table.register_all(&[extent(page)]).unwrap();
            table.unregister_all(&[extent(page)]).unwrap();
        }
        assert!(recorder.events().iter().all(|event| event.number == 8));
        assert_eq!(table.calls(), (5, 5));
    }

    #[test]
    fn register_all_that_fails_registers_nothing() {
        let recorder = Arc::new(Recorder::default());
        let mut table = table(&recorder, 4);
        recorder.fail_register_of(GuestAddress(0x10_2000));
        let error = table
            .register_all(&[extent(0), extent(1), extent(2)])
            .unwrap_err();
        assert_eq!(error.state_after(), StateAfter::Unchanged);
        assert_eq!(recorder.registered(), 0);
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn register_all_beyond_the_numbers_is_refused_before_any_call() {
        let recorder = Arc::new(Recorder::default());
        let error = table(&recorder, 1)
            .register_all(&[extent(0), extent(1)])
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot register 2 more memslots: 0 of the window's 1 slot numbers are in use; give \
             it more, or use larger segments"
        );
        assert!(recorder.events().is_empty());
    }

    #[test]
    fn relocate_that_fails_puts_every_slot_back() {
        let recorder = Arc::new(Recorder::default());
        let mut table = table(&recorder, 4);
        table.register_all(&[extent(0), extent(1)]).unwrap();
        recorder.fail_register_of(GuestAddress(0x20_1000));
        let error = table.relocate(GuestAddress(0x20_0000)).unwrap_err();
        assert_eq!(error.state_after(), StateAfter::Unchanged);
        assert_eq!(table.base(), GuestAddress(0x10_0000));
        let guests: Vec<u64> = recorder
            .live()
            .iter()
            .map(|slot| slot.guest_address().0)
            .collect();
        assert_eq!(guests, [0x10_0000, 0x10_1000]);
    }

    #[test]
    fn relocate_that_leaves_a_slot_stuck_keeps_it_in_the_table() {
        let recorder = Arc::new(Recorder::default());
        let mut table = table(&recorder, 8);
        table.register_all(&[extent(0), extent(1)]).unwrap();
        recorder.fail_register_of(GuestAddress(0x20_1000));
        recorder.fail_unregister_of(GuestAddress(0x20_0000));
        let error = table.relocate(GuestAddress(0x20_0000)).unwrap_err();
        assert_eq!(error.state_after(), StateAfter::Poisoned);
        let stuck: Vec<u64> = recorder
            .live()
            .iter()
            .map(|slot| slot.guest_address().0)
            .collect();
        assert_eq!(stuck, [0x20_0000]);
        assert_eq!(table.len(), 1);
        table.unregister_what_goes().unwrap_err();
    }

    #[test]
    fn flash_that_leaves_its_slot_stuck_remembers_it() {
        let recorder = Arc::new(Recorder::default());
        let mut table = table(&recorder, 1);
        recorder.fail_unregister_of(GuestAddress(0x30_0000));
        let error = table
            .flash(GuestAddress(0x30_0000), 0x7000_0000, PAGE_SIZE)
            .unwrap_err();
        assert_eq!(error.state_after(), StateAfter::Poisoned);
        table.unregister_what_goes().unwrap_err();
        assert_eq!(recorder.registered(), 1);
    }

    #[test]
    fn any_number_of_slot_numbers_costs_nothing() {
        let recorder = Arc::new(Recorder::default());
        let mut table = table(&recorder, u32::MAX - 8);
        table.register_all(&[extent(0)]).unwrap();
        assert_eq!(recorder.live()[0].number(), 8);
    }

    #[test]
    fn free_page_is_the_first_that_no_slot_covers() {
        let recorder = Arc::new(Recorder::default());
        let mut table = table(&recorder, 4);
        let window = PageRange::new(0, 3 * PAGE_SIZE).unwrap();
        assert_eq!(table.free_page(window), Some(0));
        table.register_all(&[extent(0), extent(1)]).unwrap();
        assert_eq!(table.free_page(window), Some(2 * PAGE_SIZE));
        table.register_all(&[extent(2)]).unwrap();
        assert_eq!(table.free_page(window), None);
    }
}
