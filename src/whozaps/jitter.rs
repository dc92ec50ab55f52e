//! Owns the three phases in which a real-time task beside the work is watched: it stands for
//! somebody else's work on this host. Never says what a late wake-up means: under emulation it
//! means little.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::result::{Jitter, Phase};
use super::stage::Stage;
use super::tracefs::Trace;
use crate::realtime::timer::{PERIOD, Timer};

/// How long a phase lasts.
const LENGTH: Duration = Duration::from_secs(2);
/// How long nothing happens between an operation and the guest's next touch of its memory.
const PAUSE: Duration = Duration::from_millis(10);

/// A phase, and what raised the timer's priority in it.
#[derive(Debug)]
struct Counted {
    phase: Phase,
    priority: String,
}

/// Measures the three phases with a timer on `cpu`; `None` if the run was stopped.
pub(super) fn measure(
    stage: &Stage,
    trace: Option<&Trace>,
    cpu: usize,
    stop: &AtomicBool,
) -> anyhow::Result<Option<Jitter>> {
    let phase = |step: fn(&Stage) -> anyhow::Result<u64>| run(stage, trace, cpu, stop, step);
    let idle = phase(|_| Ok(0))?;
    let memslot_delete = phase(|stage| {
        stage.delete_memslot()?;
        stage.create_memslot()?;
        Ok(1)
    })?;
    let fixed = phase(|stage| {
        stage.remap()?;
        Ok(1)
    })?;
    if stop.load(Ordering::Relaxed) {
        return Ok(None);
    }
    Ok(Some(Jitter {
        period_us: u64::try_from(PERIOD.as_micros()).unwrap_or(u64::MAX),
        cpu,
        priority: idle.priority,
        idle: idle.phase,
        memslot_delete: memslot_delete.phase,
        fixed: fixed.phase,
    }))
}

/// One phase: the guest touches its memory and `step` is done, again and again; the timer counts.
fn run(
    stage: &Stage,
    trace: Option<&Trace>,
    cpu: usize,
    stop: &AtomicBool,
    step: fn(&Stage) -> anyhow::Result<u64>,
) -> anyhow::Result<Counted> {
    stage.populate()?;
    let before = trace.map(Trace::seen).transpose()?;
    let timer = Timer::start(cpu)?;
    let begun = Instant::now();
    let mut operations = 0_u64;
    while begun.elapsed() < LENGTH && !stop.load(Ordering::Relaxed) {
        stage.populate()?;
        operations = operations.saturating_add(step(stage)?);
        std::thread::sleep(PAUSE);
    }
    let counted = timer.stop()?;
    let after = trace.map(Trace::seen).transpose()?;
    let whole_vm = after.zip(before);
    let phase = Phase {
        wakeups: counted.late.len(),
        missed: counted.missed,
        worst_us: counted.late.max() / 1000,
        operations,
        zap_all_fast: whole_vm.map(|(a, b)| a.since(&b).whole_vm.total()),
    };
    let priority = counted.priority;
    Ok(Counted { phase, priority })
}
