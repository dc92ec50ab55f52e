//! Owns one run of a script under one plan of trouble, and what must hold after each of its steps.
//! Never chooses either.

use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use vm_remap::{
    BackendKind, Error, GuestAddress, Origin, PAGE_SIZE, PageRange, Protection, Slot, SlotNumbers,
    Source, StateAfter, Window, WindowOptions,
};

use super::eyes::{give_back, is_mapped, peek, peek_pages};
use super::findings::Findings;
use super::memories::{Memories, pages};
use super::provider::{Flaky, Plan, Told};
use super::script::{Change, Memory, Model, PAGES, Step};

const BASE: GuestAddress = GuestAddress(4 << 30);
const SCRATCH: GuestAddress = GuestAddress(64 << 30);
const LEN: u64 = PAGES * PAGE_SIZE;

/// What goes wrong in a run, and what may come of it.
pub trait Trouble: Debug {
    /// Begins, when the window is open.
    fn begin(&self, provider: &Flaky);

    /// Whether nothing goes wrong.
    fn is_none(&self) -> bool;

    /// What is wrong with the error of a call, if anything.
    fn judge(&self, _: &Error) -> Option<&'static str> {
        None
    }

    /// Whether what went wrong so far lets a poisoned window have a gap.
    fn leaves_a_gap(&self) -> bool {
        false
    }

    /// Whether what went wrong so far lets `close` keep address space and succeed.
    fn keeps_address_space(&self) -> bool {
        false
    }

    /// What is wrong with a window that goes on after a step.
    fn inspect(&self, _: &Window) -> Option<&'static str> {
        None
    }

    /// What is wrong when the window is gone and its arena, should it be kept, still there.
    fn end(&self) -> Option<&'static str> {
        None
    }
}

impl Trouble for Plan {
    fn begin(&self, provider: &Flaky) {
        provider.follow(self);
    }

    fn is_none(&self) -> bool {
        self.is_empty()
    }
}

/// What is run, whatever the trouble.
#[derive(Debug)]
pub struct Setting {
    pub backend: BackendKind,
    pub numbers: u32,
    pub script: &'static str,
    pub steps: Vec<Step>,
}

/// The run and what is known of it, apart from the window itself.
struct Case<'a> {
    setting: &'a Setting,
    trouble: &'a dyn Trouble,
    memories: &'a Memories,
    findings: &'a mut Findings,
    provider: Arc<Flaky>,
    /// Host address of the window's first byte.
    arena: u64,
    model: Model,
    /// The last step, and what it returned.
    last: String,
    poisoned: bool,
    panicked: bool,
}

/// Runs the script to its end, or to where the window can only be closed, and closes it. Returns
/// how many calls the hypervisor was asked for.
pub fn run(
    setting: &Setting,
    memories: &Memories,
    trouble: &dyn Trouble,
    findings: &mut Findings,
) -> u64 {
    let provider = Arc::new(Flaky::default());
    let window = WindowOptions::new(BASE, LEN)
        .segment_size(LEN / 4)
        .backend(setting.backend)
        .fallback(true)
        .scratch_page(SCRATCH)
        .open(
            Arc::clone(&provider) as _,
            SlotNumbers::new(8..8 + setting.numbers),
        )
        .unwrap();
    let arena = arena(&window);
    trouble.begin(&provider);
    let mut case = Case {
        setting,
        trouble,
        memories,
        findings,
        provider,
        arena,
        model: Model::new(),
        last: String::new(),
        poisoned: false,
        panicked: false,
    };
    for step in &setting.steps {
        case.step(&window, step);
        if case.poisoned || case.panicked {
            case.refuses_everything(&window);
            break;
        }
    }
    case.close(window);
    case.provider.calls()
}

/// Where the window's memory lies, asked for with a page that is mapped for the purpose.
fn arena(window: &Window) -> u64 {
    let last = pages(PAGES - 1, 1);
    let anonymous = Source::anonymous();
    window.map(last, &anonymous, Protection::ReadWrite).unwrap();
    let found = window.lookup(GuestAddress(BASE.0 + last.start())).unwrap();
    window.unmap(last).unwrap();
    found.host_address - last.start()
}

fn books(window: &Window) -> (GuestAddress, Vec<(PageRange, Origin)>) {
    let mappings = window.mappings();
    let mappings = mappings.iter().map(|one| (one.range(), one.origin()));
    (window.base(), mappings.collect())
}

impl Case<'_> {
    fn note(&mut self, what: &'static str, detail: &str) {
        let (setting, trouble) = (self.setting, self.trouble);
        let (last, log) = (&self.last, self.provider.log());
        self.findings.note(what, || {
            format!(
                "{} with {} slot numbers, {}, {trouble:?}\n    {last}\n    {log}\n    {detail}",
                setting.backend, setting.numbers, setting.script,
            )
        });
    }

    fn step(&mut self, window: &Window, step: &Step) {
        self.provider.clear_log();
        let before = books(window);
        let memories = self.memories;
        let made = catch_unwind(AssertUnwindSafe(|| memories.carry_out(window, step)));
        match made {
            Err(payload) => {
                self.last = format!("{step:?}: panic");
                self.panicked = true;
                if !payload.is::<Told>() {
                    self.note("the library panics by itself", "");
                }
            }
            Ok(Ok(())) => {
                self.last = format!("{step:?}: done");
                match self.model.after(step) {
                    Some(after) => self.model = after,
                    None => self.note("a call succeeds that must be refused", ""),
                }
            }
            Ok(Err(error)) => {
                self.last = format!("{step:?}: {error}");
                self.failed(step, &error);
                if error.state_after() == StateAfter::Unchanged && books(window) != before {
                    self.note("a failure that changes nothing changes the books", "");
                }
            }
        }
        if !(is_mapped(self.arena, LEN) || self.poisoned && self.trouble.leaves_a_gap()) {
            self.note("the arena has a gap", "");
        }
        if self.panicked {
            return;
        }
        if self.poisoned {
            if self.provider.forgot_one() {
                self.note("poisoning leaves a slot that would have gone", "");
            }
            return;
        }
        if let Some(what) = self.trouble.inspect(window) {
            self.note(what, "");
        }
        self.guest(window);
        self.slots(window);
    }

    fn failed(&mut self, step: &Step, error: &Error) {
        let reason = self.model.after(step).is_none() || self.setting.numbers < PAGES as u32;
        if let Some(what) = self.trouble.judge(error).filter(|_| !reason) {
            self.note(what, "");
        }
        if self.trouble.is_none() && !reason {
            self.note("a call fails for no reason", "");
        }
        match (error.state_after(), step) {
            (StateAfter::Unchanged, _) => {}
            (StateAfter::Hole, Step::One(change)) => self.model = self.model.holed(*change),
            (StateAfter::Hole, _) => self.note("more than a single change leaves a hole", ""),
            _ => self.poisoned = true,
        }
    }

    /// What the guest reaches through the slots that live is what the calls promised.
    fn guest(&mut self, window: &Window) {
        let (base, live) = (window.base().0, self.provider.live());
        let arena = peek_pages(self.arena, PAGES);
        for (page, shown) in (0..PAGES).zip(arena) {
            let own = self.arena + page * PAGE_SIZE;
            let look = |address| if address == own { shown } else { peek(address) };
            let guest = base + page * PAGE_SIZE;
            let promised = self.model.page(page);
            let over = |slot: &&Slot| {
                (0..slot.len()).contains(&guest.wrapping_sub(slot.guest_address().0))
            };
            let reached = live
                .iter()
                .find(over)
                .map(|slot| slot.host_address() + guest - slot.guest_address().0);
            let sees = reached.and_then(look);
            let detail = || format!("page {page}: {sees:?}, promised {promised:?}");
            if sees != promised {
                self.note("the guest sees what no call promised", &detail());
            }
            let found = window.lookup(GuestAddress(guest));
            let found = found.map(|found| found.host_address);
            if found != reached && found.and_then(look) != promised {
                self.note("lookup finds what no call promised", &detail());
            }
            if found != Some(own) && shown.is_some() {
                self.note("old memory stays in a hole of the arena", &detail());
            }
        }
    }

    /// The slots that live are those that the window knows, and lie where they may.
    fn slots(&mut self, window: &Window) {
        let (base, live) = (window.base().0, self.provider.live());
        let counters = window.counters();
        let figures = format!("{counters:?}, {} slots live", live.len());
        let count = live.len() as u64;
        if (
            counters.slots,
            counters.slots_registered - counters.slots_unregistered,
        ) != (count, count)
        {
            self.note("the counters do not agree with the slots", &figures);
        }
        let mappings = window.mappings().len() as u64;
        if (counters.mappings, counters.mapped_bytes) != (mappings, self.model.mapped() * PAGE_SIZE)
        {
            self.note("the counters do not agree with the mappings", &figures);
        }
        for slot in &live {
            let guest = slot.guest_address().0;
            if guest < base || guest + slot.len() > base + LEN {
                self.note("a slot lies outside the window", &format!("{slot:?}"));
            }
            if !self.over_arena(slot) && !self.memories.hold(slot) {
                self.note(
                    "a slot lies over memory of somebody else",
                    &format!("{slot:?}"),
                );
            }
        }
    }

    fn over_arena(&self, slot: &Slot) -> bool {
        let (start, end) = (slot.host_address(), slot.host_address() + slot.len());
        self.arena <= start && end <= self.arena + LEN
    }

    /// After a failure that poisons, or a panic, nothing but `close` works.
    fn refuses_everything(&mut self, window: &Window) {
        let change = Change::Replace(0, 1, Memory::Sealed);
        let (unmap, map) = (Change::Unmap(0, 1), Change::Map(31, 1, Memory::Peer));
        let calls = self.provider.calls();
        for step in [
            Step::One(change),
            Step::One(unmap),
            Step::One(map),
            Step::Batch(vec![change, unmap]),
            Step::Relocate(20 << 30),
            Step::InvalidateRoots,
        ] {
            let memories = self.memories;
            let made = catch_unwind(AssertUnwindSafe(|| memories.carry_out(window, &step)));
            // What fails before the window is asked has not changed it either.
            if !matches!(made, Ok(Err(Error::Poisoned | Error::Stage { .. }))) {
                self.note("a poisoned window goes on", &format!("{step:?}: {made:?}"));
            }
        }
        if self.provider.calls() != calls {
            self.note("a poisoned window calls the hypervisor", "");
        }
    }

    fn close(&mut self, window: Window) {
        self.provider.clear_log();
        let closed = catch_unwind(AssertUnwindSafe(|| window.close()));
        self.last = format!("{}; closed: {:?}", self.last, closed.as_ref().ok());
        let live = self.provider.live();
        let given_back = !is_mapped(self.arena, LEN) && !self.trouble.leaves_a_gap();
        if given_back && live.iter().any(|slot| !self.memories.hold(slot)) {
            self.note(
                "a slot lives over memory that was given back",
                &format!("{live:?}"),
            );
        }
        match closed {
            Ok(Ok(())) if !live.is_empty() => self.note("close succeeds and slots live", ""),
            Ok(Ok(()))
                if !(given_back
                    || self.poisoned
                    || self.panicked
                    || self.trouble.keeps_address_space()) =>
            {
                self.note("close succeeds and keeps the arena", "");
            }
            Ok(Err(_)) if live.is_empty() => self.note("close fails and no slot lives", ""),
            Ok(_) if self.provider.forgot_one() => {
                self.note("close leaves a slot that would have gone", "");
            }
            Err(payload) => {
                self.panicked = true;
                if !payload.is::<Told>() {
                    self.note("the library panics by itself", "");
                }
            }
            Ok(_) => {}
        }
        // After a panic the window takes the slot for registered, which can be wrong.
        if let Some(misuse) = self.provider.misuse().filter(|_| !self.panicked) {
            self.note("the hypervisor is asked for what cannot be", &misuse);
        }
        if let Some(what) = self.trouble.end() {
            self.note(what, "");
        }
        if !given_back {
            give_back(self.arena, LEN);
        }
    }
}
