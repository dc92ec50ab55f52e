//! Owns the proof that no system call of the arena can break a window: each fails in turn, alone
//! and in pairs, before the kernel has done anything and after it has unmapped what it was to
//! cover. Never stops by time: the scripts alone decide how many runs there are.
//!
//! In a process of its own, where nothing else maps memory and the areas can be counted.

#[path = "../../tests/common/alone.rs"]
#[expect(unreachable_pub, reason = "shared with other tests")]
mod alone;
#[path = "../../tests/faults/eyes.rs"]
#[expect(unreachable_pub, reason = "shared with other tests")]
mod eyes;
#[path = "../../tests/faults/findings.rs"]
#[expect(unreachable_pub, reason = "shared with other tests")]
mod findings;
#[path = "../../tests/faults/memories.rs"]
#[expect(unreachable_pub, reason = "shared with other tests")]
mod memories;
#[path = "../../tests/faults/provider.rs"]
#[expect(dead_code, unreachable_pub, reason = "shared with other tests")]
mod provider;
#[path = "../../tests/faults/script.rs"]
#[expect(unreachable_pub, reason = "shared with other tests")]
mod script;
#[path = "../../tests/faults/trial.rs"]
#[expect(unreachable_pub, reason = "shared with other tests")]
mod trial;

use std::io::Write;

use rustix::io::Errno;

use crate::arena::areas::used_by_windows;
use crate::arena::faults::{self, CANARY, Effect, Fault, Made, Plan};
use crate::backend::BackendKind;
use crate::error::Error;
use crate::range::{GuestAddress, HUGE_2M};
use crate::slots::SlotNumbers;
use crate::source::prefault::Prefault;
use crate::source::{Protection, Source};
use crate::window::Window;
use crate::window::batch::Batch;
use crate::window::options::WindowOptions;
use findings::Findings;
use memories::Memories;
use provider::Flaky;
use trial::{Setting, Trouble};

/// How far behind the first failing call a second one fails: recoveries are short.
const REACH: usize = 4;

/// What the kernel says: no memory, a security module's no, a file that cannot be mapped after all,
/// too much locked, a wrong argument.
const ERRNOS: [Errno; 5] = [
    Errno::NOMEM,
    Errno::ACCESS,
    Errno::NODEV,
    Errno::AGAIN,
    Errno::INVAL,
];
const EFFECTS: [Effect; 3] = [Effect::Nothing, Effect::Unmapped, Effect::Taken];

/// System calls that fail, and a slot call.
#[derive(Debug, Default)]
struct Calls {
    plan: Plan,
    slots: provider::Plan,
}

impl Calls {
    fn of<const N: usize>(plan: [(u64, Fault); N]) -> Self {
        let slots = provider::Plan::new();
        Self {
            plan: Plan::from(plan),
            slots,
        }
    }

    /// Whether a call has failed in a way that is asked for.
    fn hit(wanted: impl Fn(&Made, Fault) -> bool) -> bool {
        let made = faults::made();
        let mut failed = made.iter().filter_map(|one| Some((one, one.fault?)));
        failed.any(|(one, fault)| wanted(one, fault))
    }
}

impl Trouble for Calls {
    fn begin(&self, provider: &Flaky) {
        provider.follow(&self.slots);
        faults::follow(&self.plan);
    }

    fn is_none(&self) -> bool {
        self.plan.is_empty() && self.slots.is_empty()
    }

    /// The error is one that the call's documentation has, and names what the kernel said.
    fn judge(&self, error: &Error) -> Option<&'static str> {
        let said = Self::hit(|_, fault| fault.errno.raw_os_error() == error.errno());
        let slot = !self.slots.is_empty() && matches!(error, Error::Slot { .. });
        match error {
            Error::Poisoned => None,
            _ if slot => None,
            Error::HostMemory { .. } => None,
            Error::Stage { .. } | Error::Prefault { .. } | Error::Place { .. } if said => None,
            _ => Some("an error is not what the documentation says"),
        }
    }

    /// Each mapping has its two areas of the budget, and nothing else has any.
    fn inspect(&self, window: &Window) -> Option<&'static str> {
        let mappings = window.mappings().len().cast_signed();
        (used_by_windows() != 2 * mappings).then_some("areas stay spoken for, or are not")
    }

    fn leaves_a_gap(&self) -> bool {
        let emptied = Self::hit(|_, fault| fault.effect == Effect::Unmapped);
        // What fills a gap covers nothing.
        let not_filled = Self::hit(|made, _| made.is_filling());
        Self::hit(|_, fault| fault.effect == Effect::Taken) || emptied && not_filled
    }

    fn keeps_address_space(&self) -> bool {
        Self::hit(|made, _| made.is_unmap())
    }

    fn end(&self) -> Option<&'static str> {
        let intact = |page: usize| {
            [0, 1, 4095].map(|at| eyes::peek((page + at) as u64)) == [Some(CANARY); 3]
        };
        let kept = faults::take_strangers().into_iter().all(intact);
        (!kept).then_some("a stranger's memory was overwritten or given back")
    }
}

/// The areas of the process that a window could have left behind: shared ones, and those without
/// access, by address, with what they show.
fn areas() -> Vec<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let ours = |line: &&str| {
        let access = line.split(' ').nth(1).unwrap();
        access.ends_with('s') || access == "---p"
    };
    maps.lines().filter(ours).map(str::to_owned).collect()
}

/// What the runs of a whole test have found.
#[derive(Default)]
struct Proof {
    findings: Findings,
    runs: u64,
}

impl Proof {
    /// One run, and whether it has left anything behind. Returns the calls that it made.
    fn run(&mut self, setting: &Setting, memories: &Memories, calls: &Calls) -> Vec<Made> {
        let before = areas();
        trial::run(setting, memories, calls, &mut self.findings);
        let made = faults::made();
        faults::follow(&Plan::new());
        self.runs += 1;
        let case = || format!("{} {} {calls:?}", setting.backend, setting.script);
        if used_by_windows() != 0 {
            self.findings.note("areas stay spoken for", case);
        }
        let unmap_failed = made.iter().any(|one| one.is_unmap() && one.fault.is_some());
        if !unmap_failed && areas() != before {
            self.findings.note("address space is lost", || {
                format!("{}\n    {before:#?}\n    {:#?}", case(), areas())
            });
        }
        made
    }

    /// Each call with each error and each effect; then with one of the next calls, which are those
    /// of the recovery.
    fn every_call(&mut self, setting: &Setting, memories: &Memories) {
        let clean = self.run(setting, memories, &Calls::default());
        for (first, made) in (0..).zip(&clean) {
            for effect in EFFECTS.into_iter().filter(|effect| made.can_have(*effect)) {
                let mut after = Vec::new();
                for errno in ERRNOS {
                    let calls = Calls::of([(first, fault(errno, effect))]);
                    after = self.run(setting, memories, &calls);
                }
                let last = fault(ERRNOS[ERRNOS.len() - 1], effect);
                for (later, made) in (0..).zip(&after).skip(first as usize + 1).take(REACH) {
                    for effect in EFFECTS.into_iter().filter(|effect| made.can_have(*effect)) {
                        let second = fault(Errno::PERM, effect);
                        let calls = Calls::of([(first, last), (later, second)]);
                        self.run(setting, memories, &calls);
                    }
                }
            }
        }
    }

    /// Each slot call refused, and then each of the system calls that recover from it.
    fn every_recovery_from_a_slot(&mut self, setting: &Setting, memories: &Memories) {
        let slot_calls = trial::run(setting, memories, &Calls::default(), &mut self.findings);
        let clean = faults::made();
        for slot in 0..slot_calls {
            let refused = |plan| {
                let slots = provider::Plan::from([(slot, provider::Fault::Refuse)]);
                Calls { plan, slots }
            };
            let after = self.run(setting, memories, &refused(Plan::new()));
            // From the first call on that is made because of the slot.
            let same = clean
                .iter()
                .zip(&after)
                .take_while(|(one, other)| one.is_like(other));
            let from = same.count().saturating_sub(1);
            for (call, made) in (0..).zip(&after).skip(from).take(3 * REACH) {
                let effects = [Effect::Nothing, Effect::Unmapped].into_iter();
                for effect in effects.filter(|effect| made.can_have(*effect)) {
                    let plan = Plan::from([(call, fault(Errno::NOMEM, effect))]);
                    self.run(setting, memories, &refused(plan));
                }
            }
        }
    }
}

fn fault(errno: Errno, effect: Effect) -> Fault {
    Fault { errno, effect }
}

/// Runs `body` for every script with both backends, in a process of its own.
fn prove(test: &str, body: impl Fn(&mut Proof, &Setting, &Memories)) {
    if !eyes::work() {
        let mut stderr = std::io::stderr();
        writeln!(stderr, "SKIP {test}: process_vm_readv is not allowed here").unwrap();
        return;
    }
    alone::alone(test, || {
        let mut proof = Proof::default();
        let memories = Memories::new();
        for backend in BackendKind::ALL {
            for (script, steps) in script::scripts() {
                let numbers = 64;
                body(
                    &mut proof,
                    &Setting {
                        backend,
                        numbers,
                        script,
                        steps,
                    },
                    &memories,
                );
            }
        }
        let mut stderr = std::io::stderr();
        writeln!(stderr, "{test}: {} runs", proof.runs).unwrap();
        assert!(proof.runs > 1500, "too few calls: {}", proof.runs);
        assert!(proof.findings.is_empty(), "{}", proof.findings);
    });
}

#[test]
fn every_system_call_fails_in_turn() {
    let test = "window::call_faults::every_system_call_fails_in_turn";
    prove(test, Proof::every_call);
}

#[test]
fn every_system_call_fails_after_every_slot_call() {
    let test = "window::call_faults::every_system_call_fails_after_every_slot_call";
    prove(test, Proof::every_recovery_from_a_slot);
}

fn open() -> Result<Window, Error> {
    let options = WindowOptions::new(GuestAddress(4 << 30), 4 * HUGE_2M);
    options.open(
        std::sync::Arc::new(Flaky::default()),
        SlotNumbers::new(8..16),
    )
}

/// Does something with each of its calls failing, in every plan of `plans` for the number of the
/// call, until there is no such call any more; nothing may be lost but what `munmap` refused.
fn each_in_turn(plans: impl Fn(u64) -> Vec<Plan>, mut act: impl FnMut()) -> usize {
    let mut runs = 0;
    for call in 0.. {
        let mut reached = false;
        for plan in plans(call) {
            let before = areas();
            faults::follow(&plan);
            act();
            let made = faults::made();
            faults::follow(&Plan::new());
            reached |= made.len() as u64 > call;
            runs += 1;
            let unmap_failed = made.iter().any(|one| one.is_unmap() && one.fault.is_some());
            assert!(
                unmap_failed || areas() == before,
                "{plan:?} loses address space"
            );
            assert_eq!(used_by_windows(), 0, "{plan:?}");
        }
        if !reached {
            break;
        }
    }
    runs
}

#[test]
fn a_window_opens_or_says_why_whichever_call_fails() {
    let test = "window::call_faults::a_window_opens_or_says_why_whichever_call_fails";
    alone::alone(test, || {
        let errnos = [Errno::NOMEM, Errno::EXIST, Errno::PERM];
        let alone = |call| errnos.map(|errno| (call, fault(errno, Effect::Nothing)));
        let taken = |upto: u64| (0..upto).map(|call| (call, fault(Errno::EXIST, Effect::Nothing)));
        // Alone, and after every place that an arena is tried at was taken.
        let plans = |call: u64| {
            let single = alone(call).map(|one| Plan::from([one]));
            let late = alone(call).map(|one| taken(8.min(call)).chain([one]).collect());
            single.into_iter().chain(late).collect()
        };
        let runs = each_in_turn(plans, || match open() {
            Ok(window) => window.close().unwrap(),
            Err(Error::Reserve { .. }) => {}
            Err(error) => panic!("undocumented: {error}"),
        });
        assert!(runs > 30, "{runs}");
    });
}

#[test]
fn huge_pages_are_brought_in_or_nothing_changes() {
    let test = "window::call_faults::huge_pages_are_brought_in_or_nothing_changes";
    alone::alone(test, || {
        let fd = rustix::fs::memfd_create("huge", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, HUGE_2M).unwrap();
        let range = crate::range::PageRange::new(HUGE_2M, HUGE_2M).unwrap();
        let fd = std::os::fd::AsFd::as_fd(&fd);
        let source = Source::descriptor(fd, 0).prefault(Prefault::HostWrite);
        let errnos = [Errno::NOMEM, Errno::FAULT, Errno::INTR, Errno::INVAL];
        let plans = |call: u64| {
            let plan = |errno| Plan::from([(call, fault(errno, Effect::Nothing))]);
            errnos.map(plan).to_vec()
        };
        let runs = each_in_turn(plans, || {
            let Ok(window) = open() else {
                return;
            };
            let mapped = window.map(range, &source, Protection::ReadWrite);
            assert_eq!(window.mappings().len(), usize::from(mapped.is_ok()));
            if let Err(error) = mapped {
                let known = matches!(
                    error,
                    Error::Stage { .. } | Error::Prefault { .. } | Error::Place { .. }
                );
                assert!(known, "undocumented: {error}");
                window.map(range, &source, Protection::ReadWrite).unwrap();
            }
            window.close().unwrap();
        });
        assert!(runs > 20, "{runs}");
    });
}

/// A prepared batch can live longer than its window, and holds its own areas only.
#[test]
fn a_window_that_closes_gives_its_areas_back_though_a_prepared_batch_lives() {
    let test = "window::call_faults::\
                a_window_that_closes_gives_its_areas_back_though_a_prepared_batch_lives";
    alone::alone(test, || {
        let window = open().unwrap();
        let at = |block: u64| crate::range::PageRange::new(block * HUGE_2M, HUGE_2M).unwrap();
        let source = Source::anonymous();
        for block in 0..3 {
            window
                .map(at(block), &source, Protection::ReadWrite)
                .unwrap();
        }
        let unmaps = Batch::new().unmap(at(0)).unmap(at(2));
        let maps = Batch::new().map(at(3), &source, Protection::ReadWrite);
        let unmaps = window.prepare(&unmaps).unwrap();
        assert_eq!(used_by_windows(), 6, "unmaps need no room");
        let maps = window.prepare(&maps).unwrap();
        assert_eq!(used_by_windows(), 8);
        window.close().unwrap();
        assert_eq!(used_by_windows(), 2);
        drop(maps);
        assert_eq!(used_by_windows(), 0);
        drop(unmaps);
        assert_eq!(used_by_windows(), 0);
    });
}
