//! Owns the tests of DMA listeners over real memory: what they are told, in which order, and what
//! holds when any of them, or the hypervisor, fails. Never needs `/dev/kvm`, VFIO or root.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    reason = "tests compute with small figures of their own"
)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(unreachable_pub, reason = "a test binary exports nothing")]

#[path = "../faults/eyes.rs"]
mod eyes;
#[path = "../faults/findings.rs"]
mod findings;
#[expect(dead_code, reason = "shared with the tests of faults")]
#[path = "../faults/memories.rs"]
mod memories;
#[path = "../faults/script.rs"]
mod script;

mod failures;
mod host;
mod order;
mod trial;

use std::io::Write;
use std::panic::resume_unwind;
use std::thread;

use proptest::collection::{btree_map, vec};
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof};
use vm_remap::BackendKind;

use findings::Findings;
use host::{Fault, Plan};
use memories::Memories;
use script::{Change, Memory, PAGES, Step, scripts};
use trial::run;

/// How far behind the first failing call a second one fails. It is the first call of a recovery;
/// those after it fail by `Fault::RefuseFromHere` and its like, and in the random plans.
const REACH: u64 = 1;

/// Whether the test can look at memory; says so where it cannot.
fn can_look(test: &str) -> bool {
    let works = eyes::work();
    if !works {
        let reason = "process_vm_readv is not allowed here";
        let mut stderr = std::io::stderr();
        writeln!(stderr, "SKIP {test}: {reason}").unwrap();
    }
    works
}

#[test]
fn every_call_fails_in_turn() {
    if !can_look("every_call_fails_in_turn") {
        return;
    }
    // The lab's emulation takes some fifty times as long. 17 falls on every kind of plan in turn.
    let stride = std::env::var_os("VM_REMAP_LAB").map_or(1, |_| 17);
    let runs: u64 = thread::scope(|scope| {
        let backends = BackendKind::ALL.map(|backend| scope.spawn(move || every(backend, stride)));
        let ended = backends.map(|backend| backend.join());
        ended.map(|runs| runs.unwrap_or_else(|panic| resume_unwind(panic)))
    })
    .into_iter()
    .sum();
    assert!(
        runs > 5000 / stride as u64,
        "the scripts make too few calls: {runs}"
    );
}

/// Every script with every plan, or every `stride`th; how many runs that were.
fn every(backend: BackendKind, stride: usize) -> u64 {
    let memories = Memories::new();
    let mut findings = Findings::default();
    let mut runs = 0;
    for (script, steps) in scripts() {
        let mut with = |plan: &Plan| run(backend, script, &steps, &memories, plan, &mut findings);
        for plan in plans(with(&Plan::new())).step_by(stride) {
            with(&plan);
            runs += 1;
        }
    }
    assert!(findings.is_empty(), "{findings}");
    runs
}

/// Each of `calls` calls failing alone, and then with one of the next.
fn plans(calls: u64) -> impl Iterator<Item = Plan> {
    let alone = |call| Fault::ALL.map(|fault| Plan::from([(call, fault)]));
    let second = [Fault::Refuse, Fault::PanicAfter];
    let pair =
        move |call, later| second.map(|fault| Plan::from([(call, Fault::Refuse), (later, fault)]));
    let pairs = move |call| (call + 1..=call + REACH).flat_map(move |later| pair(call, later));
    (0..calls).flat_map(move |call| alone(call).into_iter().chain(pairs(call)))
}

fn changes() -> impl Strategy<Value = Change> {
    let memory = prop_oneof![
        Just(Memory::Peer),
        Just(Memory::Sealed),
        Just(Memory::Shared),
        Just(Memory::Private),
        Just(Memory::Anonymous),
    ];
    (0..PAGES, 1..=PAGES, 0..3, memory).prop_map(|(start, count, verb, memory)| {
        let count = count.min(PAGES - start);
        match verb {
            0 => Change::Map(start, count.min(4), memory),
            1 => Change::Replace(start, count, memory),
            _ => Change::Unmap(start, count),
        }
    })
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => changes().prop_map(Step::One),
        3 => vec(changes(), 1..5).prop_map(Step::Batch),
        1 => (1_u64..64).prop_map(|gib| Step::Relocate(gib << 30)),
    ]
}

proptest::proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn listeners_have_what_the_layout_has(
        steps in vec(steps(), 1..12),
        fixed in any::<bool>(),
        plan in btree_map(0_u64..60, proptest::sample::select(Fault::ALL.to_vec()), 0..3),
    ) {
        if can_look("listeners_have_what_the_layout_has") {
            let backend = if fixed { BackendKind::Fixed } else { BackendKind::Memslot };
            let mut findings = Findings::default();
            let memories = Memories::new();
            run(backend, "random", &steps, &memories, &plan, &mut findings);
            assert!(findings.is_empty(), "{findings}");
        }
    }
}
