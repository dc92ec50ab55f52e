//! Owns what is done to a window, step by step, and the model of what the guest must see after
//! it. Never looks at a window.

use self::Change::{Map, Replace, Unmap};
use self::Memory::{Anonymous, Filled, Peer, Private, Sealed, Shared};
use self::Step::{Batch, InvalidateRoots, One, Relocate, Replay};

/// Pages of the window, and of each memory.
pub const PAGES: u64 = 32;

/// What is mapped, always from its first page on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// A memfd that can shrink: staged.
    Peer,
    /// The same, with its pages brought in before.
    Filled,
    /// A memfd that cannot: mapped directly.
    Sealed,
    /// Host memory that can be duplicated.
    Shared,
    /// Host memory that needs a slot of its own.
    Private,
    Anonymous,
}

impl Memory {
    /// The byte that fills page `page`.
    pub fn byte(self, page: u64) -> u8 {
        let first = match self {
            Peer | Filled => 1,
            Sealed => 40,
            Shared => 80,
            Private => 120,
            Anonymous => return 0,
        };
        first + page as u8
    }
}

/// A first page and a count of pages, and what comes there.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    Map(u64, u64, Memory),
    Replace(u64, u64, Memory),
    Unmap(u64, u64),
}

#[derive(Clone, Debug)]
pub enum Step {
    One(Change),
    Batch(Vec<Change>),
    /// First pages, counts of pages and memories of a record.
    Replay(Vec<(u64, u64, Memory)>),
    Relocate(u64),
    InvalidateRoots,
}

/// What the guest sees in each page: its first byte, or nothing.
#[derive(Clone, Debug)]
pub struct Model(Vec<Option<u8>>);

impl Model {
    pub fn new() -> Self {
        Self(vec![None; PAGES as usize])
    }

    pub fn page(&self, page: u64) -> Option<u8> {
        self.0[page as usize]
    }

    pub fn mapped(&self) -> u64 {
        self.0.iter().flatten().count() as u64
    }

    /// The model after a step, or `None` where the step must be refused.
    pub fn after(&self, step: &Step) -> Option<Self> {
        let replayed: Vec<Change>;
        let changes = match step {
            One(change) => std::slice::from_ref(change),
            Batch(changes) => changes.as_slice(),
            Replay(_) if self.mapped() > 0 => return None,
            Replay(maps) => {
                let map = |&(start, count, memory)| Map(start, count, memory);
                replayed = maps.iter().map(map).collect();
                &replayed
            }
            Relocate(_) | InvalidateRoots => &[],
        };
        let mut after = self.clone();
        changes
            .iter()
            .all(|change| after.apply(*change))
            .then_some(after)
    }

    /// The model after a change that failed and left its range as a hole.
    pub fn holed(&self, change: Change) -> Self {
        let (Map(start, count, _) | Replace(start, count, _) | Unmap(start, count)) = change;
        let mut after = self.clone();
        after.apply(Unmap(start, count));
        after
    }

    fn apply(&mut self, change: Change) -> bool {
        let (Map(start, count, _) | Replace(start, count, _) | Unmap(start, count)) = change;
        let pages = &mut self.0[start as usize..(start + count) as usize];
        let (into_hole, memory) = match change {
            Map(_, _, memory) => (true, Some(memory)),
            Replace(_, _, memory) => (false, Some(memory)),
            Unmap(..) => (false, None),
        };
        if into_hole && pages.iter().any(Option::is_some) {
            return false;
        }
        for (at, page) in (0..).zip(pages) {
            *page = memory.map(|memory| memory.byte(at));
        }
        true
    }
}

pub type Script = (&'static str, Vec<Step>);

pub fn scripts() -> [Script; 6] {
    [
        ("single changes", singles()),
        ("cuts", cuts()),
        ("batches", batches()),
        ("host memory", host_memory()),
        ("host memory in batches", host_memory_in_batches()),
        ("records and prefault", records_and_prefault()),
    ]
}

fn singles() -> Vec<Step> {
    let changes = [
        Map(0, 4, Peer),
        Map(6, 4, Sealed),
        Replace(2, 6, Peer),
        Unmap(1, 8),
        Replace(0, 12, Anonymous),
        Unmap(4, 2),
        Unmap(0, 32),
    ];
    changes.map(One).to_vec()
}

fn cuts() -> Vec<Step> {
    vec![
        One(Map(0, 20, Peer)),
        One(Unmap(5, 2)),
        One(Replace(8, 2, Sealed)),
        One(Replace(4, 8, Peer)),
        Relocate(8 << 30),
        One(Unmap(10, 4)),
        // Occupied: refused before any call.
        One(Map(4, 1, Peer)),
        InvalidateRoots,
        One(Unmap(0, 20)),
    ]
}

fn batches() -> Vec<Step> {
    vec![
        One(Map(0, 10, Peer)),
        Batch(vec![
            Unmap(2, 2),
            Replace(1, 4, Sealed),
            Map(20, 4, Anonymous),
            Replace(18, 4, Peer),
            Unmap(21, 1),
        ]),
        Batch(vec![Unmap(0, 32)]),
        Batch(vec![
            Map(0, 4, Peer),
            Map(4, 4, Sealed),
            Unmap(3, 2),
            Map(3, 1, Peer),
            Map(4, 1, Sealed),
        ]),
        Batch(vec![
            Replace(0, 32, Sealed),
            Replace(7, 2, Peer),
            Unmap(8, 8),
        ]),
        InvalidateRoots,
        Relocate(12 << 30),
        Batch(vec![Unmap(0, 1), Unmap(31, 1)]),
    ]
}

fn host_memory() -> Vec<Step> {
    vec![
        One(Map(0, 4, Private)),
        One(Map(4, 4, Peer)),
        One(Replace(2, 4, Private)),
        One(Unmap(3, 1)),
        One(Replace(0, 8, Shared)),
        One(Replace(6, 6, Private)),
        Relocate(8 << 30),
        One(Replace(7, 2, Sealed)),
        One(Unmap(0, 32)),
    ]
}

fn host_memory_in_batches() -> Vec<Step> {
    vec![
        One(Map(2, 6, Private)),
        Batch(vec![
            Replace(0, 4, Peer),
            Replace(3, 2, Private),
            Unmap(3, 1),
        ]),
        Batch(vec![
            Replace(0, 16, Private),
            Replace(4, 4, Sealed),
            Unmap(6, 4),
        ]),
        One(Map(24, 4, Shared)),
        Batch(vec![
            Replace(23, 3, Private),
            Replace(20, 8, Peer),
            Replace(22, 2, Private),
        ]),
        Batch(vec![Unmap(0, 32), Map(0, 2, Private)]),
        One(Unmap(0, 2)),
    ]
}

fn records_and_prefault() -> Vec<Step> {
    vec![
        One(Map(0, 6, Filled)),
        // Not empty: refused before any call.
        Replay(vec![(8, 1, Peer)]),
        One(Replace(2, 8, Filled)),
        Batch(vec![Replace(4, 4, Filled), Unmap(0, 12)]),
        Replay(vec![
            (0, 4, Peer),
            (4, 2, Filled),
            (9, 3, Shared),
            (20, 4, Anonymous),
        ]),
        One(Unmap(0, 32)),
    ]
}
