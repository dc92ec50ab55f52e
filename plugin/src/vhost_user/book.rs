//! Owns what a device has mapped, region by region, as it has asked for it. Never maps.

use std::collections::BTreeMap;

use super::quota::Usage;
use crate::error::StateAfter;
use crate::range::PageRange;

/// One mapping that the backend asked for.
#[derive(Clone, Copy, Debug)]
struct Live {
    range: PageRange,
    keeps_descriptor: bool,
}

/// What is live in one region.
#[derive(Debug, Default)]
pub(super) struct Book {
    live: BTreeMap<u64, Live>,
    /// A reset has left something behind.
    pub(super) reset_pending: bool,
}

/// What a map meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Met {
    /// Nothing.
    Nothing,
    /// One mapping of the very same range.
    Same(PageRange),
    /// Something else; the first of it.
    Other(PageRange),
}

/// What an unmap meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Whole mappings, or nothing.
    Whole(usize),
    /// A part of this one.
    Part(PageRange),
}

impl Book {
    fn overlapping(&self, range: PageRange) -> impl Iterator<Item = PageRange> {
        // They are disjoint, so the last that begins before is the only one that can reach in.
        let before = self.live.range(..range.start()).next_back();
        let within = self.live.range(range.start()..range.end());
        let all = before.into_iter().chain(within);
        all.map(|(_, live)| live.range)
            .filter(move |live| live.intersection(range).is_some())
    }

    pub(super) fn meets(&self, range: PageRange) -> Met {
        match self.overlapping(range).next() {
            None => Met::Nothing,
            Some(live) if live == range => Met::Same(live),
            Some(live) => Met::Other(live),
        }
    }

    pub(super) fn finds(&self, range: PageRange) -> Found {
        let mut count = 0_usize;
        for live in self.overlapping(range) {
            if !range.covers(live) {
                return Found::Part(live);
            }
            count = count.saturating_add(1);
        }
        Found::Whole(count)
    }

    /// Everything, in order.
    pub(super) fn all(&self) -> Vec<PageRange> {
        self.live.values().map(|live| live.range).collect()
    }

    pub(super) fn add(&mut self, range: PageRange, keeps_descriptor: bool, usage: &mut Usage) {
        self.take(range, usage);
        let live = Live {
            range,
            keeps_descriptor,
        };
        self.live.insert(range.start(), live);
        usage.add(range.len(), keeps_descriptor);
    }

    /// Takes away the mappings that lie in `range`.
    pub(super) fn take(&mut self, range: PageRange, usage: &mut Usage) {
        let gone: Vec<u64> = self
            .live
            .range(range.start()..range.end())
            .map(|(start, _)| *start)
            .collect();
        for start in gone {
            if let Some(live) = self.live.remove(&start) {
                usage.take(live.range.len(), live.keeps_descriptor);
            }
        }
    }

    /// Follows a change of `range` that failed.
    pub(super) fn settle(&mut self, range: PageRange, state: StateAfter, usage: &mut Usage) {
        match state {
            StateAfter::Unchanged => {}
            StateAfter::Hole => self.take(range, usage),
            // Nothing of the window reaches the guest any more.
            StateAfter::Poisoned => self.clear(usage),
        }
    }

    pub(super) fn clear(&mut self, usage: &mut Usage) {
        for live in std::mem::take(&mut self.live).into_values() {
            usage.take(live.range.len(), live.keeps_descriptor);
        }
    }
}
