//! Owns one run of a script under one plan of faults, with two listeners that come and go, and
//! what must hold after each of its steps. Never chooses either.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use vm_remap::Protection::ReadWrite;
use vm_remap::{
    BackendKind, DmaListenerId, Error, GuestAddress, PAGE_SIZE, SlotNumbers, Source, StateAfter,
    Window, WindowOptions,
};

use crate::eyes::{give_back, peek, peek_pages};
use crate::findings::Findings;
use crate::host::{Host, Listener, Plan, Told, look};
use crate::memories::{Memories, pages};
use crate::script::{Model, PAGES, Step};

const BASE: GuestAddress = GuestAddress(4 << 30);
const SCRATCH: GuestAddress = GuestAddress(100 << 30);
const LEN: u64 = PAGES * PAGE_SIZE;

/// What is done to the window: a step of the script, or a listener that comes or goes.
#[derive(Debug)]
enum Act<'a> {
    Step(&'a Step),
    Add(usize),
    Remove(usize),
}

struct Case<'a> {
    name: String,
    memories: &'a Memories,
    findings: &'a mut Findings,
    host: Arc<Host>,
    /// Host address of the window's first byte.
    arena: u64,
    model: Model,
    listeners: [Option<DmaListenerId>; 2],
    last: String,
    poisoned: bool,
    panicked: bool,
}

/// Runs the script to its end, or to where the window can only be closed, and closes it. Returns
/// how many calls were made.
pub fn run(
    backend: BackendKind,
    script: &str,
    steps: &[Step],
    memories: &Memories,
    plan: &Plan,
    findings: &mut Findings,
) -> u64 {
    let host = Arc::new(Host::default());
    let window = WindowOptions::new(BASE, LEN)
        .segment_size(LEN / 4)
        .backend(backend)
        .fallback(true)
        .scratch_page(SCRATCH)
        .open(Arc::clone(&host) as _, SlotNumbers::new(8..72))
        .unwrap();
    let arena = arena(&window);
    host.follow(plan);
    let mut case = Case {
        name: format!("{backend}, {script}, {plan:?}"),
        memories,
        findings,
        host,
        arena,
        model: Model::new(),
        listeners: [None; 2],
        last: String::new(),
        poisoned: false,
        panicked: false,
    };
    let mut acts: Vec<Act<'_>> = steps.iter().map(Act::Step).collect();
    acts.insert(0, Act::Add(0));
    acts.insert(2, Act::Add(1));
    acts.insert(acts.len() - 1, Act::Remove(0));
    for act in &acts {
        case.act(&window, act);
        if case.poisoned || case.panicked {
            break;
        }
    }
    case.close(window);
    case.host.calls()
}

/// Where the window's memory lies, asked for with a page that is mapped for the purpose.
fn arena(window: &Window) -> u64 {
    let last = pages(PAGES - 1, 1);
    window.map(last, &Source::anonymous(), ReadWrite).unwrap();
    let found = window.lookup(GuestAddress(BASE.0 + last.start())).unwrap();
    window.unmap(last).unwrap();
    found.host_address - last.start()
}

impl Case<'_> {
    fn note(&mut self, what: &'static str, detail: &str) {
        let (name, last, log) = (&self.name, &self.last, self.host.log());
        self.findings.note(what, || {
            format!("{name}\n    {last}\n    {log:?}\n    {detail}")
        });
    }

    fn carry_out(&mut self, window: &Window, act: &Act<'_>) -> Result<(), Error> {
        match *act {
            Act::Step(step) => self.memories.carry_out(window, step),
            Act::Add(number) => {
                let host = Arc::clone(&self.host);
                let id = window.add_dma_listener(Arc::new(Listener { number, host }))?;
                self.listeners[number] = Some(id);
                Ok(())
            }
            Act::Remove(number) => {
                let Some(id) = self.listeners[number] else {
                    return Ok(());
                };
                assert!(window.remove_dma_listener(id)?, "it was there");
                self.listeners[number] = None;
                Ok(())
            }
        }
    }

    fn act(&mut self, window: &Window, act: &Act<'_>) {
        self.host.clear_log();
        let made = catch_unwind(AssertUnwindSafe(|| self.carry_out(window, act)));
        match made {
            Err(payload) => {
                self.last = format!("{act:?}: panic");
                self.panicked = true;
                if !payload.is::<Told>() {
                    self.note("the library panics by itself", "");
                }
            }
            Ok(Ok(())) => {
                self.last = format!("{act:?}: done");
                if let Act::Step(step) = act {
                    match self.model.after(step) {
                        Some(after) => self.model = after,
                        None => self.note("a call succeeds that must be refused", ""),
                    }
                }
            }
            Ok(Err(error)) => {
                self.last = format!("{act:?}: {error}");
                match (error.state_after(), act) {
                    (StateAfter::Unchanged, _) => {}
                    (StateAfter::Hole, Act::Step(Step::One(change))) => {
                        self.model = self.model.holed(*change);
                    }
                    (StateAfter::Hole, _) => {
                        self.note("more than a single change leaves a hole", "");
                    }
                    _ => self.poisoned = true,
                }
            }
        }
        self.nothing_changes_under_a_device();
        if self.poisoned && !self.panicked && self.host.forgot_one() {
            self.note(
                "poisoning leaves memory to devices that would have gone",
                "",
            );
        }
        if !self.poisoned && !self.panicked {
            self.devices(window);
            self.guest(window);
        }
    }

    /// Every listener has exactly what the layout has, with the bytes that the calls promised.
    fn devices(&mut self, window: &Window) {
        let base = window.base().0;
        let mappings = window.mappings();
        let layout: Vec<_> = mappings
            .iter()
            .map(|one| {
                let guest = GuestAddress(base + one.range().start());
                let host = window.lookup(guest).unwrap().host_address;
                (
                    guest,
                    one.range().len(),
                    host,
                    one.protection().is_writable(),
                )
            })
            .collect();
        for number in [0, 1] {
            let pinned = self.host.pinned(number);
            let has: Vec<_> = pinned
                .iter()
                .map(|one| one.mapping)
                .map(|one| {
                    let (guest, host) = (one.guest_address(), one.host_address());
                    (guest, one.len(), host, one.is_writable())
                })
                .collect();
            let attached = self.listeners[number].is_some();
            let wanted = if attached { layout.as_slice() } else { &[] };
            if has != wanted {
                let detail = format!("{number}: {has:x?}, not {wanted:x?}");
                self.note("a listener has not what the layout has", &detail);
            }
            let mut seen = vec![None; PAGES as usize];
            for one in &pinned {
                let first = (one.mapping.guest_address().0 - base) / PAGE_SIZE;
                for (page, byte) in (first as usize..).zip(&one.bytes) {
                    seen[page] = *byte;
                }
            }
            let promised: Vec<_> = (0..PAGES).map(|page| self.model.page(page)).collect();
            if attached && seen != promised {
                let detail = format!("{number}: {seen:?}, promised {promised:?}");
                self.note("devices reach what no call promised", &detail);
            }
        }
    }

    /// Memory is where the calls promised it, and nothing is left in a hole.
    fn guest(&mut self, window: &Window) {
        let arena = peek_pages(self.arena, PAGES);
        for (page, shown) in (0..PAGES).zip(arena) {
            let guest = GuestAddress(window.base().0 + page * PAGE_SIZE);
            let found = window.lookup(guest).map(|found| found.host_address);
            let own = self.arena + page * PAGE_SIZE;
            let look = |address| if address == own { shown } else { peek(address) };
            let (sees, promised) = (found.and_then(look), self.model.page(page));
            if sees != promised {
                let detail = format!("page {page}: {sees:?}, promised {promised:?}");
                self.note("the guest sees what no call promised", &detail);
            }
            if found != Some(own) && shown.is_some() {
                self.note(
                    "memory stays in a hole of the arena",
                    &format!("page {page}"),
                );
            }
        }
    }

    /// What devices reach is still there, whatever has failed.
    fn nothing_changes_under_a_device(&mut self) {
        for number in [0, 1] {
            for one in self.host.pinned(number) {
                if look(&one.mapping) != one.bytes {
                    let detail = format!("{number}: {one:?}");
                    self.note("memory changes while a device reaches it", &detail);
                }
            }
        }
        // After a panic the window takes the memory for mapped, which can be wrong.
        if let Some(misuse) = self.host.misuse().filter(|_| !self.panicked) {
            self.note("a listener is asked for what cannot be", &misuse);
        }
    }

    fn close(&mut self, window: Window) {
        self.host.clear_log();
        let closed = catch_unwind(AssertUnwindSafe(|| window.close()));
        self.last = format!("{}; closed: {:?}", self.last, closed.as_ref().ok());
        let live = [0, 1].map(|number| self.host.pinned(number)).concat();
        // A window that cannot vouch for its address space keeps it for ever.
        let kept = self.poisoned || self.panicked || !matches!(closed, Ok(Ok(())));
        match closed {
            Ok(Ok(())) if !live.is_empty() => self.note("close succeeds and devices go on", ""),
            Ok(_) if self.host.forgot_one() => {
                self.note("close leaves memory to devices that would have gone", "");
            }
            Err(payload) => {
                self.panicked = true;
                if !payload.is::<Told>() {
                    self.note("the library panics by itself", "");
                }
            }
            Ok(_) => {}
        }
        self.nothing_changes_under_a_device();
        if kept {
            give_back(self.arena, LEN);
        }
    }
}
