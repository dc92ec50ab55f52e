//! Owns `vm-remap bench --jitter`: how late real-time timers wake up while a guest works and a
//! rival churns, against the same guest with no churn. Never prints.
//!
//! A timer is pinned to each CPU, as `cyclictest -a -t` does it, so that work is seen wherever a
//! rival, or the kernel for it, does it. The rival and the vCPUs run where the scheduler puts them,
//! as in a VMM that pins nothing.

mod page;
mod report;
mod text;

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;

pub use self::report::{Report, Settings, TimesIdle, Wakeups};
use crate::bench::contender::{Contender, Role};
use crate::bench::pace::wait;
use crate::bench::{Options, Slices, contenders, describe};
use crate::realtime::scheduling::allowed_cpus;
use crate::realtime::timer::{self, Counted, Timer};

/// The rivals that work under a guest.
const ROLES: [Role; 4] = [Role::Memslot, Role::Precise, Role::Plain, Role::Fixed];
/// The most timers: with more of them they would be the load.
const MOST_CPUS: usize = 16;

/// How many turns a run has; after each, progress is told.
#[must_use]
pub fn turns(options: &Options) -> u64 {
    u64::from(options.rounds).saturating_mul(ROLES.len().saturating_add(1) as u64)
}

/// What the timers counted beside one phase.
#[derive(Debug)]
struct Beside {
    /// `None` is the idle phase.
    role: Option<Role>,
    counted: Counted,
}

/// Measures. Stops soon after `stop` is set, with what there is until then.
///
/// # Errors
/// Where this process may have no real-time threads, with what to do; where no guest can be made,
/// with what the host lacks; where a rival's own calls fail.
pub fn run(
    options: &Options,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(&str),
) -> anyhow::Result<Report> {
    timer::allowed()?;
    let mut cpus = allowed_cpus()?;
    cpus.truncate(MOST_CPUS);
    let mut contenders = contenders(options, &ROLES)?;
    let slices = Slices::of(options);
    let mut phases = vec![Beside {
        role: None,
        counted: Counted::nothing()?,
    }];
    for contender in &contenders {
        phases.push(Beside {
            role: Some(contender.role()),
            counted: Counted::nothing()?,
        });
    }
    'rounds: for round in 0..options.rounds as usize {
        for turn in 0..phases.len() {
            // Another one begins in each round, so that none always follows the same.
            let index = turn.wrapping_add(round).checked_rem(phases.len());
            let Some(phase) = index.and_then(|index| phases.get_mut(index)) else {
                continue;
            };
            phase.take_turn(&mut contenders, &cpus, &slices, stop)?;
            if stop.load(Ordering::Relaxed) {
                break 'rounds;
            }
            progress(phase.role.map_or("idle", Role::name));
        }
    }
    let first = contenders.first();
    let first = first.context("cannot describe the host: no rival could be set up")?;
    let complete = !stop.load(Ordering::Relaxed);
    let host = describe(first.guest());
    Ok(Report::new(host, options, cpus, &phases, complete))
}

impl Beside {
    fn take_turn(
        &mut self,
        contenders: &mut [Contender],
        cpus: &[usize],
        slices: &Slices,
        stop: &AtomicBool,
    ) -> anyhow::Result<()> {
        // While nothing is mapped, one guest is as good as another.
        let found = match self.role {
            Some(role) => contenders.iter_mut().find(|found| found.role() == role),
            None => contenders.last_mut(),
        };
        let contender = found.context("cannot find the rival of a phase")?;
        if !contender.walk().warm(stop)? {
            return Ok(());
        }
        contender.walk().start()?;
        let timers = cpus.iter().map(|cpu| Timer::start(*cpu));
        let timers: Vec<Timer> = timers.collect::<Result<_, _>>()?;
        if self.role.is_some() {
            contender.churn(slices, stop)?;
        } else {
            wait(slices.churn, stop);
        }
        for timer in timers {
            self.counted.add(timer.stop()?)?;
        }
        contender.walk().stop()?;
        Ok(())
    }
}
