//! Owns the tests of dirty logging over real memory: what a change marks, what the loss of a slot
//! marks, and that the window's log and the hypervisor's together miss nothing.

use std::collections::BTreeMap;

use proptest::prelude::*;
use vm_remap::BackendKind::{self, Fixed, Memslot};
use vm_remap::Protection::{ReadOnly, ReadWrite};
use vm_remap::{
    Batch, Error, GuestAddress, PageRange, SlotDirtyLog, Source, StateAfter, WindowOptions,
};

use crate::support::*;

/// The pages of the window that a log names.
fn dirty(bench: &Bench, logs: &[SlotDirtyLog]) -> Vec<u64> {
    let page = |address: GuestAddress| (address.0 - bench.window.base().0) / PAGE;
    logs.iter()
        .flat_map(SlotDirtyLog::addresses)
        .map(page)
        .collect()
}

fn take(bench: &Bench) -> Vec<u64> {
    dirty(bench, &bench.window.take_dirty_log().unwrap())
}

fn take_both(bench: &Bench) -> Vec<u64> {
    let fetch = |slot: &vm_remap::Slot| Ok(bench.recorder.dirty_log(slot));
    dirty(bench, &bench.window.take_dirty_log_with(fetch).unwrap())
}

fn at(page: u64) -> GuestAddress {
    GuestAddress(BASE.0 + page * PAGE)
}

fn map(bench: &Bench, range: PageRange) {
    let anonymous = Source::anonymous();
    bench.window.map(range, &anonymous, ReadWrite).unwrap();
}

#[test]
fn each_change_marks_its_pages_and_no_others() {
    let bench = open(Fixed);
    map(&bench, pages(0, 8));
    bench.window.start_dirty_log().unwrap();
    assert!(take(&bench).is_empty());
    map(&bench, pages(10, 3));
    let replaced = bench
        .window
        .replace(pages(2, 2), &Source::anonymous(), ReadOnly);
    replaced.unwrap();
    bench.window.unmap(pages(6, 1)).unwrap();
    bench.window.mark_dirty(pages(0, 1));
    assert_eq!(take(&bench), [0, 2, 3, 6, 10, 11, 12]);
    assert!(take(&bench).is_empty());
    let batch = Batch::new()
        .unmap(pages(11, 1))
        .map(pages(14, 4), &Source::anonymous(), ReadWrite);
    bench.window.commit(&batch).unwrap();
    // The last two pages lie under a slot of their own, which came with them.
    assert_eq!(take(&bench), [11, 14, 15, 16, 17]);
}

#[test]
fn logs_line_up_with_the_slots() {
    let bench = open(Fixed);
    map(&bench, pages(15, 2));
    bench.window.start_dirty_log().unwrap();
    map(&bench, pages(32, 1));
    let logs = bench.window.take_dirty_log().unwrap();
    let slots: Vec<_> = logs.iter().map(|log| log.slot).collect();
    assert_eq!(slots, bench.window.slots());
    assert_eq!(slots, bench.recorder.live());
    assert!(slots.iter().all(vm_remap::Slot::logs_dirty_pages));
    assert!(logs.iter().all(|log| log.bitmap.len() == 1));
    assert_eq!(logs[2].bitmap, [1]);
    bench.window.stop_dirty_log().unwrap();
    let live = bench.recorder.live();
    assert_eq!(live, bench.window.slots());
    assert!(!live.iter().any(vm_remap::Slot::logs_dirty_pages));
    map(&bench, pages(48, 1));
    let last = bench.recorder.live().pop().unwrap();
    assert!(!last.logs_dirty_pages());
}

#[test]
fn calls_out_of_turn_are_refused() {
    let bench = open(Fixed);
    bench.window.mark_dirty(pages(0, 1000));
    let off = |result: Result<(), Error>| {
        assert!(matches!(result, Err(Error::DirtyLogOff)), "{result:?}");
    };
    off(bench.window.take_dirty_log().map(|_| ()));
    off(bench.window.stop_dirty_log());
    bench.window.start_dirty_log().unwrap();
    let twice = bench.window.start_dirty_log();
    assert!(matches!(twice, Err(Error::DirtyLogOn)));
    bench.window.mark_dirty(pages(0, 1000));
    bench.window.stop_dirty_log().unwrap();
    off(bench.window.stop_dirty_log());

    let bench = open(Fixed);
    bench.recorder.log_nothing();
    let refused = bench.window.start_dirty_log();
    assert!(matches!(refused, Err(Error::DirtyLogUnsupported)));
}

#[test]
fn a_start_that_fails_switches_no_slot() {
    let bench = open(Fixed);
    map(&bench, pages(0, 48));
    bench.recorder.fail_log_of(Some(at(32)));
    let error = bench.window.start_dirty_log().unwrap_err();
    assert!(
        matches!(error, Error::DirtyLogSwitch { on: true, .. }),
        "{error}"
    );
    let logging = || {
        let live = bench.recorder.live();
        assert_eq!(live, bench.window.slots());
        live.iter().filter(|slot| slot.logs_dirty_pages()).count()
    };
    assert_eq!(logging(), 0);
    let off = bench.window.take_dirty_log();
    assert!(matches!(off, Err(Error::DirtyLogOff)));
    bench.recorder.fail_log_of(None);
    bench.window.start_dirty_log().unwrap();
    assert_eq!(logging(), 3);

    // A stop that fails stops what it can, and can be made again.
    bench.recorder.fail_log_of(Some(at(16)));
    let error = bench.window.stop_dirty_log().unwrap_err();
    assert!(
        matches!(error, Error::DirtyLogSwitch { on: false, .. }),
        "{error}"
    );
    assert_eq!(logging(), 1);
    bench.recorder.fail_log_of(None);
    bench.window.stop_dirty_log().unwrap();
    assert_eq!(logging(), 0);
}

#[test]
fn a_slot_that_is_made_again_begins_dirty() {
    let bench = open(Memslot);
    map(&bench, pages(0, 8));
    map(&bench, pages(20, 2));
    bench.window.start_dirty_log().unwrap();
    bench.recorder.write(at(7));
    bench.window.unmap(pages(2, 1)).unwrap();
    // The hypervisor's log went with the slot; what was page 2 lies under none.
    assert_eq!(take_both(&bench), [0, 1, 3, 4, 5, 6, 7]);
    bench.recorder.write(at(7));
    assert_eq!(take_both(&bench), [7]);

    let bench = open(Fixed);
    map(&bench, pages(0, 2));
    bench.window.start_dirty_log().unwrap();
    bench.window.relocate(GuestAddress(8 << 30)).unwrap();
    assert_eq!(take_both(&bench), (0..16).collect::<Vec<_>>());
    assert!(take_both(&bench).is_empty());
    map(&bench, pages(20, 1));
    assert_eq!(take_both(&bench), [20]);
}

#[test]
fn a_change_that_fails_marks_what_it_may_have_touched() {
    let bench = open(Memslot);
    map(&bench, pages(0, 4));
    bench.window.start_dirty_log().unwrap();
    bench.recorder.fail_next_register();
    let source = Source::anonymous();
    let error = bench.window.replace(pages(0, 4), &source, ReadWrite);
    assert_eq!(error.unwrap_err().state_after(), StateAfter::Hole);
    assert_eq!(bench.window.slots(), []);
    map(&bench, pages(0, 4));
    assert_eq!(take(&bench), [0, 1, 2, 3]);

    bench.recorder.fail_next_register();
    let batch = Batch::new().replace(pages(1, 2), &source, ReadWrite);
    let error = bench.window.commit(&batch).unwrap_err();
    assert_eq!(error.state_after(), StateAfter::Unchanged);
    assert_eq!(take(&bench), [0, 1, 2, 3]);

    // What fails before memory changes marks nothing.
    bench
        .window
        .map(pages(1, 1), &source, ReadWrite)
        .unwrap_err();
    assert!(take(&bench).is_empty());
}

#[test]
fn bits_that_were_fetched_survive_a_fetch_that_fails() {
    let bench = open(Fixed);
    map(&bench, pages(0, 32));
    bench.window.start_dirty_log().unwrap();
    for page in [3, 20] {
        bench.recorder.write(at(page));
    }
    let error = bench.window.take_dirty_log_with(|slot| {
        let words = bench.recorder.dirty_log(slot);
        let short = slot.guest_address() == at(16);
        if short { Ok(vec![]) } else { Ok(words) }
    });
    let error = error.unwrap_err();
    assert!(
        matches!(error, Error::DirtyLogFetch { number: 9, .. }),
        "{error}"
    );
    bench.recorder.write(at(20));
    assert_eq!(take_both(&bench), [3, 20]);
}

#[derive(Clone, Debug)]
enum Step {
    Map(PageRange),
    Replace(PageRange),
    Unmap(PageRange),
    Batch(Vec<(PageRange, bool)>),
    FailNext,
    Relocate(bool),
    Write(u64),
    HostWrite(u64),
    Take,
}

fn step() -> impl Strategy<Value = Step> {
    let range =
        || (0..60_u64, 1..=20_u64).prop_map(|(start, count)| pages(start, count.min(64 - start)));
    let change = (range(), any::<bool>());
    prop_oneof![
        3 => range().prop_map(Step::Map),
        3 => range().prop_map(Step::Replace),
        2 => range().prop_map(Step::Unmap),
        2 => proptest::collection::vec(change, 1..4).prop_map(Step::Batch),
        1 => Just(Step::FailNext),
        1 => any::<bool>().prop_map(Step::Relocate),
        6 => (0..64_u64).prop_map(Step::Write),
        2 => (0..64_u64).prop_map(Step::HostWrite),
        2 => Just(Step::Take),
    ]
}

/// What a page holds: the mapping that it is of, and how often it was written to since.
type Content = (u64, u64);

/// A window, what its pages hold, and a copy that sees only what the logs name.
struct Migration {
    bench: Bench,
    label: u64,
    writes: BTreeMap<(u64, u64), u64>,
    copy: BTreeMap<u64, Content>,
}

impl Migration {
    fn content(&self, page: u64) -> Option<Content> {
        let address = self.bench.window.base().checked_add(page * PAGE).unwrap();
        let label = self.bench.window.lookup(address)?.mapping.label();
        Some((label, self.writes.get(&(label, page)).copied().unwrap_or(0)))
    }

    fn copy(&mut self, dirty: impl IntoIterator<Item = u64>) {
        for page in dirty {
            match self.content(page) {
                Some(content) => self.copy.insert(page, content),
                None => self.copy.remove(&page),
            };
        }
    }

    fn source(&mut self) -> Source<'static> {
        self.label += 1;
        Source::anonymous().label(self.label)
    }

    /// Changes may fail; what they leave behind is looked up in the window.
    fn make(&mut self, step: Step) {
        let (first, second) = (self.source(), self.source());
        let window = &self.bench.window;
        let made = match step {
            Step::Map(range) => window.map(range, &first, ReadWrite),
            Step::Replace(range) => window.replace(range, &first, ReadWrite),
            Step::Unmap(range) => window.unmap(range),
            Step::Batch(changes) => {
                let batch = changes.into_iter().zip([first, second, first]);
                let batch = batch.fold(Batch::new(), |batch, ((range, map), source)| match map {
                    true => batch.replace(range, &source, ReadWrite),
                    false => batch.unmap(range),
                });
                window.commit(&batch)
            }
            Step::FailNext => {
                self.bench.recorder.fail_next_register();
                Ok(())
            }
            Step::Relocate(there) => window.relocate(GuestAddress(if there { 8 } else { 4 } << 30)),
            Step::Write(page) | Step::HostWrite(page) => {
                let Some((label, writes)) = self.content(page) else {
                    return;
                };
                self.writes.insert((label, page), writes + 1);
                if matches!(step, Step::Write(_)) {
                    let address = window.base().checked_add(page * PAGE).unwrap();
                    self.bench.recorder.write(address);
                } else {
                    window.mark_dirty(pages(page, 1));
                }
                Ok(())
            }
            Step::Take => {
                let dirty = take_both(&self.bench);
                self.copy(dirty);
                Ok(())
            }
        };
        if let Err(error) = made {
            assert_ne!(error.state_after(), StateAfter::Poisoned, "{error}");
        }
    }
}

fn migrate(backend: BackendKind, before: Vec<Step>, during: Vec<Step>) {
    // A slot for each mapping there can be.
    let options = WindowOptions::new(BASE, 64 * PAGE)
        .segment_size(16 * PAGE)
        .backend(backend);
    let recorder = std::sync::Arc::new(crate::recorder::Recorder::default());
    let numbers = vm_remap::SlotNumbers::new(8..200);
    let window = options
        .open(std::sync::Arc::clone(&recorder) as _, numbers)
        .unwrap();
    let mut migration = Migration {
        bench: Bench { window, recorder },
        label: 0,
        writes: BTreeMap::new(),
        copy: BTreeMap::new(),
    };
    for step in before {
        if !matches!(step, Step::Take) {
            migration.make(step);
        }
    }
    migration.bench.window.start_dirty_log().unwrap();
    migration.copy(0..64);
    for step in during {
        migration.make(step);
    }
    migration.make(Step::Take);
    for page in 0..64 {
        let content = migration.content(page);
        // What the record does not list is a hole, whatever the copy has there.
        if content.is_some() || backend == Fixed {
            assert_eq!(migration.copy.get(&page).copied(), content, "page {page}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(150) })]

    #[test]
    fn a_copy_of_dirty_pages_misses_nothing(
        fixed in any::<bool>(),
        before in proptest::collection::vec(step(), 0..8),
        during in proptest::collection::vec(step(), 0..40),
    ) {
        migrate(if fixed { Fixed } else { Memslot }, before, during);
    }
}
