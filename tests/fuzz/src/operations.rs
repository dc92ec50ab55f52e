//! Owns the target of honest calls: whatever they are, window, arena and slots are at every step
//! what a table with one entry a page says. To add an operation: an [`Op`], and what it does to the
//! [`Model`].

use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use vm_remap::{
    BackendKind, Batch, Error, GuestAddress, LayoutRecord, OnWorkers, PAGE_SIZE, PageRange,
    Prefault, Protection, Slot, SlotNumbers, StateAfter, Window, WindowOptions,
};

use crate::eyes::{is_mapped, peek, poke};
use crate::memories::{Backing, Memories, Memory, PAGES};
use crate::recorder::Recorder;

const BASE: u64 = 4 << 30;
const LEN: u64 = PAGES * PAGE_SIZE;
/// More would only take longer to say the same.
const MOST_OPS: usize = 48;

/// How the window is opened.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Setting {
    memslot: bool,
    fallback: bool,
    segment: u8,
    skew: u8,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Range {
    start: u8,
    pages: u8,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Mapped {
    memory: Memory,
    from: u8,
    read_only: bool,
    prefault: u8,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Change {
    Map(Range, Mapped),
    Replace(Range, Mapped),
    Unmap(Range),
}

#[derive(Arbitrary, Clone, Debug)]
enum Op {
    One(Change),
    Batch(Vec<Change>),
    Relocate(u8),
    InvalidateRoots,
    /// Everything is unmapped, and comes back from the record.
    Replay,
    /// The guest writes a word.
    Poke(u8, u64),
    /// The next slot that is registered is refused.
    RefuseSlot,
}

impl Range {
    /// It always lies in the window: other figures are the business of the target `requests`.
    fn pages(self) -> PageRange {
        let start = u64::from(self.start) % PAGES;
        let count = 1 + u64::from(self.pages) % (PAGES - start);
        PageRange::new(start * PAGE_SIZE, count * PAGE_SIZE).unwrap()
    }
}

impl Mapped {
    fn first_page(self, range: PageRange) -> u64 {
        let count = range.len() / PAGE_SIZE;
        u64::from(self.from) % (PAGES - count + 1)
    }

    fn protection(self) -> Protection {
        match self.read_only {
            true => Protection::ReadOnly,
            false => Protection::ReadWrite,
        }
    }

    fn prefault(self) -> Prefault {
        match self.prefault % 8 {
            0 => Prefault::HostRead,
            1 => Prefault::HostWrite,
            2 => Prefault::Guest,
            _ => Prefault::None,
        }
    }
}

impl Change {
    fn parts(self) -> (PageRange, Option<Mapped>, bool) {
        match self {
            Self::Map(range, mapped) => (range.pages(), Some(mapped), true),
            Self::Replace(range, mapped) => (range.pages(), Some(mapped), false),
            Self::Unmap(range) => (range.pages(), None, false),
        }
    }
}

/// What is behind a page of the window.
#[derive(Clone, Copy, Debug)]
struct Entry {
    backing: Backing,
    writable: bool,
}

#[derive(Clone)]
struct Model {
    pages: Vec<Option<Entry>>,
    /// Mappings of anonymous memory so far.
    instances: u64,
}

impl Model {
    fn of(&mut self, range: PageRange) -> &mut [Option<Entry>] {
        let (start, end) = (range.start() / PAGE_SIZE, range.end() / PAGE_SIZE);
        &mut self.pages[start as usize..end as usize]
    }

    /// Makes a change, or says that it must be refused.
    fn apply(&mut self, change: Change, private_works: bool) -> bool {
        let (range, mapped, into_hole) = change.parts();
        if into_hole && self.of(range).iter().any(Option::is_some) {
            return false;
        }
        if mapped.is_some_and(|mapped| mapped.memory == Memory::Private) && !private_works {
            return false;
        }
        self.instances += 1;
        let instance = self.instances;
        for (at, page) in (0..).zip(self.of(range)) {
            *page = mapped.map(|mapped| Entry {
                backing: Backing {
                    memory: mapped.memory,
                    instance: match mapped.memory {
                        Memory::Anonymous => instance,
                        _ => 0,
                    },
                    page: mapped.first_page(range) + at,
                },
                writable: !mapped.read_only,
            });
        }
        true
    }
}

struct Case {
    setting: Setting,
    memories: Memories,
    recorder: Arc<Recorder>,
    arena: Option<u64>,
    model: Model,
    /// A slot call may fail, so that a call may.
    refusing: bool,
}

/// Runs what the bytes say.
pub fn run(data: &[u8]) {
    let mut data = Unstructured::new(data);
    let Ok(setting) = Setting::arbitrary(&mut data) else {
        return;
    };
    let recorder = Arc::new(Recorder::default());
    let skew = u64::from(setting.skew % 8) * PAGE_SIZE;
    let window = WindowOptions::new(GuestAddress(BASE + skew), LEN)
        .segment_size((4 + u64::from(setting.segment) % PAGES) * PAGE_SIZE)
        .backend(BackendKind::ALL[usize::from(setting.memslot)])
        .fallback(setting.fallback)
        .scratch_page(GuestAddress(1 << 40))
        .open(Arc::clone(&recorder) as _, SlotNumbers::new(8..520))
        .unwrap();
    let pages = nothing();
    let mut case = Case {
        setting,
        memories: Memories::new(),
        recorder: Arc::clone(&recorder),
        arena: None,
        model: Model {
            pages,
            instances: 0,
        },
        refusing: false,
    };
    let mut count = 0;
    while let Ok(op) = Op::arbitrary(&mut data)
        && !data.is_empty()
        && count < MOST_OPS
    {
        count += 1;
        if !case.step(&window, &op) {
            break;
        }
    }
    let arena = case.arena;
    assert!(arena.is_none_or(|arena| is_mapped(arena, LEN)), "a gap");
    window.close().unwrap();
    assert_eq!(recorder.registered(), 0, "a slot outlives its window");
}

impl Case {
    /// One operation and what holds after it; whether the window can go on.
    fn step(&mut self, window: &Window, op: &Op) -> bool {
        let mut after = self.model.clone();
        let private_works = self.setting.memslot || self.setting.fallback;
        let (result, legal) = match op {
            Op::One(change) => (
                self.change(window, *change),
                after.apply(*change, private_works),
            ),
            Op::Batch(changes) => {
                let all = |change: &Change| after.apply(*change, private_works);
                (self.batch(window, changes), changes.iter().all(all))
            }
            Op::Relocate(to) => (window.relocate(GuestAddress(u64::from(*to) << 30)), true),
            Op::InvalidateRoots => (window.invalidate_roots(OnWorkers::Allow).map(drop), true),
            Op::Replay => {
                let record = window.record();
                let emptied = window.unmap(PageRange::new(0, LEN).unwrap());
                if emptied.is_ok() {
                    let entries = std::mem::replace(&mut self.model.pages, nothing());
                    (self.replay(window, &record, &entries, &mut after), true)
                } else {
                    (emptied, true)
                }
            }
            Op::Poke(page, word) => return self.poke(window, u64::from(*page) % PAGES, *word),
            Op::RefuseSlot => {
                self.recorder.fail_next_register();
                self.refusing = true;
                return true;
            }
        };
        match &result {
            Ok(()) => {
                assert!(legal, "{op:?} was done");
                self.model = after;
            }
            Err(error) => {
                assert!(!legal || self.refusing, "{op:?}: {error}");
                let arena = self.arena;
                assert!(
                    arena.is_none_or(|arena| is_mapped(arena, LEN)),
                    "{op:?}: a gap"
                );
                match (error.state_after(), op) {
                    (StateAfter::Unchanged, _) => {}
                    (StateAfter::Hole, Op::One(change)) => {
                        self.model.of(change.parts().0).fill(None);
                    }
                    (state, _) => {
                        assert!(
                            self.refusing && state == StateAfter::Poisoned,
                            "{op:?} {error}"
                        );
                        assert!(self.recorder.live().is_empty(), "poisoned, and still there");
                        return false;
                    }
                }
            }
        }
        self.look(window, op);
        true
    }

    fn change(&self, window: &Window, change: Change) -> Result<(), Error> {
        let (range, mapped, into_hole) = change.parts();
        let Some(mapped) = mapped else {
            return window.unmap(range);
        };
        let source = self
            .memories
            .source(mapped.memory, mapped.first_page(range));
        let source = source
            .label(mapped.memory as u64)
            .prefault(mapped.prefault());
        match into_hole {
            true => window.map(range, &source, mapped.protection()),
            false => window.replace(range, &source, mapped.protection()),
        }
    }

    fn batch(&self, window: &Window, changes: &[Change]) -> Result<(), Error> {
        let mut batch = Batch::new();
        for change in changes {
            let (range, mapped, into_hole) = change.parts();
            batch = match mapped {
                None => batch.unmap(range),
                Some(mapped) => {
                    let source = self
                        .memories
                        .source(mapped.memory, mapped.first_page(range));
                    let source = source.label(mapped.memory as u64);
                    let source = source.prefault(mapped.prefault());
                    match into_hole {
                        true => batch.map(range, &source, mapped.protection()),
                        false => batch.replace(range, &source, mapped.protection()),
                    }
                }
            };
        }
        window.commit(&batch)
    }

    /// Maps again what was there before the window was emptied.
    fn replay(
        &self,
        window: &Window,
        record: &LayoutRecord,
        entries: &[Option<Entry>],
        after: &mut Model,
    ) -> Result<(), Error> {
        for mapping in &record.mappings {
            // Anonymous memory comes back empty.
            after.instances += 1;
            let range = PageRange::new(mapping.offset, mapping.len)?;
            let instance = after.instances;
            for entry in after.of(range).iter_mut().flatten() {
                if entry.backing.memory == Memory::Anonymous {
                    entry.backing.instance = instance;
                }
            }
        }
        window.replay(record, |mapping| {
            let entry = entries[(mapping.offset / PAGE_SIZE) as usize].unwrap();
            Ok(self
                .memories
                .source(entry.backing.memory, entry.backing.page))
        })
    }

    fn poke(&mut self, window: &Window, page: u64, word: u64) -> bool {
        let guest = GuestAddress(window.base().0 + page * PAGE_SIZE);
        let entry = self.model.pages[page as usize];
        let found = window.lookup(guest);
        assert_eq!(found.is_some(), entry.is_some());
        if let (Some(found), Some(entry)) = (found, entry) {
            // Over memory in place the protection is the slot's.
            let in_place = entry.backing.memory == Memory::Private;
            let in_place =
                in_place || self.setting.memslot && entry.backing.memory == Memory::Shared;
            if !in_place || entry.writable {
                let written = poke(found.host_address, word);
                assert_eq!(written, entry.writable, "page {page}: {entry:?}");
                if written {
                    self.memories.set_word(entry.backing, word);
                }
            }
        }
        self.look(window, &Op::Poke(0, word));
        true
    }

    /// Window, arena and slots are what the model says.
    fn look(&mut self, window: &Window, op: &Op) {
        let (base, live) = (window.base().0, self.recorder.live());
        let mut mapped = 0;
        for page in 0..PAGES {
            let (entry, guest) = (self.model.pages[page as usize], base + page * PAGE_SIZE);
            let expected = entry.map(|entry| self.memories.word(entry.backing));
            mapped += u64::from(entry.is_some());
            let sees = reached(&live, guest).and_then(peek);
            assert_eq!(
                sees, expected,
                "{op:?}: the guest at page {page}: {entry:?}"
            );
            let found = window.lookup(GuestAddress(guest));
            let found = found.map(|found| found.host_address);
            // A hole has a slot over it, and no lookup finds it.
            let same = found.is_none() || found == reached(&live, guest);
            let looked_up = if same { expected } else { found.and_then(peek) };
            assert_eq!(looked_up, expected, "{op:?}: lookup of page {page}");
            assert_eq!(found.is_some(), entry.is_some(), "{op:?}: lookup of {page}");
            let in_arena = found.filter(|_| entry.is_some_and(|entry| !host(entry.backing.memory)));
            let arena = in_arena.map(|address| address - page * PAGE_SIZE);
            assert!(self.arena.is_none() || arena.is_none() || arena == self.arena);
            self.arena = self.arena.or(arena);
        }
        let counters = window.counters();
        assert_eq!(counters.mapped_bytes, mapped * PAGE_SIZE, "{op:?}");
        assert_eq!(counters.slots, live.len() as u64, "{op:?}");
    }
}

fn nothing() -> Vec<Option<Entry>> {
    vec![None; PAGES as usize]
}

const fn host(memory: Memory) -> bool {
    matches!(memory, Memory::Shared | Memory::Private)
}

/// The host address that the guest reaches at a guest address.
fn reached(live: &[Slot], guest: u64) -> Option<u64> {
    let into = |slot: &Slot| guest.wrapping_sub(slot.guest_address().0);
    let mut over = live.iter().filter(|slot| into(slot) < slot.len());
    let reached = over.next().map(|slot| slot.host_address() + into(slot));
    assert!(over.next().is_none(), "two slots at {guest:#x}");
    reached
}
