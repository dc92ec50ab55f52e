//! Owns what each listener of a window has mapped, and keeps that true through failures. Never
//! decides what should be mapped, and never touches the memory.
//!
//! What a listener did not unmap stays in its table, so that whoever owns the memory knows.

// UNSAFETY: mapping memory for DMA promises that it stays, which only the owner of both, the
// window, can keep.
#![expect(unsafe_code, reason = "mapping memory for DMA is an unsafe call")]

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::{DmaListener, DmaListenerId, DmaMapping};
use crate::error::{Error, StateAfter};
use crate::range::{GuestAddress, PageRange};

/// What is, or should be, mapped for DMA, by where it starts in the window.
pub(crate) type Parts = BTreeMap<u64, Part>;

/// One mapping of the window, as a listener is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    range: PageRange,
    mapping: DmaMapping,
}

impl Part {
    pub(crate) fn new(range: PageRange, guest: GuestAddress, host: u64, writable: bool) -> Self {
        let len = range.len();
        let mapping = DmaMapping {
            guest,
            len,
            host,
            writable,
        };
        Self { range, mapping }
    }

    fn failure(self, verb: &'static str, source: io::Error) -> Error {
        Error::Dma {
            verb,
            guest: self.mapping.guest,
            len: self.mapping.len,
            state: StateAfter::Unchanged,
            source,
        }
    }
}

/// The listeners of one window, in the order in which they came.
#[derive(Debug, Default)]
pub(crate) struct DmaTable {
    listeners: Vec<Attached>,
    named: u64,
}

#[derive(Debug)]
struct Attached {
    id: DmaListenerId,
    listener: Arc<dyn DmaListener>,
    mapped: Parts,
}

impl DmaTable {
    pub(crate) fn is_empty(&self) -> bool {
        self.listeners.is_empty()
    }

    /// Adds a listener that has nothing mapped yet.
    pub(crate) fn add(&mut self, listener: Arc<dyn DmaListener>) -> DmaListenerId {
        let id = DmaListenerId(self.named);
        self.named = self.named.wrapping_add(1);
        self.listeners.push(Attached {
            id,
            listener,
            mapped: Parts::new(),
        });
        id
    }

    /// Forgets a listener that has nothing mapped any more; returns whether it was there.
    pub(crate) fn forget(&mut self, id: DmaListenerId) -> bool {
        let before = self.listeners.len();
        self.listeners
            .retain(|attached| attached.id != id || !attached.mapped.is_empty());
        self.listeners.len() < before
    }

    /// Maps what is missing of `wanted` for each listener; stops at the first failure.
    pub(crate) fn map(&mut self, wanted: &Parts) -> Result<(), Error> {
        self.listeners
            .iter_mut()
            .try_for_each(|attached| attached.map_all(wanted))
    }

    /// Unmaps what touches any of `ranges` for each listener, whole; stops at the first failure.
    pub(crate) fn unmap(&mut self, ranges: &[PageRange]) -> Result<(), Error> {
        self.listeners
            .iter_mut()
            .rev()
            .try_for_each(|attached| attached.unmap_in(ranges))
    }

    /// Unmaps what touches `range` for one listener, whole; stops at the first failure.
    pub(crate) fn unmap_of(&mut self, id: DmaListenerId, range: PageRange) -> Result<(), Error> {
        self.listeners
            .iter_mut()
            .filter(|attached| attached.id == id)
            .try_for_each(|attached| attached.unmap_in(&[range]))
    }

    /// Unmaps everything that lets itself be unmapped; the first failure is reported.
    pub(crate) fn unmap_what_goes(&mut self) -> Result<(), Error> {
        let mut first = Ok(());
        for attached in self.listeners.iter_mut().rev() {
            let starts: Vec<u64> = attached.mapped.keys().rev().copied().collect();
            for start in starts {
                first = first.and(attached.unmap(start));
            }
        }
        first
    }
}

impl Attached {
    fn map_all(&mut self, wanted: &Parts) -> Result<(), Error> {
        wanted.values().try_for_each(|part| self.map(*part))
    }

    fn map(&mut self, part: Part) -> Result<(), Error> {
        let start = part.range.start();
        if let Some(there) = self.mapped.get(&start) {
            assert_eq!(*there, part, "memory changes only while it is unmapped");
            return Ok(());
        }
        // Known before it is mapped: a listener that panics may have mapped it.
        self.mapped.insert(start, part);
        // SAFETY: the memory is the window's arena, or what the caller of `Source::host_memory`
        // promised to keep. It stays until `unmap` succeeds for the mapping: this table forgets
        // none before that, the window changes no memory under one, and it gives its arena back
        // only when the table is empty. No reference into it exists.
        let mapped = unsafe { self.listener.map(&part.mapping) };
        mapped.map_err(|source| {
            self.mapped.remove(&start);
            part.failure("map", source)
        })
    }

    fn unmap_in(&mut self, ranges: &[PageRange]) -> Result<(), Error> {
        for range in ranges.iter().rev() {
            while let Some(start) = self.last_in(*range) {
                self.unmap(start)?;
            }
        }
        Ok(())
    }

    /// Where the last part that touches `range` starts.
    fn last_in(&self, range: PageRange) -> Option<u64> {
        let (start, part) = self.mapped.range(..range.end()).next_back()?;
        part.range.intersection(range).map(|_| *start)
    }

    fn unmap(&mut self, start: u64) -> Result<(), Error> {
        let Some(part) = self.mapped.get(&start).copied() else {
            return Ok(());
        };
        let refused = |source| part.failure("unmap", source);
        self.listener.unmap(&part.mapping).map_err(refused)?;
        self.mapped.remove(&start);
        Ok(())
    }
}
