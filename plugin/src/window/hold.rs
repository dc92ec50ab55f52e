//! Owns a hold on a part of a window: what is mapped there, kept as it is until the hold is
//! dropped. Never touches the memory.

use super::Window;
use crate::error::Error;
use crate::range::{PAGE_SIZE, PageRange};

/// A part of a window that stays as it is.
#[derive(Debug)]
pub(crate) struct Hold<'a> {
    window: &'a Window,
    number: u64,
    range: PageRange,
    parts: Vec<Part>,
}

/// The held part of one mapping. There is none without a [`Hold`]: whoever has a reference to one
/// knows that its memory is the guest's and stays mapped.
#[derive(Debug)]
pub(crate) struct Part {
    range: PageRange,
    mapping: PageRange,
    host_address: u64,
    writable: bool,
    stable: bool,
}

impl Part {
    /// Where it lies in the window.
    pub(crate) fn range(&self) -> PageRange {
        self.range
    }

    /// The whole mapping.
    pub(crate) fn mapping(&self) -> PageRange {
        self.mapping
    }

    /// The host address of its first byte.
    pub(crate) fn host_address(&self) -> u64 {
        self.host_address
    }

    pub(crate) fn is_writable(&self) -> bool {
        self.writable
    }

    /// Whether touching it never raises a signal.
    pub(crate) fn is_stable(&self) -> bool {
        self.stable
    }
}

impl Hold<'_> {
    pub(crate) fn range(&self) -> PageRange {
        self.range
    }

    /// What is mapped in the range, in order and without a gap.
    pub(crate) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Says that the VMM has written to the window's bytes from `start` up to `end`.
    pub(crate) fn written(&self, start: u64, end: u64) {
        let first = start.saturating_sub(start % PAGE_SIZE);
        let last = end.checked_next_multiple_of(PAGE_SIZE).unwrap_or(end);
        let pages = PageRange::between(first, last).and_then(|all| all.intersection(self.range));
        if let Some(pages) = pages {
            self.window.mark_dirty(pages);
        }
    }
}

impl Window {
    pub(crate) fn hold(&self, range: PageRange) -> Result<Hold<'_>, Error> {
        let window = self.shared.geometry.window;
        if !window.covers(range) {
            let window = window.len();
            return Err(Error::OutsideWindow { range, window });
        }
        let turnstile = &self.shared.turnstile;
        let mut state = turnstile.lock_to_pin(&self.state, range);
        if state.poisoned {
            return Err(Error::Poisoned);
        }
        let mut parts = Vec::new();
        let mut from = range.start();
        for mapping in state.layout.overlapping(range) {
            let Some(part) = mapping.clipped(range) else {
                continue;
            };
            if let Some(hole) = PageRange::between(from, part.range.start()) {
                return Err(Error::NotMapped { range, hole });
            }
            from = part.range.end();
            let host_address = match part.in_place() {
                Some(address) => address,
                None => self.shared.arena.address(part.range.start()),
            };
            parts.push(Part {
                range: part.range,
                mapping: mapping.range,
                host_address,
                writable: part.protection.is_writable(),
                stable: part.stable,
            });
        }
        if let Some(hole) = PageRange::between(from, range.end()) {
            return Err(Error::NotMapped { range, hole });
        }
        let number = state.pins.add(range);
        Ok(Hold {
            window: self,
            number,
            range,
            parts,
        })
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        let Window { state, shared, .. } = self.window;
        shared.turnstile.unpin(state, self.number);
    }
}
