//! Owns the test that lets every call of the hypervisor fail in turn, alone and in pairs, and
//! looks at the window after each step. Never needs `/dev/kvm` or root, and never stops by time:
//! the scripts alone decide how many runs there are.
//!
//! One test only: a second one at the same time could be given an arena that a window of the first
//! has just given back, where the first looks whether it is gone.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    reason = "tests compute with small figures of their own"
)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(unreachable_pub, reason = "a test binary exports nothing")]

mod eyes;
mod findings;
mod memories;
mod provider;
mod script;
mod trial;

use std::io::Write;

use vm_remap::BackendKind;

use findings::Findings;
use memories::Memories;
use provider::{Fault, Plan};
use script::scripts;
use trial::{Setting, run};

/// How far behind the first failing call a second one fails: recoveries are short.
const REACH: u64 = 4;

/// What a call alone does in its turn.
const ALONE: [Fault; 6] = [
    Fault::Refuse,
    Fault::PanicBefore,
    Fault::PanicAfter,
    Fault::RefuseFromHere,
    Fault::RefuseRegistersFromHere,
    Fault::RefuseUnregistersFromHere,
];

/// What the second of a pair does, after the first was refused.
const SECOND: [Fault; 3] = [Fault::Refuse, Fault::PanicBefore, Fault::PanicAfter];

#[test]
fn every_slot_call_fails_in_turn() {
    if !eyes::work() {
        writeln!(
            std::io::stderr(),
            "SKIP every_slot_call_fails_in_turn: process_vm_readv is not allowed here"
        )
        .unwrap();
        return;
    }
    let memories = Memories::new();
    let mut findings = Findings::default();
    let mut runs = 0;
    // The lab's emulation takes some twenty times as long. 7 falls on every kind of plan in turn.
    let stride = std::env::var_os("VM_REMAP_LAB").map_or(1, |_| 7);
    for backend in [BackendKind::Fixed, BackendKind::Memslot] {
        // Enough slot numbers for everything, and so few that they run out.
        for numbers in [64, 5] {
            for (script, steps) in scripts() {
                let setting = Setting {
                    backend,
                    numbers,
                    script,
                    steps,
                };
                let calls = run(&setting, &memories, &Plan::new(), &mut findings);
                for plan in plans(calls).step_by(stride) {
                    run(&setting, &memories, &plan, &mut findings);
                    runs += 1;
                }
            }
        }
    }
    assert!(
        runs > 5000 / stride,
        "the scripts make too few slot calls: {runs}"
    );
    assert!(findings.is_empty(), "{findings}");
}

/// Each of `calls` calls failing alone, and then with one of the next.
fn plans(calls: u64) -> impl Iterator<Item = Plan> {
    let alone = |call| ALONE.map(|fault| Plan::from([(call, fault)]));
    let pair =
        |call, later| SECOND.map(|fault| Plan::from([(call, Fault::Refuse), (later, fault)]));
    let pairs = move |call| (call + 1..=call + REACH).flat_map(move |later| pair(call, later));
    (0..calls).flat_map(move |call| alone(call).into_iter().chain(pairs(call)))
}
