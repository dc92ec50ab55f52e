//! Owns what the device does next: a pseudo-random script of changes, and of requests that must be
//! refused. Never makes a request: it knows only what should be mapped.

use std::collections::BTreeMap;

use fastrand::Rng;

/// How many mappings there are at most, beside the mailbox.
const LIVE: usize = 48;
/// How often a place for a mapping is looked for.
const TRIES: u32 = 16;

/// A range of the region, in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its first page.
    pub page: u64,
    /// How many pages it has.
    pub pages: u64,
}

impl Place {
    /// The page behind the last one.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.page.saturating_add(self.pages)
    }
}

/// What is mapped at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where.
    pub place: Place,
    /// How many pages of its memory come before those that are mapped.
    pub skip: u64,
    /// Whether the guest may write there.
    pub writable: bool,
}

/// A request that the front-end must refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bad {
    /// A map over a part of what is mapped.
    Overlap,
    /// A map that ends behind the region.
    PastEnd,
    /// A map that does not begin at a page.
    Misaligned,
    /// A map of more than its memory has.
    PastDescriptor,
    /// A map into a region that there is none of.
    NoRegion,
    /// An unmap of a hole.
    UnmapHole,
}

impl Bad {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Overlap,
        Self::PastEnd,
        Self::Misaligned,
        Self::PastDescriptor,
        Self::NoRegion,
        Self::UnmapHole,
    ];
}

/// One step of the script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Maps new memory into a hole.
    Map(Piece),
    /// Unmaps a whole mapping.
    Unmap(Place),
    /// Unmaps a whole mapping and maps new memory there.
    Replace(Piece),
    /// Maps new memory over a whole mapping. A front-end refuses that, as the protocol has it, or
    /// replaces the mapping; both leave no doubt about what is there.
    Over(Piece),
    /// Asks for what must be refused. The place is a mapping for `Overlap`, and a hole otherwise.
    Refused(Bad, Place),
}

/// A script without an end.
#[derive(Debug)]
pub struct Script {
    region: u64,
    block: u64,
    live: BTreeMap<u64, u64>,
    random: Rng,
}

impl Script {
    /// A script for a region of so many pages, whose first is the mailbox, with mappings of at most
    /// `block` pages.
    #[must_use]
    pub fn new(region: u64, block: u64, seed: u64) -> Self {
        Self {
            region,
            block: block.max(1),
            live: BTreeMap::new(),
            random: Rng::with_seed(seed),
        }
    }

    /// What comes next, or nothing where the region has no room for anything.
    pub fn step(&mut self) -> Option<Step> {
        let dice = self.random.u32(0..100);
        if dice < 5 {
            return self.refused();
        }
        if dice < 45 || self.live.is_empty() {
            let room = self.live.len() < LIVE;
            if let Some(place) = self.hole().filter(|_| room) {
                self.live.insert(place.page, place.pages);
                return Some(Step::Map(self.piece(place)));
            }
        }
        let place = self.any_mapping()?;
        Some(match dice {
            70..85 => Step::Replace(self.piece(place)),
            85.. => Step::Over(self.piece(place)),
            _ => {
                self.live.remove(&place.page);
                Step::Unmap(place)
            }
        })
    }

    /// What is mapped, in order.
    pub fn live(&self) -> impl Iterator<Item = Place> + '_ {
        let places = self.live.iter();
        places.map(|(&page, &pages)| Place { page, pages })
    }

    /// A mapping, if there is one.
    pub fn any_mapping(&mut self) -> Option<Place> {
        let which = self.random.usize(0..self.live.len().max(1));
        self.live().nth(which)
    }

    /// A dice that is 0 once in `sides` throws.
    pub fn once_in(&mut self, sides: u32) -> bool {
        self.random.u32(0..sides.max(1)) == 0
    }

    fn refused(&mut self) -> Option<Step> {
        let which = self.random.usize(0..Bad::ALL.len());
        let bad = *Bad::ALL.get(which)?;
        let place = match bad {
            Bad::Overlap => self.any_mapping().or(Some(Place { page: 0, pages: 1 })),
            _ => self.hole(),
        };
        place.map(|place| Step::Refused(bad, place))
    }

    fn piece(&mut self, place: Place) -> Piece {
        let skip = if self.once_in(4) {
            self.random.u64(1..9)
        } else {
            0
        };
        Piece {
            place,
            skip,
            writable: !self.once_in(8),
        }
    }

    /// A place where nothing is mapped. Small ones are more frequent than large ones, and those as
    /// large as a huge page lie where one could.
    fn hole(&mut self) -> Option<Place> {
        for _ in 0..TRIES {
            let most = 1_u64 << self.random.u32(0..=self.block.ilog2());
            let exact = self.random.bool();
            let pages = if exact {
                most
            } else {
                self.random.u64(1..=most)
            };
            let room = self.region.checked_sub(pages).filter(|room| *room >= 1);
            let Some(room) = room else { continue };
            let mut page = self.random.u64(1..=room);
            if exact && pages > 1 {
                page = page.next_multiple_of(pages);
            }
            let place = Place { page, pages };
            if place.end() <= self.region && self.is_free(place) {
                return Some(place);
            }
        }
        None
    }

    fn is_free(&self, place: Place) -> bool {
        let before = self.live.range(..place.end()).next_back();
        before.is_none_or(|(&page, &pages)| Place { page, pages }.end() <= place.page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    proptest! {
        #[test]
        fn steps_agree_with_what_is_mapped(
            region in 2u64..4096, block in 1u64..=512, seed: u64,
        ) {
            let mut script = Script::new(region, block, seed);
            let mut mapped: Vec<Option<u64>> = vec![None; region as usize];
            mapped[0] = Some(0);
            let mut put = |place: Place, from: &dyn Fn(Option<u64>) -> bool, to: Option<u64>| {
                assert!(place.pages >= 1 && place.pages <= block && place.end() <= region);
                for page in place.page..place.end() {
                    assert!(from(mapped[page as usize]), "{place:?}");
                    mapped[page as usize] = to;
                }
            };
            for _ in 0..500 {
                let Some(step) = script.step() else { continue };
                match step {
                    Step::Map(piece) => {
                        let page = piece.place.page;
                        put(piece.place, &|was| was.is_none(), Some(page));
                    }
                    Step::Replace(piece) | Step::Over(piece) => {
                        let page = piece.place.page;
                        put(piece.place, &|was| was == Some(page), Some(page));
                    }
                    Step::Unmap(place) => put(place, &|was| was == Some(place.page), None),
                    Step::Refused(Bad::Overlap, place) => {
                        put(place, &|was| was == Some(place.page), Some(place.page));
                    }
                    Step::Refused(_, place) => put(place, &|was| was.is_none(), None),
                }
                prop_assert!(script.live().count() <= LIVE);
            }
        }
    }

    #[test]
    fn everything_comes_in_time_and_in_the_same_order_again() {
        let steps = || {
            let mut script = Script::new(64 << 8, 512, 1);
            (0..2000).filter_map(|_| script.step()).collect::<Vec<_>>()
        };
        let first = steps();
        assert_eq!(first, steps());
        let kinds: HashSet<_> = first.iter().map(std::mem::discriminant).collect();
        assert_eq!(kinds.len(), 5);
        for bad in Bad::ALL {
            let is = |step: &Step| matches!(step, Step::Refused(found, _) if *found == bad);
            assert!(first.iter().any(is), "{bad:?}");
        }
        let largest = first.iter().any(|step| {
            matches!(step, Step::Map(piece) if piece.place.pages == 512 && piece.place.page % 512 == 0)
        });
        assert!(largest);
    }
}
