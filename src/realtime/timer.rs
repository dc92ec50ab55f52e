//! Owns a task that wants to be woken each millisecond at a time that was set before, as cyclictest
//! does, and records how late it came. Never says what that means.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use hdrhistogram::Histogram;
use rustix::thread::{ClockId, clock_nanosleep_absolute};
use rustix::time::{Timespec, clock_gettime};

use super::scheduling::{go_first, pin, real_time};

/// From one wake-up to the next.
pub(crate) const PERIOD: Duration = Duration::from_millis(1);
/// Above every other thread of the command.
pub(crate) const PRIORITY: i32 = 2;
/// The latest wake-up that is told apart, in nanoseconds: a minute.
const LATEST: u64 = 60_000_000_000;

/// What a timer has counted.
#[derive(Debug)]
pub(crate) struct Counted {
    /// How late each wake-up came, in nanoseconds.
    pub(crate) late: Histogram<u64>,
    /// Wake-ups that came later than one period.
    pub(crate) missed: u64,
    /// What raised the timer's priority.
    pub(crate) priority: String,
}

impl Counted {
    pub(crate) fn nothing() -> anyhow::Result<Self> {
        Ok(Self {
            late: Histogram::new_with_max(LATEST, 3)?,
            missed: 0,
            priority: String::new(),
        })
    }

    /// Adds what another timer, or the same one at another time, has counted.
    pub(crate) fn add(&mut self, other: Self) -> anyhow::Result<()> {
        self.late.add(&other.late)?;
        self.missed = self.missed.saturating_add(other.missed);
        self.priority = other.priority;
        Ok(())
    }
}

/// Whether this process may have a timer that goes before all ordinary threads.
///
/// # Errors
/// With what to do about it.
pub(crate) fn allowed() -> anyhow::Result<()> {
    // On a thread of its own: the caller's priority stays.
    let raised = std::thread::spawn(|| real_time(PRIORITY)).join();
    let raised = raised.map_err(|_| anyhow!("cannot try a real-time priority"))?;
    raised.with_context(|| {
        format!(
            "cannot give a timer the real-time priority SCHED_FIFO {PRIORITY}: run this as root, \
             or give the command CAP_SYS_NICE (`setcap cap_sys_nice+ep`), or raise the limit of \
             real-time priorities (`ulimit -r`)"
        )
    })
}

/// The timer's thread; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Timer {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<anyhow::Result<Counted>>>,
}

impl Timer {
    /// A timer on `cpu`, with the best priority that it gets.
    pub(crate) fn start(cpu: usize) -> anyhow::Result<Self> {
        let end = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&end);
        let thread = std::thread::Builder::new()
            .name("timer".to_owned())
            .spawn(move || {
                pin(cpu)?;
                let mut counted = Counted::nothing()?;
                counted.priority = go_first(PRIORITY);
                tick(&until, &mut counted)?;
                Ok(counted)
            })
            .context("cannot start the timer's thread")?;
        Ok(Self {
            end,
            thread: Some(thread),
        })
    }

    pub(crate) fn stop(mut self) -> anyhow::Result<Counted> {
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

fn tick(end: &AtomicBool, counted: &mut Counted) -> anyhow::Result<()> {
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
        if late > PERIOD {
            counted.missed = counted.missed.saturating_add(1);
            // What was missed is not made up for.
            next = woken;
        }
        let late = u64::try_from(late.as_nanos()).unwrap_or(u64::MAX);
        counted.late.saturating_record(late);
    }
    Ok(())
}

/// The time that the kernel wakes by.
fn now() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::scheduling::allowed_cpus;
    use super::*;

    #[test]
    fn a_timer_counts_its_wake_ups_and_adds_up() {
        let cpu = allowed_cpus().unwrap()[0];
        let timer = Timer::start(cpu).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        let counted = timer.stop().unwrap();
        assert!((1..=1000).contains(&counted.late.len()), "{counted:?}");
        let mut all = Counted::nothing().unwrap();
        let (n, missed) = (counted.late.len(), counted.missed);
        all.add(counted).unwrap();
        assert_eq!((all.late.len(), all.missed), (n, missed));
        assert!(!all.priority.is_empty());
    }
}
