//! Owns a rival's turn: the guest works undisturbed, then while the rival churns, then spins on a
//! page that is replaced. Never knows how the rival maps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::blob::{Blobs, Owner};
use super::mapper::Mapper;
use super::tally::{Gap, Tally, record};
use super::{Options, Slices, WINDOW_BASE};
use crate::guest::{Guest, Program, Ran};
use crate::report::{Latencies, Rival};

/// Passes over its memory after which a guest has faulted it in.
const WARM_PASSES: u64 = 2;
/// How long a guest may take for them, on the slowest host.
const WARM_LIMIT: Duration = Duration::from_secs(60);
/// How long a guest may take to look at a page it spins on.
const LOOK_LIMIT: Duration = Duration::from_millis(2);

/// Which rival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Memslot,
    Precise,
    Plain,
    Fixed,
    Peer,
    Bare,
}

impl Role {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Memslot => "memslot",
            Self::Precise => "memslot-precise",
            Self::Plain => "plain",
            Self::Fixed => "fixed",
            Self::Peer => "fixed, a peer's descriptor",
            Self::Bare => "bare",
        }
    }

    fn owner(self) -> Owner {
        if self == Self::Peer {
            Owner::Peer
        } else {
            Owner::Vmm
        }
    }

    /// Whether only the latencies of the operations are of interest.
    fn latencies_only(self) -> bool {
        matches!(self, Self::Peer | Self::Bare)
    }
}

/// One rival with its guest.
#[derive(Debug)]
pub(super) struct Contender {
    role: Role,
    // Before the guest: a window closes before its VM does.
    mapper: Mapper,
    guest: Arc<Guest>,
    blobs: Blobs,
    blob: u64,
    walk: Program,
    tally: Tally,
}

impl Contender {
    pub(super) fn new(
        role: Role,
        guest: Arc<Guest>,
        mapper: Mapper,
        options: &Options,
    ) -> anyhow::Result<Self> {
        let base = guest.layout().working_set().base;
        let walk = Program::Walk {
            base,
            len: options.working_set,
        };
        let blobs = Blobs::new(options.blob, role.owner())?;
        let contender = Self {
            role,
            mapper,
            guest,
            blobs,
            blob: options.blob,
            walk,
            tally: Tally::new()?,
        };
        // The segment is registered on first use, which is no steady state.
        contender
            .mapper
            .map(contender.blobs.current(), contender.blob)?;
        contender.mapper.unmap(contender.blob)?;
        Ok(contender)
    }

    pub(super) fn role(&self) -> Role {
        self.role
    }

    pub(super) fn guest(&self) -> &Guest {
        &self.guest
    }

    pub(super) fn latencies(&self) -> Latencies {
        self.tally.latencies()
    }

    pub(super) fn rival(&self) -> Rival {
        self.tally.rival()
    }

    pub(super) fn take_turn(&mut self, slices: &Slices, stop: &AtomicBool) -> anyhow::Result<()> {
        let role = self.role.name();
        self.turn(slices, stop)
            .with_context(|| format!("cannot measure the rival {role}"))
    }

    fn turn(&mut self, slices: &Slices, stop: &AtomicBool) -> anyhow::Result<()> {
        if !self.warm(stop)? {
            return Ok(());
        }
        if self.role.latencies_only() {
            self.start_walk()?;
            self.churn(slices, stop)?;
            self.replaces(slices, stop)?;
            self.stop_walk()?;
            return Ok(());
        }
        self.start_walk()?;
        wait(slices.idle, stop);
        let idle = work(&self.stop_walk()?);
        self.start_walk()?;
        let (faults, calls) = (self.faults(), self.mapper.slot_calls());
        let ops = self.churn(slices, stop)?;
        let (faults_after, calls_after) = (self.faults(), self.mapper.slot_calls());
        let churned = work(&self.stop_walk()?);
        if let (Some(idle), Some(churned)) = (idle, churned) {
            self.tally.kept.push(churned / idle);
        }
        self.tally.churn_ops = self.tally.churn_ops.saturating_add(ops);
        let calls = calls_after.saturating_sub(calls);
        self.tally.slot_calls = self.tally.slot_calls.saturating_add(calls);
        if let (Some(before), Some(after)) = (faults, faults_after) {
            let so_far = self.tally.churn_faults.unwrap_or(0);
            let new = after.saturating_sub(before);
            self.tally.churn_faults = Some(so_far.saturating_add(new));
        }
        self.start_walk()?;
        self.replaces(slices, stop)?;
        self.stop_walk()?;
        self.gap(slices, stop)
    }

    /// Lets the guest fault its memory in; false where the run was stopped meanwhile.
    fn warm(&self, stop: &AtomicBool) -> anyhow::Result<bool> {
        self.start_walk()?;
        let begun = Instant::now();
        let all_warm = || -> anyhow::Result<bool> {
            for vcpu in 0..self.guest.vcpu_count() {
                if self.guest.passes(vcpu)? < WARM_PASSES {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        let mut warm = all_warm()?;
        while !warm && !stop.load(Ordering::Relaxed) {
            ensure!(
                begun.elapsed() < WARM_LIMIT,
                "cannot warm the guest up: it made no {WARM_PASSES} passes over its memory in \
                 {WARM_LIMIT:?}; pass a smaller --working-set"
            );
            std::thread::sleep(Duration::from_millis(1));
            warm = all_warm()?;
        }
        self.stop_walk()?;
        Ok(warm)
    }

    /// Maps and unmaps at the rate asked for. Returns the number of operations.
    fn churn(&mut self, slices: &Slices, stop: &AtomicBool) -> anyhow::Result<u64> {
        let mut pace = Pace::new(slices.churn, slices.step);
        let mut ops = 0_u64;
        while pace.goes_on(stop) {
            let begun = Instant::now();
            self.mapper.map(self.blobs.current(), self.blob)?;
            record(&mut self.tally.map, begun.elapsed());
            pace.step();
            let begun = Instant::now();
            self.mapper.unmap(self.blob)?;
            record(&mut self.tally.unmap, begun.elapsed());
            pace.step();
            ops = ops.saturating_add(2);
        }
        Ok(ops)
    }

    /// Replaces one blob with the other, twice as often as churn maps.
    fn replaces(&mut self, slices: &Slices, stop: &AtomicBool) -> anyhow::Result<()> {
        self.mapper.map(self.blobs.current(), self.blob)?;
        let mut pace = Pace::new(slices.replace, slices.step);
        while pace.goes_on(stop) {
            self.blobs.turn();
            let begun = Instant::now();
            self.mapper.replace(self.blobs.current(), self.blob)?;
            record(&mut self.tally.replace, begun.elapsed());
            pace.step();
        }
        self.mapper.unmap(self.blob)
    }

    /// Replaces a page under a guest that spins on it.
    fn gap(&mut self, slices: &Slices, stop: &AtomicBool) -> anyhow::Result<()> {
        let first = self.blobs.number_the_next()?;
        self.mapper.map(self.blobs.current(), self.blob)?;
        self.guest.start(
            0,
            Program::Watch {
                page: WINDOW_BASE,
                expected: first,
            },
        )?;
        let mut gap = self.tally.gap.unwrap_or_default();
        let pace = Pace::new(slices.gap, Duration::ZERO);
        self.look()?;
        while pace.goes_on(stop) {
            let number = self.blobs.number_the_next()?;
            self.mapper.replace(self.blobs.current(), self.blob)?;
            self.guest.set_expected(0, number)?;
            // A replace that the guest never looked at proves nothing.
            if self.look()? {
                gap.replaces = gap.replaces.saturating_add(1);
            }
        }
        let stale = self.guest.stale(0)?;
        let ran = self.guest.stop(0)?;
        let Gap { exits, .. } = gap;
        gap.exits = exits.saturating_add(ran.efaults).saturating_add(ran.mmio);
        gap.stale = gap.stale.saturating_add(stale);
        self.tally.gap = Some(gap);
        self.mapper.unmap(self.blob)
    }

    /// Waits until the guest has looked at the page anew; false where it did not in time.
    fn look(&self) -> anyhow::Result<bool> {
        let begun = Instant::now();
        let before = self.guest.passes(0)?;
        while begun.elapsed() < LOOK_LIMIT {
            if self.guest.passes(0)? >= before.saturating_add(2) {
                return Ok(true);
            }
            std::hint::spin_loop();
        }
        Ok(false)
    }

    fn start_walk(&self) -> anyhow::Result<()> {
        for vcpu in 0..self.guest.vcpu_count() {
            self.guest.start(vcpu, self.walk)?;
        }
        Ok(())
    }

    fn stop_walk(&self) -> anyhow::Result<Vec<Ran>> {
        (0..self.guest.vcpu_count())
            .map(|vcpu| Ok(self.guest.stop(vcpu)?))
            .collect()
    }

    /// Guest page faults so far, of all vCPUs; `None` where the kernel does not count them.
    fn faults(&self) -> Option<u64> {
        (0..self.guest.vcpu_count()).try_fold(0_u64, |sum, vcpu| {
            let stats = self.guest.vcpu_stats(vcpu)?;
            Some(sum.saturating_add(stats.read("pf_taken").ok()??))
        })
    }
}

/// Guest accesses per second of vCPU-thread CPU time.
fn work(ran: &[Ran]) -> Option<f64> {
    let accesses: u64 = ran.iter().map(|ran| ran.accesses).sum();
    let cpu: f64 = ran.iter().map(|ran| ran.cpu.as_secs_f64()).sum();
    (accesses > 0 && cpu > 0.0).then(|| accesses as f64 / cpu)
}

/// Steps at a fixed rate until an end.
#[derive(Debug)]
struct Pace {
    next: Instant,
    end: Instant,
    step: Duration,
}

impl Pace {
    fn new(length: Duration, step: Duration) -> Self {
        let next = Instant::now();
        Self {
            next,
            end: next.checked_add(length).unwrap_or(next),
            step,
        }
    }

    fn goes_on(&self, stop: &AtomicBool) -> bool {
        Instant::now() < self.end && !stop.load(Ordering::Relaxed)
    }

    /// Waits for the next step. One that is late already is not made up for.
    fn step(&mut self) {
        let now = Instant::now();
        let next = self.next.checked_add(self.step).unwrap_or(now);
        self.next = next.max(now);
        std::thread::sleep(next.saturating_duration_since(now));
    }
}

fn wait(length: Duration, stop: &AtomicBool) {
    let mut pace = Pace::new(length, Duration::from_millis(10));
    while pace.goes_on(stop) {
        pace.step();
    }
}
