//! Owns a guest with a window, and one round of changes there: map, replace and unmap side by side,
//! one by one or in one batch, with the guest looking between. Never sums anything up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rustix::time::{ClockId, clock_gettime};
use vm_remap::{Batch, GuestAddress, PageRange, Protection, SlotNumbers, Source, Window};
use vm_remap::{Error, WindowOptions};

use super::EACH;
use super::files::Supply;
use crate::bench::WINDOW_BASE;
use crate::guest::stats::Stats;
use crate::guest::{Access, GpaRange, Guest, GuestConfig, PAGE, Touch};

/// What some changes took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Took {
    pub(super) time: Duration,
    /// CPU time of the calling thread, in which all of the work is done.
    pub(super) cpu: Duration,
    /// Flushes that KVM was asked for; `None` where the kernel does not count them.
    pub(super) flushes: Option<u64>,
}

/// Maps into holes, replaces of all that, and unmaps of it.
pub(super) type Sample = [Took; 3];

#[derive(Debug)]
pub(super) struct Stage {
    // Before the guest: a window closes before its VM does.
    window: Window,
    guest: Guest,
    stats: Option<Stats>,
}

#[derive(Clone, Copy, Debug)]
enum Operation {
    Map,
    Replace,
    Unmap,
}

impl Stage {
    /// With room for `most` changes.
    pub(super) fn new(most: u64) -> anyhow::Result<Self> {
        let window = GpaRange {
            base: WINDOW_BASE,
            len: EACH.saturating_mul(most),
        };
        let guest = Guest::open(&GuestConfig {
            ram_len: 16 << 20,
            vcpus: 1,
            window: Some(window),
        })?;
        let provider = Arc::clone(guest.vm());
        let window = WindowOptions::new(GuestAddress(window.base), window.len)
            .open(provider, SlotNumbers::new(16..32))
            .context("cannot open a window")?;
        let stats = guest.vm_stats();
        Ok(Self {
            window,
            guest,
            stats,
        })
    }

    pub(super) fn guest(&self) -> &Guest {
        &self.guest
    }

    pub(super) fn sample(
        &self,
        [old, new]: &[Supply; 2],
        count: u64,
        batch: bool,
    ) -> anyhow::Result<Sample> {
        let took = |operation, supply: &Supply| {
            let changes = changes(supply, count)?;
            self.took(operation, &changes, batch)
                .with_context(|| format!("cannot make {count} changes"))
        };
        let mapped = took(Operation::Map, old)?;
        self.touch(count)?;
        let replaced = took(Operation::Replace, new)?;
        self.touch(count)?;
        let unmapped = took(Operation::Unmap, new)?;
        Ok([mapped, replaced, unmapped])
    }

    fn took(
        &self,
        operation: Operation,
        changes: &[(PageRange, Source<'_>)],
        batch: bool,
    ) -> anyhow::Result<Took> {
        let before = self.flushes();
        let (begun, cpu) = (Instant::now(), cpu_time());
        if batch {
            self.together(operation, changes)?;
        } else {
            self.one_by_one(operation, changes)?;
        }
        let (time, cpu) = (begun.elapsed(), cpu_time().saturating_sub(cpu));
        let flushes = self.flushes().zip(before);
        let flushes = flushes.map(|(after, before)| after.saturating_sub(before));
        Ok(Took { time, cpu, flushes })
    }

    fn together(
        &self,
        operation: Operation,
        changes: &[(PageRange, Source<'_>)],
    ) -> Result<(), Error> {
        let mut batch = Batch::new();
        for (range, source) in changes {
            batch = match operation {
                Operation::Map => batch.map(*range, source, Protection::ReadWrite),
                Operation::Replace => batch.replace(*range, source, Protection::ReadWrite),
                Operation::Unmap => batch.unmap(*range),
            };
        }
        self.window.commit(&batch)
    }

    fn one_by_one(
        &self,
        operation: Operation,
        changes: &[(PageRange, Source<'_>)],
    ) -> Result<(), Error> {
        changes
            .iter()
            .try_for_each(|(range, source)| match operation {
                Operation::Map => self.window.map(*range, source, Protection::ReadWrite),
                Operation::Replace => self.window.replace(*range, source, Protection::ReadWrite),
                Operation::Unmap => self.window.unmap(*range),
            })
    }

    /// So that there is something to drop.
    fn touch(&self, count: u64) -> anyhow::Result<()> {
        let len = EACH.saturating_mul(count);
        let touched = self.guest.touch(0, WINDOW_BASE, len, Touch::Write)?;
        ensure!(
            touched == Access::Done(len.checked_div(PAGE).unwrap_or(0)),
            "the guest did not reach every page: {touched:?}"
        );
        Ok(())
    }

    fn flushes(&self) -> Option<u64> {
        let stats = self.stats.as_ref()?;
        stats.read("remote_tlb_flush_requests").ok()?
    }
}

fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    // Neither is ever negative.
    let whole = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(whole, u32::try_from(now.tv_nsec).unwrap_or(0))
}

fn changes(supply: &Supply, count: u64) -> anyhow::Result<Vec<(PageRange, Source<'_>)>> {
    (0..count)
        .map(|index| {
            let range = PageRange::new(index.saturating_mul(EACH), EACH)?;
            Ok((range, supply.source(index)?))
        })
        .collect()
}
