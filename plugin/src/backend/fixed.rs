//! Owns the backend `fixed`: one memslot for each segment that was ever used, left alone while
//! memory changes under it. Never wants a slot deleted, but where memory lies in place.

use super::{Backend, Geometry};
use crate::layout::Layout;
use crate::range::PageRange;
use crate::slots::table::Extent;

#[derive(Debug)]
pub(crate) struct Fixed {
    geometry: Geometry,
}

impl Fixed {
    pub(crate) fn new(geometry: Geometry) -> Self {
        Self { geometry }
    }

    fn over_arena(&self, range: PageRange) -> Extent {
        Extent {
            range,
            host: self.geometry.host(range.start()),
            read_only: false,
        }
    }
}

impl Backend for Fixed {
    fn reaches(&self, range: PageRange) -> Vec<PageRange> {
        self.geometry.segments(range)
    }

    /// The slots of one segment: the arena, with memory that lies in place cut out of it.
    fn extents(&self, layout: &Layout, segment: PageRange) -> Vec<Extent> {
        let mut extents = Vec::new();
        let mut from = segment.start();
        if layout.any_in_place() {
            for mapping in layout
                .overlapping(segment)
                .filter(|m| m.in_place().is_some())
            {
                let Some(part) = mapping.clipped(segment) else {
                    continue;
                };
                let before = PageRange::between(from, part.range.start());
                extents.extend(before.map(|range| self.over_arena(range)));
                extents.push(self.geometry.extent_of(&part));
                from = part.range.end();
            }
        }
        let rest = PageRange::between(from, segment.end());
        extents.extend(rest.map(|range| self.over_arena(range)));
        extents
    }

    fn slots_rest(&self) -> bool {
        true
    }

    fn host_memory_in_place(&self) -> bool {
        false
    }
}
