//! Owns what is kept over the next operations: pins, and batches that are prepared. Never changes
//! the window.

use vm_remap::{PageRange, Pin, PreparedBatch, Window};

use crate::model::Change;

/// More would only be in the way of everything else.
const MOST: usize = 6;

/// Pins of a window, and batches prepared for it.
pub(crate) struct Held<'a> {
    pub(crate) window: &'a Window,
    pub(crate) pins: Vec<Pin<'a>>,
    prepared: Vec<(PreparedBatch, Vec<Change>)>,
}

impl<'a> Held<'a> {
    pub(crate) const fn new(window: &'a Window) -> Self {
        Self {
            window,
            pins: Vec::new(),
            prepared: Vec::new(),
        }
    }

    /// Pins a range: which works where all of it `is_mapped`, and nowhere else.
    pub(crate) fn pin(&mut self, range: PageRange, is_mapped: bool) {
        let pin = self.window.pin(range);
        assert_eq!(pin.is_ok(), is_mapped, "{pin:?}");
        if self.pins.len() < MOST {
            self.pins.extend(pin);
        }
    }

    pub(crate) fn unpin(&mut self, which: u8) {
        if !self.pins.is_empty() {
            let which = usize::from(which) % self.pins.len();
            drop(self.pins.swap_remove(which));
        }
    }

    /// Whether one of the ranges is pinned in part.
    pub(crate) fn is_pinned(&self, mut ranges: impl Iterator<Item = PageRange>) -> bool {
        ranges.any(|range| {
            let pins = self.pins.iter();
            pins.into_iter()
                .any(|pin| pin.range().start() < range.end() && range.start() < pin.range().end())
        })
    }

    pub(crate) fn keep(&mut self, prepared: PreparedBatch, changes: &[Change]) {
        if self.prepared.len() < MOST {
            self.prepared.push((prepared, changes.to_vec()));
        }
    }

    /// A prepared batch, and its changes.
    pub(crate) fn take(&mut self, which: u8) -> Option<(PreparedBatch, Vec<Change>)> {
        let which = usize::from(which).checked_rem(self.prepared.len())?;
        Some(self.prepared.swap_remove(which))
    }
}
