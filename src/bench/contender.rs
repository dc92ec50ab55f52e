//! Owns a rival's turn: the guest works undisturbed, then while the rival churns, then spins on a
//! page that is replaced. Never knows how the rival maps.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::blob::{Blobs, Owner};
use super::mapper::Mapper;
use super::pace::{Pace, wait};
use super::tally::{Gap, Tally, record};
use super::walk::{Walk, work};
use super::{Options, Slices, WINDOW_BASE};
use crate::guest::{Guest, Program};
use crate::report::{Latencies, Rival};

/// How long a guest may take to look at a page it spins on.
const LOOK_LIMIT: Duration = Duration::from_millis(2);

/// Which rival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Memslot,
    Precise,
    Plain,
    Fixed,
    Peer,
    Bare,
}

impl Role {
    pub(crate) fn name(self) -> &'static str {
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
pub(crate) struct Contender {
    role: Role,
    // Before the guest: a window closes before its VM does.
    mapper: Mapper,
    walk: Walk,
    blobs: Blobs,
    blob: u64,
    tally: Tally,
}

impl Contender {
    pub(super) fn new(
        role: Role,
        guest: Arc<Guest>,
        mapper: Mapper,
        options: &Options,
    ) -> anyhow::Result<Self> {
        let walk = Walk::new(guest, options.working_set);
        let blobs = Blobs::new(options.blob, role.owner())?;
        let contender = Self {
            role,
            mapper,
            walk,
            blobs,
            blob: options.blob,
            tally: Tally::new()?,
        };
        // The segment is registered on first use, which is no steady state.
        contender
            .mapper
            .map(contender.blobs.current(), contender.blob)?;
        contender.mapper.unmap(contender.blob)?;
        Ok(contender)
    }

    pub(crate) fn role(&self) -> Role {
        self.role
    }

    pub(crate) fn walk(&self) -> &Walk {
        &self.walk
    }

    pub(crate) fn guest(&self) -> &Guest {
        self.walk.guest()
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
        if !self.walk.warm(stop)? {
            return Ok(());
        }
        if self.role.latencies_only() {
            self.walk.start()?;
            self.churn(slices, stop)?;
            self.replaces(slices, stop)?;
            self.walk.stop()?;
            return Ok(());
        }
        self.walk.start()?;
        wait(slices.idle, stop);
        let idle = work(&self.walk.stop()?);
        self.walk.start()?;
        let (faults, calls) = (self.walk.faults(), self.mapper.slot_calls());
        let ops = self.churn(slices, stop)?;
        let (faults_after, calls_after) = (self.walk.faults(), self.mapper.slot_calls());
        let churned = work(&self.walk.stop()?);
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
        self.walk.start()?;
        self.replaces(slices, stop)?;
        self.walk.stop()?;
        self.gap(slices, stop)
    }

    /// Maps and unmaps at the rate asked for. Returns the number of operations.
    pub(crate) fn churn(&mut self, slices: &Slices, stop: &AtomicBool) -> anyhow::Result<u64> {
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
        self.walk.guest().start(
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
            self.walk.guest().set_expected(0, number)?;
            // A replace that the guest never looked at proves nothing.
            if self.look()? {
                gap.replaces = gap.replaces.saturating_add(1);
            }
        }
        let stale = self.walk.guest().stale(0)?;
        let ran = self.walk.guest().stop(0)?;
        let Gap { exits, .. } = gap;
        gap.exits = exits.saturating_add(ran.efaults).saturating_add(ran.mmio);
        gap.stale = gap.stale.saturating_add(stale);
        self.tally.gap = Some(gap);
        self.mapper.unmap(self.blob)
    }

    /// Waits until the guest has looked at the page anew; false where it did not in time.
    fn look(&self) -> anyhow::Result<bool> {
        let begun = Instant::now();
        let before = self.walk.guest().passes(0)?;
        while begun.elapsed() < LOOK_LIMIT {
            if self.walk.guest().passes(0)? >= before.saturating_add(2) {
                return Ok(true);
            }
            std::hint::spin_loop();
        }
        Ok(false)
    }
}
