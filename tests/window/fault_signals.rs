//! Owns the tests of signals that meet a vCPU in the middle of single steps.

// UNSAFETY: no safe call sends a signal to one thread by its number.
#![expect(unsafe_code, reason = "a signal for one thread")]

use std::thread;

use vm_remap::BackendKind;
use vm_remap_cli::guest::{Access, GpaRange, PAGE};

use crate::fault::{Resolved, open_resolved};
use crate::support::*;

/// Pages that the instruction fills.
const HELD: u64 = 2;

/// The task of a vCPU's thread, by the name that it has. It gives it to itself, some time after it
/// was started.
fn task_of(vcpu: usize) -> libc::pid_t {
    let named = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        tasks.map(|task| task.unwrap()).find(|task| {
            let name = std::fs::read_to_string(task.path().join("comm"));
            name.is_ok_and(|name| name.trim() == format!("vcpu{vcpu}"))
        })
    };
    let task = (0..1_000_000).find_map(|_| {
        thread::yield_now();
        named()
    });
    let name = task.unwrap().file_name();
    name.to_str().unwrap().parse().unwrap()
}

#[test]
fn one_signal_ends_the_steps_of_an_instruction_that_repeats() {
    let test = "one_signal_ends_the_steps_of_an_instruction_that_repeats";
    // No other test has as many vCPUs, so the thread's name tells it.
    let vcpu = 7;
    let Some(on) = open_resolved(test, vcpu + 1, options(BackendKind::Fixed)) else {
        return;
    };
    let task = task_of(vcpu);
    // A signal that comes outside KVM_RUN is lost on this guest's handler: another round then.
    let ended = (0..50).any(|_| faults_of_a_round(&on, vcpu, task) == HELD + 1);
    assert!(ended, "{:?}", on.resolver().counters());
}

/// Fills two holes by one instruction, with a signal in between. The faults that this takes: one for
/// each page, and one more where the run was ended and begun again.
fn faults_of_a_round(on: &Resolved, vcpu: usize, task: libc::pid_t) -> u64 {
    let begun = on.resolver().counters();
    let bytes = HELD * PAGE;
    thread::scope(|scope| {
        let guest = scope.spawn(|| {
            let range = GpaRange {
                base: at(8),
                len: bytes,
            };
            on.guest.execute(vcpu, range, 0, |a| {
                use iced_x86::code_asm::*;
                a.mov(rdi, rsi)?;
                a.mov(ecx, u32::try_from(bytes).unwrap())?;
                a.rep().stosb()?;
                a.mov(rax, rdi)
            })
        });
        while on.resolver().counters().steps < begun.steps + 50 && !guest.is_finished() {
            thread::yield_now();
        }
        // SAFETY: the signal has a handler, which does nothing.
        let sent =
            unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), task, libc::SIGRTMIN()) };
        assert_eq!(sent, 0);
        let ended = guest.join().unwrap();
        assert_eq!(ended.unwrap(), Access::Done(at(8 + HELD)));
    });
    on.resolver().counters().faults - begun.faults
}
