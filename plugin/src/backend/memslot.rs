//! Owns the backend `memslot`, the default path of today's VMMs: each mapping has a memslot of its
//! own, created with it and deleted with it. Never leaves a slot over memory that changes.

use super::{Backend, Geometry};
use crate::layout::Layout;
use crate::range::PageRange;
use crate::slots::table::Extent;

#[derive(Debug)]
pub(crate) struct Memslot {
    geometry: Geometry,
}

impl Memslot {
    pub(crate) fn new(geometry: Geometry) -> Self {
        Self { geometry }
    }
}

impl Backend for Memslot {
    fn reaches(&self, range: PageRange) -> Vec<PageRange> {
        vec![range]
    }

    fn extents(&self, layout: &Layout, reach: PageRange) -> Vec<Extent> {
        layout
            .overlapping(reach)
            .map(|mapping| self.geometry.extent_of(mapping))
            .collect()
    }

    fn slots_rest(&self) -> bool {
        false
    }

    fn host_memory_in_place(&self) -> bool {
        true
    }
}
