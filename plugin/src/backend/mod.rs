//! Owns the choice between ways to make a mapping: which memslots a backend wants for a layout,
//! and whether they rest while memory changes under them. Never calls the kernel: the window
//! carries out what follows from the answers.

pub(crate) mod fixed;
pub(crate) mod memslot;

use std::fmt::{self, Debug};
use std::str::FromStr;

use crate::error::Error;
use crate::layout::{Layout, Mapping};
use crate::range::{PAGE_SIZE, PageRange};
use crate::slots::table::Extent;

/// A backend, by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum BackendKind {
    /// `fixed`: memory changes under memslots that stay registered.
    #[default]
    Fixed,
    /// `memslot`: each mapping has a memslot of its own, created and deleted with it.
    Memslot,
}

impl BackendKind {
    /// Every backend.
    pub const ALL: [Self; 2] = [Self::Fixed, Self::Memslot];

    /// The name by which it is chosen.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fixed => "fixed",
            Self::Memslot => "memslot",
        }
    }

    pub(crate) fn backend(self, geometry: Geometry) -> Box<dyn Backend> {
        match self {
            Self::Fixed => Box::new(fixed::Fixed::new(geometry)),
            Self::Memslot => Box::new(memslot::Memslot::new(geometry)),
        }
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for BackendKind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == name);
        found.ok_or_else(|| Error::UnknownBackend {
            name: name.to_owned(),
            known: Self::ALL.map(Self::name).join(", "),
        })
    }
}

/// A way to make a mapping.
pub(crate) trait Backend: Debug + Send + Sync {
    /// The parts of the window whose slots can change when `range` does, each on its own.
    fn reaches(&self, range: PageRange) -> Vec<PageRange>;

    /// The slots there must be in `reach` once `layout` holds. `reach` is one that
    /// [`Backend::reaches`] gave.
    fn extents(&self, layout: &Layout, reach: PageRange) -> Vec<Extent>;

    /// Whether slots stay registered while the memory under them changes.
    fn slots_rest(&self) -> bool;

    /// Whether memory without a descriptor gets a slot directly over it, always.
    fn host_memory_in_place(&self) -> bool;
}

/// Where things lie: what a backend has to know of window and arena.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    pub(crate) window: PageRange,
    /// Host address of the window's first byte.
    pub(crate) arena: u64,
    /// Size of a segment, in bytes.
    pub(crate) segment: u64,
    /// How far into a segment the window begins, in bytes, so that segments lie on multiples of
    /// their size in the guest.
    pub(crate) skew: u64,
}

impl Geometry {
    /// The slot for one mapping alone.
    fn extent_of(&self, mapping: &Mapping) -> Extent {
        let range = mapping.range;
        let host = mapping
            .in_place()
            .unwrap_or_else(|| self.host(range.start()));
        Extent {
            range,
            host,
            read_only: !mapping.protection.is_writable(),
        }
    }

    fn host(&self, offset: u64) -> u64 {
        // The arena's end is an address, so this cannot wrap.
        self.arena.wrapping_add(offset)
    }

    /// The segments that `range` touches, clipped to the window.
    fn segments(&self, range: PageRange) -> Vec<PageRange> {
        // Counted from the start of the window's first segment, which can lie before the window.
        let index = |offset: u64| offset.saturating_add(self.skew).checked_div(self.segment);
        let first = index(range.start()).unwrap_or(0);
        let last = index(range.end().saturating_sub(PAGE_SIZE)).unwrap_or(0);
        let edge = |index: u64| index.saturating_mul(self.segment).saturating_sub(self.skew);
        let end = self.window.end();
        (first..=last)
            .filter_map(|n| PageRange::between(edge(n), edge(n.saturating_add(1)).min(end)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_are_found_by_their_names() {
        for kind in BackendKind::ALL {
            assert_eq!(kind.name().parse::<BackendKind>().unwrap(), kind);
        }
        assert_eq!(
            "nonsense".parse::<BackendKind>().unwrap_err().to_string(),
            "cannot find a backend named \"nonsense\": there are fixed, memslot"
        );
    }

    #[test]
    fn segments_lie_on_multiples_of_their_size_in_the_guest() {
        let page = |page: u64, pages: u64| PageRange::new(page << 12, pages << 12).unwrap();
        // Segments of 4 pages; the window begins 1 page into one and has 10 pages.
        let geometry = Geometry {
            window: page(0, 10),
            arena: 0x5000,
            segment: 4 << 12,
            skew: 1 << 12,
        };
        assert_eq!(geometry.segments(page(0, 1)), [page(0, 3)]);
        assert_eq!(geometry.segments(page(2, 1)), [page(0, 3)]);
        assert_eq!(geometry.segments(page(3, 1)), [page(3, 4)]);
        assert_eq!(geometry.segments(page(2, 2)), [page(0, 3), page(3, 4)]);
        assert_eq!(geometry.segments(page(8, 1)), [page(7, 3)]);
        assert_eq!(
            geometry.segments(page(0, 10)),
            [page(0, 3), page(3, 4), page(7, 3)]
        );
    }
}
