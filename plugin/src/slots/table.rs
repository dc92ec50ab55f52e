//! Owns which slots are registered for a window, by number and place, and keeps that true
//! through failures. Never touches the memory behind them.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;

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
    provider: Arc<dyn SlotProvider>,
    base: GuestAddress,
    given: usize,
    free: Vec<u32>,
    by_start: BTreeMap<u64, (u32, Extent)>,
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
        // Taken from the end, so that low numbers come first.
        let free: Vec<u32> = numbers.0.rev().collect();
        let given = free.len();
        Self {
            provider,
            base,
            given,
            free,
            by_start: BTreeMap::new(),
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
            .filter(|(_, (_, extent))| extent.range.end() > range.start())
            .map_or(range.start(), |(start, _)| *start);
        self.by_start
            .range(from..range.end())
            .map(|(_, (_, extent))| *extent)
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
        if added <= self.free.len().saturating_add(removed) {
            return Ok(());
        }
        Err(Error::SlotNumbers {
            needed: added,
            used: self.by_start.len(),
            given: self.given,
        })
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
                return Err(poisoned_unless(undone, error));
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
                return Err(poisoned_unless(undone, error));
            }
        }
        Ok(())
    }

    /// Moves every slot to another guest address or, after a failure, none of them.
    pub(crate) fn relocate(&mut self, base: GuestAddress) -> Result<(), Error> {
        let all: Vec<Extent> = self.by_start.values().map(|(_, extent)| *extent).collect();
        let old = self.base;
        self.unregister_all(&all)?;
        self.base = base;
        if let Err(error) = self.register_all(&all) {
            self.base = old;
            let undone = self.register_all(&all).is_ok();
            return Err(poisoned_unless(undone, error));
        }
        Ok(())
    }

    /// Unregisters every slot that lets itself be unregistered; the first failure is reported.
    pub(crate) fn unregister_what_goes(&mut self) -> Result<(), Error> {
        let all: Vec<Extent> = self.by_start.values().map(|(_, extent)| *extent).collect();
        let mut first = Ok(());
        for extent in all {
            first = first.and(self.unregister(extent));
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
        };
        let registered = self.provider.register(&slot);
        if let Err(source) = registered {
            self.free.push(number);
            return Err(failure("register", &slot, source));
        }
        self.created = self.created.saturating_add(1);
        // A slot that does not go keeps its number for ever.
        self.provider
            .unregister(&slot)
            .map_err(|source| failure("unregister", &slot, source))?;
        self.deleted = self.deleted.saturating_add(1);
        self.free.push(number);
        Ok(())
    }

    /// A page of `window` over which no slot lies.
    pub(crate) fn free_page(&self, window: PageRange) -> Option<u64> {
        let mut offset = window.start();
        for (_, extent) in self.by_start.values() {
            if extent.range.start() > offset {
                break;
            }
            offset = extent.range.end();
        }
        window.contains(offset).then_some(offset)
    }

    fn take_number(&mut self) -> Result<u32, Error> {
        let (used, given) = (self.by_start.len(), self.given);
        self.free.pop().ok_or(Error::SlotNumbers {
            needed: 1,
            used,
            given,
        })
    }

    fn register(&mut self, extent: Extent) -> Result<(), Error> {
        let number = self.take_number()?;
        let slot = self.slot(number, extent);
        if let Err(source) = self.provider.register(&slot) {
            self.free.push(number);
            return Err(failure("register", &slot, source));
        }
        self.created = self.created.saturating_add(1);
        self.by_start.insert(extent.range.start(), (number, extent));
        Ok(())
    }

    fn unregister(&mut self, extent: Extent) -> Result<(), Error> {
        let start = extent.range.start();
        let Some((number, registered)) = self.by_start.get(&start).copied() else {
            return Ok(());
        };
        let slot = self.slot(number, registered);
        self.provider
            .unregister(&slot)
            .map_err(|source| failure("unregister", &slot, source))?;
        self.deleted = self.deleted.saturating_add(1);
        self.by_start.remove(&start);
        self.free.push(number);
        Ok(())
    }

    fn slot(&self, number: u32, extent: Extent) -> Slot {
        Slot {
            number,
            // The window's end was seen to fit.
            guest: GuestAddress(self.base.0.saturating_add(extent.range.start())),
            len: extent.range.len(),
            host: extent.host,
            read_only: extent.read_only,
        }
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

/// Marks a failure that could not be undone.
fn poisoned_unless(undone: bool, error: Error) -> Error {
    match error {
        Error::Slot {
            verb,
            number,
            guest,
            len,
            source,
            ..
        } if !undone => Error::Slot {
            verb,
            number,
            guest,
            len,
            state: StateAfter::Poisoned,
            source,
        },
        other => other,
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
