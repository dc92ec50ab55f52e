//! Owns the real-time task that stands for somebody else's work on this host: it wants to be woken
//! each millisecond, and counts how often that came too late. Never says what that means: under
//! emulation it means little.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use rustix::thread::{ClockId, clock_nanosleep_absolute};
use rustix::time::{Timespec, clock_gettime};

use super::result::{Jitter, Phase};
use super::scheduling::{go_first, pin};
use super::stage::Stage;
use super::tracefs::Trace;

const PERIOD: Duration = Duration::from_millis(1);
/// Above the caller's.
const PRIORITY: i32 = 2;
/// How long a phase lasts.
const LENGTH: Duration = Duration::from_secs(2);
/// How long nothing happens between an operation and the guest's next touch of its memory.
const PAUSE: Duration = Duration::from_millis(10);

/// What the timer's thread has counted.
#[derive(Debug, Default)]
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
    let mut counted = timer.stop()?;
    let after = trace.map(Trace::seen).transpose()?;
    counted.phase.operations = operations;
    let whole_vm = after.zip(before);
    counted.phase.zap_all_fast = whole_vm.map(|(a, b)| a.since(&b).whole_vm.total());
    Ok(counted)
}

/// The timer's thread; dropping it ends it.
#[derive(Debug)]
struct Timer {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<anyhow::Result<Counted>>>,
}

impl Timer {
    fn start(cpu: usize) -> anyhow::Result<Self> {
        let end = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&end);
        let thread = std::thread::Builder::new()
            .name("timer".to_owned())
            .spawn(move || {
                pin(cpu)?;
                let priority = go_first(PRIORITY);
                let phase = tick(&until)?;
                Ok(Counted { phase, priority })
            })
            .context("cannot start the timer's thread")?;
        Ok(Self {
            end,
            thread: Some(thread),
        })
    }

    fn stop(mut self) -> anyhow::Result<Counted> {
        self.end.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("cannot stop the timer twice")?;
        thread
            .join()
            .map_err(|_| anyhow!("cannot count late wake-ups: the timer's thread panicked"))?
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
    }
}

fn tick(end: &AtomicBool) -> anyhow::Result<Phase> {
    let mut phase = Phase::default();
    let mut next = now();
    while !end.load(Ordering::Relaxed) {
        next = next.saturating_add(PERIOD);
        let until = Timespec::try_from(next).context("cannot express the time to wake up at")?;
        // A signal only makes it late or early by less than it is about.
        let slept = clock_nanosleep_absolute(ClockId::Monotonic, &until);
        if slept.is_err() {
            continue;
        }
        let woken = now();
        let late = woken.saturating_sub(next);
        phase.wakeups = phase.wakeups.saturating_add(1);
        if late > PERIOD {
            phase.missed = phase.missed.saturating_add(1);
            // What was missed is not made up for.
            next = woken;
        }
        let late = u64::try_from(late.as_micros()).unwrap_or(u64::MAX);
        phase.worst_us = phase.worst_us.max(late);
    }
    Ok(phase)
}

/// The time that the kernel wakes by.
fn now() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default()
}
