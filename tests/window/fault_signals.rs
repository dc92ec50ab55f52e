//! Owns the tests of signals that meet a vCPU in the middle of single steps.

// UNSAFETY: no safe call sends a signal to one thread by its number.
#![expect(unsafe_code, reason = "a signal for one thread")]

use std::thread;

use vm_remap::BackendKind;
use vm_remap_cli::guest::{Access, GpaRange, PAGE};

use crate::fault::open_resolved;
use crate::support::*;

/// The task of a vCPU's thread, by the name that it has.
fn task_of(vcpu: usize) -> libc::pid_t {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let named = tasks.map(|task| task.unwrap()).find(|task| {
        let name = std::fs::read_to_string(task.path().join("comm"));
        name.is_ok_and(|name| name.trim() == format!("vcpu{vcpu}"))
    });
    named
        .unwrap()
        .file_name()
        .to_str()
        .unwrap()
        .parse()
        .unwrap()
}

#[test]
fn one_signal_ends_the_steps_of_an_instruction_that_repeats() {
    let test = "one_signal_ends_the_steps_of_an_instruction_that_repeats";
    // No other test has as many vCPUs, so the thread's name tells it.
    let vcpu = 7;
    let Some(on) = open_resolved(test, vcpu + 1, options(BackendKind::Fixed)) else {
        return;
    };
    let held = 4;
    let bytes = held * PAGE;
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
        let steps = || on.resolver().counters().steps;
        while steps() < 50 && !guest.is_finished() {
            thread::yield_now();
        }
        let (group, task) = (std::process::id(), task_of(vcpu));
        // SAFETY: the signal has a handler, which does nothing.
        let sent = unsafe { libc::syscall(libc::SYS_tgkill, group, task, libc::SIGRTMIN()) };
        assert_eq!(sent, 0);
        assert!(steps() < bytes / 2, "too late to tell anything");
        let ended = guest.join().unwrap();
        assert_eq!(ended.unwrap(), Access::Done(at(8 + held)));
    });
    // One for each page, and one more since the run was ended and begun again.
    let counters = on.resolver().counters();
    assert_eq!(counters.faults, held + 1, "{counters:?}");
}
