//! Owns where and with which priority the measuring threads run. Never starts one.

// UNSAFETY: no safe crate in use sets a scheduling policy. The bare system call is made because
// the C library's function does nothing in some of them (musl).
#![expect(unsafe_code, reason = "sched_setscheduler takes a pointer")]

use std::io;

use anyhow::Context as _;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Gives the calling thread a real-time priority, which the threads it starts do not inherit.
pub(crate) fn real_time(priority: i32) -> io::Result<()> {
    // What the kernel takes for a `sched_param`; that of some C libraries has more fields.
    let parameters = [priority];
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: thread 0 is the calling one, and `parameters` is alive; the kernel reads one `int`
    // there and writes nothing (man 2 sched_setscheduler).
    let answer =
        unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, policy, parameters.as_ptr()) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Makes the calling thread go first as far as it is allowed to, and says how.
pub(crate) fn go_first(priority: i32) -> String {
    const NICEST: i32 = -20;
    if real_time(priority).is_ok() {
        return format!("SCHED_FIFO {priority}");
    }
    match rustix::process::setpriority_process(None, NICEST) {
        Ok(()) => format!("nice {NICEST}"),
        Err(_) => "not raised".to_owned(),
    }
}

/// The CPUs that the calling thread may run on, ascending.
pub(crate) fn allowed_cpus() -> anyhow::Result<Vec<usize>> {
    let set = sched_getaffinity(None).context("cannot ask which CPUs this process may use")?;
    Ok((0..CpuSet::MAX_CPU)
        .filter(|cpu| set.is_set(*cpu))
        .collect())
}

/// Keeps the calling thread, and those it starts from now on, on one CPU.
pub(crate) fn pin(cpu: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).with_context(|| format!("cannot stay on CPU {cpu}"))
}
