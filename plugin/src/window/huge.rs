//! Owns the judgement whether a mapping can have 2 MiB translations in the guest, and the counting of
//! those that cannot, by reason. Pure, and never asks the kernel: what it knows is where a mapping
//! lies, and what its descriptor said when it was mapped.

use super::counters::{Tally, add};
use super::prepare::Prepared;
use crate::layout::{Mapping, Origin, Undo};
use crate::range::{HUGE_2M, PageRange};

/// Where the window lies in the guest and in the host, and what it is about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) guest: u64,
    pub(super) host: u64,
    /// Whether the hypervisor logs dirty pages: it maps all memory in small ones then (Linux:
    /// `arch/x86/kvm/mmu/mmu.c` `kvm_mmu_hugepage_adjust`).
    pub(super) logs_dirty_pages: bool,
}

/// How many mappings of a change, or of a batch, lost their huge pages, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lost {
    skew: usize,
    small_pages: usize,
    cuts: usize,
    dirty_log: usize,
}

impl Lost {
    /// Judges all that `changes` map, and all that they cut.
    pub(super) fn by(changes: &[Prepared], undos: &[Undo], place: Place) -> Self {
        let mut lost = Self::default();
        let mapped = changes.iter().filter_map(|change| change.mapping.as_ref());
        for mapping in mapped.filter(|mapping| mapping.range.len() >= HUGE_2M) {
            match place.aligned(mapping) {
                Some(false) => lost.skew = lost.skew.saturating_add(1),
                Some(true) if !mapping.huge => {
                    lost.small_pages = lost.small_pages.saturating_add(1);
                }
                Some(true) if place.logs_dirty_pages => {
                    lost.dirty_log = lost.dirty_log.saturating_add(1);
                }
                Some(true) | None => {}
            }
        }
        for undo in undos {
            let cut = |old: &&Mapping| place.cuts(undo.range(), old);
            let cuts = undo.before().iter().filter(cut).count();
            lost.cuts = lost.cuts.saturating_add(cuts);
        }
        lost
    }

    pub(super) fn count(self, tally: &Tally) {
        add(&tally.lost_to_skew, self.skew);
        add(&tally.lost_to_small_pages, self.small_pages);
        add(&tally.lost_to_cuts, self.cuts);
        add(&tally.lost_to_dirty_log, self.dirty_log);
    }
}

impl Place {
    /// Whether some 2 MiB block of the mapping begins on a multiple of 2 MiB in the guest, in the
    /// host and in its file. `None` for memory of the caller's, of which only the address is known.
    fn aligned(self, mapping: &Mapping) -> Option<bool> {
        let offset = match mapping.origin {
            Origin::Descriptor { offset, .. } => offset,
            Origin::Anonymous => 0,
            Origin::HostMemory { .. } => return None,
        };
        // Checked not to wrap when the window was opened.
        let guest = self.guest.wrapping_add(mapping.range.start());
        let host = self.host.wrapping_add(mapping.range.start());
        let congruent = |other: u64| guest.wrapping_sub(other).is_multiple_of(HUGE_2M);
        let block = guest.checked_next_multiple_of(HUGE_2M);
        let end = block.and_then(|block| block.checked_add(HUGE_2M));
        let fits = end.is_some_and(|end| end <= guest.saturating_add(mapping.range.len()));
        Some(congruent(host) && congruent(offset) && fits)
    }

    /// Whether a change of `range` cuts the mapping inside a block that was whole.
    fn cuts(self, range: PageRange, old: &Mapping) -> bool {
        let inside = |edge: u64| {
            let guest = self.guest.wrapping_add(edge);
            let Some(into) = guest.checked_rem(HUGE_2M) else {
                return false;
            };
            let block = edge.checked_sub(into);
            into > 0
                && block.is_some_and(|start| {
                    start >= old.range.start() && start.saturating_add(HUGE_2M) <= old.range.end()
                })
        };
        old.huge
            && self.aligned(old) == Some(true)
            && (inside(range.start()) || inside(range.end()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Layout;
    use crate::range::PAGE_SIZE;
    use crate::source::Protection;
    use crate::source::descriptor::DescriptorKind;
    use crate::window::prefault::Filled;

    const PLACE: Place = Place {
        guest: 4 << 30,
        host: 7 << 30,
        logs_dirty_pages: false,
    };
    const BLOCK: u64 = 512;

    fn pages(start: u64, count: u64) -> PageRange {
        PageRange::new(start * PAGE_SIZE, count * PAGE_SIZE).unwrap()
    }

    fn mapping(range: PageRange, offset: u64, huge: bool) -> Mapping {
        Mapping {
            range,
            protection: Protection::ReadWrite,
            origin: Origin::Descriptor {
                kind: DescriptorKind::Shmem,
                device: 1,
                inode: 1,
                offset: offset * PAGE_SIZE,
            },
            label: 0,
            huge,
            keep: None,
            stable: false,
        }
    }

    fn mapped(mapping: Mapping, place: Place) -> (usize, usize) {
        let change = Prepared {
            range: mapping.range,
            into_hole: true,
            mapping: Some(mapping),
            filled: Filled::NotAsked,
            collapsed: None,
        };
        let lost = Lost::by(&[change], &[], place);
        assert_eq!(lost.cuts, 0);
        (lost.skew, lost.small_pages)
    }

    #[test]
    fn a_mapping_loses_to_skew_first_and_to_small_pages_where_it_lies_right() {
        let right = mapping(pages(BLOCK, BLOCK), 0, true);
        assert_eq!(mapped(right.clone(), PLACE), (0, 0));
        assert_eq!(
            mapped(mapping(pages(BLOCK, BLOCK), 0, false), PLACE),
            (0, 1)
        );
        // The file's offset, the place in the guest, no whole block, the arena.
        assert_eq!(
            mapped(mapping(pages(BLOCK, BLOCK), 1, false), PLACE),
            (1, 0)
        );
        assert_eq!(mapped(mapping(pages(1, 2 * BLOCK), 0, true), PLACE), (1, 0));
        assert_eq!(mapped(mapping(pages(1, BLOCK), 1, true), PLACE), (1, 0));
        let moved = Place {
            guest: PLACE.guest + PAGE_SIZE,
            ..PLACE
        };
        assert_eq!(mapped(right, moved), (1, 0));
        // A block that is whole although the ends are not.
        assert_eq!(mapped(mapping(pages(1, 2 * BLOCK), 1, true), PLACE), (0, 0));
        // Too short to have had one.
        assert_eq!(
            mapped(mapping(pages(1, BLOCK - 1), 0, false), PLACE),
            (0, 0)
        );
        let anonymous = Mapping {
            origin: Origin::Anonymous,
            ..mapping(pages(0, BLOCK), 0, false)
        };
        assert_eq!(mapped(anonymous, PLACE), (0, 1));
        let host = Mapping {
            origin: Origin::HostMemory {
                address: 1 << 40,
                in_place: false,
            },
            ..mapping(pages(1, BLOCK), 0, false)
        };
        assert_eq!(mapped(host, PLACE), (0, 0));
    }

    #[test]
    fn a_mapping_that_could_be_huge_loses_to_the_dirty_log_while_it_is_on() {
        let lost = |mapping: Mapping, logs_dirty_pages| {
            let place = Place {
                logs_dirty_pages,
                ..PLACE
            };
            let change = Prepared {
                range: mapping.range,
                into_hole: true,
                mapping: Some(mapping),
                filled: Filled::NotAsked,
                collapsed: None,
            };
            let lost = Lost::by(&[change], &[], place);
            (lost.skew, lost.small_pages, lost.dirty_log)
        };
        let of = |offset, huge| mapping(pages(BLOCK, BLOCK), offset, huge);
        assert_eq!(lost(of(0, true), false), (0, 0, 0));
        assert_eq!(lost(of(0, true), true), (0, 0, 1));
        // What has none without the log loses nothing to it.
        assert_eq!(lost(of(0, false), true), (0, 1, 0));
        assert_eq!(lost(of(1, true), true), (1, 0, 0));
        let short = mapping(pages(BLOCK, BLOCK - 1), 0, true);
        assert_eq!(lost(short, true), (0, 0, 0));
    }

    #[test]
    fn a_mapping_is_cut_where_a_change_ends_inside_a_whole_block_of_it() {
        let cuts = |old: Mapping, range| {
            let mut layout = Layout::default();
            layout.set(old.range, Some(old));
            let undo = layout.set(range, None);
            Lost::by(&[], &[undo], PLACE).cuts
        };
        let old = || mapping(pages(0, 3 * BLOCK), 0, true);
        assert_eq!(cuts(old(), pages(5, 1)), 1);
        assert_eq!(cuts(old(), pages(BLOCK, BLOCK)), 0, "at its edges");
        assert_eq!(cuts(old(), pages(0, 3 * BLOCK)), 0, "the whole");
        assert_eq!(cuts(old(), pages(BLOCK, 1)), 1, "one edge is enough");
        assert_eq!(cuts(mapping(pages(0, BLOCK), 0, false), pages(5, 1)), 0);
        let tail = mapping(pages(0, BLOCK + 8), 0, true);
        assert_eq!(cuts(tail, pages(BLOCK + 4, 1)), 0, "outside of blocks");
    }
}
