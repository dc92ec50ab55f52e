//! Owns what is mapped where in a window: pure bookkeeping, checked against a per-page model.
//! Never makes a system call, and decides nothing about slots.

pub(crate) mod record;
#[cfg(feature = "serde")]
mod written;

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::range::PageRange;
use crate::source::Protection;
use crate::source::descriptor::DescriptorKind;

/// What stands behind a mapping, for its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Origin {
    /// A file, known by its device and inode.
    Descriptor {
        /// What kind of file.
        kind: DescriptorKind,
        /// `st_dev` of the file.
        device: u64,
        /// `st_ino` of the file.
        inode: u64,
        /// Offset in the file, in bytes.
        offset: u64,
    },
    /// Memory of this process that was passed without a descriptor.
    HostMemory {
        /// Its host address.
        address: u64,
        /// Whether a memslot lies directly over it; else it was duplicated into the arena.
        in_place: bool,
    },
    /// Anonymous memory.
    Anonymous,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Descriptor {
                kind,
                device,
                inode,
                offset,
            } => write!(
                f,
                "{kind} from {offset:#x}, device {device:#x}, inode {inode}"
            ),
            Self::HostMemory { address, .. } => write!(f, "host memory at {address:#x}"),
            Self::Anonymous => f.write_str("anonymous memory"),
        }
    }
}

impl Origin {
    /// The origin of the byte `distance` bytes further on.
    fn advanced(self, distance: u64) -> Self {
        match self {
            Self::Descriptor {
                kind,
                device,
                inode,
                offset,
            } => {
                // The whole mapping was checked not to wrap.
                let offset = offset.wrapping_add(distance);
                Self::Descriptor {
                    kind,
                    device,
                    inode,
                    offset,
                }
            }
            Self::HostMemory { address, in_place } => {
                let address = address.wrapping_add(distance);
                Self::HostMemory { address, in_place }
            }
            Self::Anonymous => Self::Anonymous,
        }
    }
}

/// One source placed at one range of a window.
#[derive(Clone, Debug)]
pub struct Mapping {
    pub(crate) range: PageRange,
    pub(crate) protection: Protection,
    pub(crate) origin: Origin,
    pub(crate) label: u64,
    /// Whether its memory gave a sign, when it was mapped, of having pages of 2 MiB or more.
    pub(crate) huge: bool,
    /// Kept where the kernel cannot duplicate the mapping, so that a batch can be undone.
    pub(crate) keep: Option<Arc<OwnedFd>>,
    /// Whether touching it never raises a signal, see `source::stable`.
    pub(crate) stable: bool,
}

impl Mapping {
    /// Where it lies in the window.
    #[must_use]
    pub fn range(&self) -> PageRange {
        self.range
    }

    /// What the guest may do with it.
    #[must_use]
    pub fn protection(&self) -> Protection {
        self.protection
    }

    /// What stands behind its first byte.
    #[must_use]
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// The number given with [`Source::label`](crate::Source::label).
    #[must_use]
    pub fn label(&self) -> u64 {
        self.label
    }

    /// Whether a memslot of its own lies directly over the host memory.
    pub(crate) fn in_place(&self) -> Option<u64> {
        match self.origin {
            Origin::HostMemory {
                address,
                in_place: true,
            } => Some(address),
            _ => None,
        }
    }

    /// Size of the mapping's huge pages, where a change of `range` cuts it inside one.
    pub(crate) fn cut_inside_huge_page(&self, range: PageRange) -> Option<u64> {
        let Origin::Descriptor {
            kind: DescriptorKind::Hugetlb { page_size },
            ..
        } = self.origin
        else {
            return None;
        };
        let inside = |offset: u64| {
            let distance = self.range.distance_to(offset);
            distance < self.range.len() && !distance.is_multiple_of(page_size)
        };
        (inside(range.start()) || inside(range.end())).then_some(page_size)
    }

    /// The huge pages that `range` cuts, whole; where it cuts none, nothing.
    pub(crate) fn huge_pages_cut_by(&self, range: PageRange) -> Option<PageRange> {
        let size = self.cut_inside_huge_page(range)?;
        let part = self.range.intersection(range)?;
        let (from, to) = (
            self.range.distance_to(part.start()),
            self.range.distance_to(part.end()),
        );
        let from = from.saturating_sub(from.checked_rem(size)?);
        let to = to.checked_next_multiple_of(size)?;
        let at = |distance: u64| self.range.start().saturating_add(distance);
        PageRange::between(at(from), at(to))?.intersection(self.range)
    }

    /// The part of the mapping that lies in `range`.
    pub(crate) fn clipped(&self, range: PageRange) -> Option<Self> {
        let part = self.range.intersection(range)?;
        let distance = self.range.distance_to(part.start());
        Some(Self {
            range: part,
            origin: self.origin.advanced(distance),
            ..self.clone()
        })
    }
}

/// The mappings of a window, in order, none over another.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    by_start: BTreeMap<u64, Mapping>,
    in_place: usize,
    mapped: u64,
}

/// What [`Layout::set`] took away, so that [`Layout::restore`] can put it back.
#[derive(Debug)]
pub(crate) struct Undo {
    range: PageRange,
    before: Vec<Mapping>,
}

impl Undo {
    /// The mappings that `set` met, whole.
    pub(crate) fn before(&self) -> &[Mapping] {
        &self.before
    }

    /// The range that was set.
    pub(crate) fn range(&self) -> PageRange {
        self.range
    }
}

impl Layout {
    /// How many mappings there are.
    pub(crate) fn len(&self) -> usize {
        self.by_start.len()
    }

    /// Bytes that mappings cover.
    pub(crate) fn mapped(&self) -> u64 {
        self.mapped
    }

    /// Whether any mapping has a memslot directly over host memory.
    pub(crate) fn any_in_place(&self) -> bool {
        self.in_place > 0
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Mapping> {
        self.by_start.values()
    }

    /// The mapping at `offset`.
    pub(crate) fn at(&self, offset: u64) -> Option<&Mapping> {
        let (_, mapping) = self.by_start.range(..=offset).next_back()?;
        mapping.range.contains(offset).then_some(mapping)
    }

    /// The mappings that `range` touches, whole and in order.
    pub(crate) fn overlapping(&self, range: PageRange) -> impl Iterator<Item = &Mapping> {
        let from = self
            .at(range.start())
            .map_or(range.start(), |first| first.range.start());
        self.by_start
            .range(from..range.end())
            .map(|(_, mapping)| mapping)
    }

    /// The parts of `range` where the arena holds no memory: holes, and mappings whose memory
    /// lies elsewhere.
    pub(crate) fn arena_holes(&self, range: PageRange) -> Vec<PageRange> {
        let mut holes = Vec::new();
        let mut from = range.start();
        for mapping in self.overlapping(range).filter(|m| m.in_place().is_none()) {
            holes.extend(PageRange::between(from, mapping.range.start()));
            from = mapping.range.end();
        }
        holes.extend(PageRange::between(from, range.end()));
        holes
    }

    /// Whether the arena holds memory anywhere in `range`.
    pub(crate) fn has_memory(&self, range: PageRange) -> bool {
        self.overlapping(range).any(|old| old.in_place().is_none())
    }

    /// Makes `range` a hole, or the given mapping of exactly that range, cutting what it meets.
    pub(crate) fn set(&mut self, range: PageRange, mapping: Option<Mapping>) -> Undo {
        let before: Vec<Mapping> = self.overlapping(range).cloned().collect();
        for old in &before {
            self.take(old.range.start());
            let left = PageRange::between(old.range.start(), range.start());
            let right = PageRange::between(range.end(), old.range.end());
            for side in [left, right].into_iter().flatten() {
                self.put(old.clipped(side));
            }
        }
        debug_assert!(
            mapping
                .as_ref()
                .is_none_or(|mapping| mapping.range == range)
        );
        self.put(mapping);
        Undo { range, before }
    }

    /// Takes a `set` back. Several are taken back in the opposite order.
    pub(crate) fn restore(&mut self, undo: Undo) {
        let hull = undo
            .before
            .iter()
            .fold(undo.range, |hull, old| hull.hull(old.range));
        let within: Vec<u64> = self
            .by_start
            .range(hull.start()..hull.end())
            .map(|(s, _)| *s)
            .collect();
        for start in within {
            self.take(start);
        }
        for mapping in undo.before {
            self.put(Some(mapping));
        }
    }

    fn put(&mut self, mapping: Option<Mapping>) {
        if let Some(mapping) = mapping {
            self.in_place = self
                .in_place
                .saturating_add(usize::from(mapping.in_place().is_some()));
            self.mapped = self.mapped.saturating_add(mapping.range.len());
            self.by_start.insert(mapping.range.start(), mapping);
        }
    }

    fn take(&mut self, start: u64) {
        if let Some(mapping) = self.by_start.remove(&start) {
            self.in_place = self
                .in_place
                .saturating_sub(usize::from(mapping.in_place().is_some()));
            self.mapped = self.mapped.saturating_sub(mapping.range.len());
        }
    }
}

#[cfg(test)]
mod model_tests;
