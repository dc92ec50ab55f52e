//! Owns the target of honest calls: whatever they are, window, arena and slots are at every step
//! what a table with one entry a page says. To add an operation: an `Op`, and what it does to the
//! `Model`.

use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use vm_remap::{
    BackendKind, Batch, Error, GuestAddress, LayoutRecord, OnPinned, OnWorkers, PAGE_SIZE,
    PageRange, Slot, SlotNumbers, StateAfter, Window, WindowOptions,
};

use crate::devices::Listening;
use crate::dirty::{Dirty, Round};
use crate::eyes::{is_mapped, peek, poke};
use crate::held::Held;
use crate::memories::{Memories, Memory, PAGES};
use crate::model::{Change, Entry, Model, Range, nothing};
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
    Pin(Range),
    Unpin(u8),
    /// The VMM writes a word through one of its pins.
    Write(u8, u64),
    Prepare(Vec<Change>),
    CommitPrepared(u8),
    DropPrepared(u8),
    Log(Round),
    /// A listener for DMA comes or goes.
    Listen,
}

struct Case {
    setting: Setting,
    memories: Memories,
    recorder: Arc<Recorder>,
    arena: Option<u64>,
    model: Model,
    dirty: Dirty,
    listening: Listening,
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
        .on_pinned(OnPinned::Refuse)
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
        dirty: Dirty::default(),
        listening: Listening::default(),
        refusing: false,
    };
    let mut held = Held::new(&window);
    let mut count = 0;
    while let Ok(op) = Op::arbitrary(&mut data)
        && !data.is_empty()
        && count < MOST_OPS
    {
        count += 1;
        if !case.step(&mut held, &op) {
            break;
        }
    }
    drop(held);
    let arena = case.arena;
    assert!(arena.is_none_or(|arena| is_mapped(arena, LEN)), "a gap");
    window.close().unwrap();
    assert_eq!(recorder.registered(), 0, "a slot outlives its window");
    assert!(case.listening.reaches_nothing(), "devices outlive it");
}

impl Case {
    /// One operation and what holds after it; whether the window can go on.
    fn step(&mut self, held: &mut Held<'_>, op: &Op) -> bool {
        let before = self.model.pages.clone();
        let mut after = self.model.clone();
        let Some((touched, result, legal)) = self.make(held, op, &mut after) else {
            self.keep(held, op);
            return true;
        };
        let pinned = held.is_pinned(touched.iter().copied());
        if let Err(error) = &result
            && pinned
            && legal
            && !self.refusing
        {
            assert!(matches!(error, Error::Pinned { .. }), "{op:?}: {error}");
        }
        let goes_on = self.judge(&result, legal && !pinned, after, op);
        if goes_on {
            let changed = touched.iter().flat_map(|range| {
                let (start, end) = (range.start() / PAGE_SIZE, range.end() / PAGE_SIZE);
                start..end
            });
            let there = |page: &u64| {
                let page = *page as usize;
                before[page].is_some() || self.model.pages[page].is_some()
            };
            let made = result.is_ok();
            self.dirty.note(changed.filter(|page| made && there(page)));
            self.look(held, op);
        }
        goes_on
    }

    /// Makes changes: what they touch, whether they were made, and whether they had to be, but for
    /// pins. `None` for all other operations.
    fn make(
        &mut self,
        held: &mut Held<'_>,
        op: &Op,
        after: &mut Model,
    ) -> Option<(Vec<PageRange>, Result<(), Error>, bool)> {
        let window = held.window;
        let private_works = self.setting.memslot || self.setting.fallback;
        let mut all = |changes: &[Change]| {
            let mut changes = changes.iter();
            changes.all(|change| after.apply(*change, private_works))
        };
        Some(match op {
            Op::One(change) => {
                let made = self.change(window, *change);
                (vec![change.parts().0], made, all(&[*change]))
            }
            Op::Batch(changes) => {
                let made = window.commit(&self.batch(changes));
                (ranges(changes), made, all(changes))
            }
            Op::CommitPrepared(which) => {
                let (prepared, changes) = held.take(*which)?;
                let made = window.commit_prepared(prepared);
                (ranges(&changes), made, all(&changes))
            }
            Op::Relocate(to) => {
                let made = window.relocate(GuestAddress(u64::from(*to) << 30));
                // A hole is one at the new address as well, and no log has to speak of it.
                let moved = |page: &u64| made.is_ok() && self.model.pages[*page as usize].is_some();
                self.dirty.note((0..PAGES).filter(moved));
                (Vec::new(), made, true)
            }
            Op::InvalidateRoots => {
                let made = window.invalidate_roots(OnWorkers::Allow).map(drop);
                (Vec::new(), made, true)
            }
            Op::Replay => {
                let record = window.record();
                let whole = PageRange::new(0, LEN).unwrap();
                let mut made = window.unmap(whole);
                if made.is_ok() {
                    let entries = std::mem::replace(&mut self.model.pages, nothing());
                    made = self.replay(window, &record, &entries, after);
                }
                (vec![whole], made, true)
            }
            _ => return None,
        })
    }

    /// Takes over what a call has made, or what it left; whether the window can go on.
    fn judge(&mut self, result: &Result<(), Error>, legal: bool, after: Model, op: &Op) -> bool {
        let Err(error) = result else {
            assert!(legal, "{op:?} was done");
            self.model = after;
            return true;
        };
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
                assert!(self.listening.reaches_nothing(), "poisoned, and reached");
                return false;
            }
        }
        true
    }

    /// What changes no memory of the window, or only a word.
    fn keep(&mut self, held: &mut Held<'_>, op: &Op) {
        match op {
            Op::Poke(page, word) => self.poke(held.window, u64::from(*page) % PAGES, *word),
            Op::RefuseSlot => {
                self.recorder.fail_next_register();
                self.refusing = true;
            }
            Op::Pin(range) => {
                let range = range.pages();
                let is_mapped = self.model.of(range).iter().all(Option::is_some);
                held.pin(range, is_mapped);
            }
            Op::Unpin(which) => held.unpin(*which),
            Op::Write(which, word) => self.write(held, *which, *word),
            Op::Prepare(changes) => {
                let private = |change: &Change| {
                    let mapped = change.parts().1;
                    mapped.is_some_and(|mapped| mapped.memory == Memory::Private)
                };
                let may_fail = !(self.setting.memslot || self.setting.fallback);
                let prepared = held.window.prepare(&self.batch(changes));
                match prepared {
                    Ok(prepared) => held.keep(prepared, changes),
                    Err(error) => {
                        let private = may_fail && changes.iter().any(private);
                        assert!(private, "{op:?}: {error}");
                    }
                }
            }
            Op::DropPrepared(which) => drop(held.take(*which)),
            Op::Log(round) => self.dirty.turn(*round, held.window, &self.recorder),
            Op::Listen => self.listening.switch(held.window),
            // A batch that was not there to be committed.
            _ => {}
        }
        self.look(held, op);
    }

    /// Writes a word through a pin, to its first page.
    fn write(&mut self, held: &Held<'_>, which: u8, word: u64) {
        let Some(which) = usize::from(which).checked_rem(held.pins.len()) else {
            return;
        };
        let pin = &held.pins[which];
        let page = pin.range().start() / PAGE_SIZE;
        let entry = self.model.pages[page as usize].unwrap();
        let written = pin.write(0, &word.to_ne_bytes());
        assert_eq!(written.is_ok(), entry.writable, "{written:?}: {entry:?}");
        if entry.writable {
            self.memories.set_word(entry.backing, word);
            self.dirty.note([page]);
        }
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

    fn batch(&self, changes: &[Change]) -> Batch<'_> {
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
        batch
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

    fn poke(&mut self, window: &Window, page: u64, word: u64) {
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
                    self.recorder.write(guest);
                    self.dirty.note([page]);
                }
            }
        }
    }

    /// Window, arena, slots, pins and devices are what the model says.
    fn look(&mut self, held: &Held<'_>, op: &Op) {
        let window = held.window;
        self.pins(held, op);
        self.listening.look(window);
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

impl Case {
    /// What is pinned is what it was, for the VMM as well.
    fn pins(&self, held: &Held<'_>, op: &Op) {
        for pin in &held.pins {
            let first = pin.range().start() / PAGE_SIZE;
            for at in 0..pin.range().len() / PAGE_SIZE {
                let entry = self.model.pages[(first + at) as usize].unwrap();
                let mut word = [0; 8];
                pin.read(at * PAGE_SIZE, &mut word).unwrap();
                let (found, known) = (u64::from_ne_bytes(word), self.memories.word(entry.backing));
                assert_eq!(found, known, "{op:?}: page {at} of {pin:?}");
            }
        }
        let pins = held.pins.len() as u64;
        assert_eq!(held.window.counters().pins, pins, "{op:?}");
    }
}

fn ranges(changes: &[Change]) -> Vec<PageRange> {
    changes.iter().map(|change| change.parts().0).collect()
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
