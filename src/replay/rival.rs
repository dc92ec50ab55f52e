//! Owns one rival's replay of a trace: when each operation is due, what it took, and what the guest
//! got done meanwhile. Never sums anything up.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use hdrhistogram::Histogram;
use vm_remap::PageRange;

use crate::bench::blob::{Owner, file};
use crate::bench::mapper::Mapper;
use crate::bench::pace::wait;
use crate::bench::tally::{LONGEST, record};
use crate::bench::walk::{Walk, work};
use crate::guest::Guest;
use crate::trace::{Action, Kind, Operation, Placed, Trace};

/// How long the guest is watched undisturbed before each replay.
const IDLE: Duration = Duration::from_millis(500);
/// The longest sleep, so that Ctrl-C is heard.
const NAP: Duration = Duration::from_millis(50);

/// Which rival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Memslot,
    Precise,
    Plain,
    Fixed,
}

impl Role {
    pub(super) const ALL: [Self; 4] = [Self::Memslot, Self::Precise, Self::Plain, Self::Fixed];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Memslot => "memslot",
            Self::Precise => "memslot-precise",
            Self::Plain => "plain",
            Self::Fixed => "fixed",
        }
    }
}

/// Two files of each kind of memory that a trace has.
#[derive(Debug)]
pub(super) struct Supply {
    files: BTreeMap<Kind, [File; 2]>,
    turn: usize,
}

impl Supply {
    pub(super) fn of(trace: &Trace) -> anyhow::Result<Self> {
        let mut sizes: BTreeMap<u64, u64> = BTreeMap::new();
        let mut largest: BTreeMap<Kind, u64> = BTreeMap::new();
        let mut need = |kind, len| {
            let most = largest.entry(kind).or_insert(len);
            *most = len.max(*most);
        };
        for step in &trace.steps {
            match step.operation {
                Operation::Map { id, len, kind, .. } => {
                    sizes.insert(id, len);
                    need(kind, len);
                }
                Operation::Replace { id, kind } => need(kind, sizes.get(&id).copied().unwrap_or(0)),
                Operation::Unmap { .. } => {}
            }
        }
        let pair = |(kind, len): (Kind, u64)| {
            let owner = match kind {
                Kind::Own => Owner::Vmm,
                Kind::Peer => Owner::Peer,
            };
            let file = || {
                file(len, owner)
                    .with_context(|| format!("cannot make a file of {len:#x} bytes in memory"))
            };
            anyhow::Ok((kind, [file()?, file()?]))
        };
        Ok(Self {
            files: largest.into_iter().map(pair).collect::<Result<_, _>>()?,
            turn: 0,
        })
    }

    /// The files of a kind in turns: two neighbours are never one area for the kernel.
    fn next(&mut self, kind: Kind) -> anyhow::Result<BorrowedFd<'_>> {
        self.turn ^= 1;
        let pair = self.files.get(&kind);
        let file = pair.and_then(|pair| pair.get(self.turn));
        Ok(file.context("cannot find memory of a kind")?.as_fd())
    }
}

/// What operations took, in nanoseconds.
#[derive(Debug)]
pub(super) struct Took {
    pub(super) map: Histogram<u64>,
    pub(super) replace: Histogram<u64>,
    pub(super) unmap: Histogram<u64>,
    /// How much later than in the trace each began.
    pub(super) late: Histogram<u64>,
    /// Guest work while the trace ran, as a share of the same turn's undisturbed work.
    pub(super) kept: Vec<f64>,
}

/// One rival with its guest and its figures.
#[derive(Debug)]
pub(super) struct Rival {
    role: Role,
    // Before the guest: a window closes before its VM does.
    mapper: Mapper,
    walk: Walk,
    pub(super) took: Took,
}

impl Rival {
    pub(super) fn new(
        role: Role,
        mapper: Mapper,
        guest: Arc<Guest>,
        working_set: u64,
    ) -> anyhow::Result<Self> {
        let histogram = || Histogram::new_with_max(LONGEST, 3);
        Ok(Self {
            role,
            mapper,
            walk: Walk::new(guest, working_set),
            took: Took {
                map: histogram()?,
                replace: histogram()?,
                unmap: histogram()?,
                late: histogram()?,
                kept: Vec::new(),
            },
        })
    }

    pub(super) fn role(&self) -> Role {
        self.role
    }

    pub(super) fn guest(&self) -> &Guest {
        self.walk.guest()
    }

    /// The alignment for a mapping of `len` bytes, if the rival is the library's own.
    pub(super) fn alignment(&self, len: u64) -> Option<u64> {
        match (&self.mapper, self.role) {
            (Mapper::Window(window), Role::Fixed) => Some(window.preferred_alignment(len)),
            _ => None,
        }
    }

    /// One replay.
    pub(super) fn take_turn(
        &mut self,
        steps: &[Placed],
        supply: &mut Supply,
        stop: &AtomicBool,
    ) -> anyhow::Result<()> {
        let name = self.role.name();
        self.turn(steps, supply, stop)
            .with_context(|| format!("cannot measure the rival {name}"))
    }

    fn turn(
        &mut self,
        steps: &[Placed],
        supply: &mut Supply,
        stop: &AtomicBool,
    ) -> anyhow::Result<()> {
        // The segments are registered on first use, which is no steady state.
        self.touch_segments(steps, supply)?;
        if !self.walk.warm(stop)? {
            return Ok(());
        }
        self.walk.start()?;
        wait(IDLE, stop);
        let idle = work(&self.walk.stop()?);
        self.walk.start()?;
        let mut live = BTreeSet::new();
        self.replay(steps, supply, &mut live, stop)?;
        let busy = work(&self.walk.stop()?);
        if let (Some(idle), Some(busy)) = (idle, busy)
            && !stop.load(Ordering::Relaxed)
        {
            self.took.kept.push(busy / idle);
        }
        live.into_iter()
            .try_for_each(|range| self.mapper.unmap_at(range))
    }

    fn touch_segments(&self, steps: &[Placed], supply: &mut Supply) -> anyhow::Result<()> {
        if self.role != Role::Fixed {
            return Ok(());
        }
        let mut seen = BTreeSet::new();
        for step in steps {
            let segments = step.range.start() >> 30..=step.range.end().saturating_sub(1) >> 30;
            if let Action::Map(kind) = step.action
                && segments.into_iter().any(|segment| seen.insert(segment))
            {
                self.mapper.map_at(step.range, supply.next(kind)?)?;
                self.mapper.unmap_at(step.range)?;
            }
        }
        Ok(())
    }

    fn replay(
        &mut self,
        steps: &[Placed],
        supply: &mut Supply,
        live: &mut BTreeSet<PageRange>,
        stop: &AtomicBool,
    ) -> anyhow::Result<()> {
        let start = Instant::now();
        for step in steps {
            if !sleep_until(start, step.at, stop) {
                return Ok(());
            }
            record(&mut self.took.late, start.elapsed().saturating_sub(step.at));
            let range = step.range;
            let fd = match step.action {
                Action::Map(kind) | Action::Replace(kind) => Some(supply.next(kind)?),
                Action::Unmap => None,
            };
            let begun = Instant::now();
            match (step.action, fd) {
                (Action::Map(_), Some(fd)) => self.mapper.map_at(range, fd)?,
                (Action::Replace(_), Some(fd)) => self.mapper.replace_at(range, fd)?,
                _ => self.mapper.unmap_at(range)?,
            }
            let took = begun.elapsed();
            let histogram = match step.action {
                Action::Map(_) => {
                    live.insert(range);
                    &mut self.took.map
                }
                Action::Replace(_) => &mut self.took.replace,
                Action::Unmap => {
                    live.remove(&range);
                    &mut self.took.unmap
                }
            };
            record(histogram, took);
        }
        Ok(())
    }
}

/// False where the run was stopped meanwhile.
fn sleep_until(start: Instant, due: Duration, stop: &AtomicBool) -> bool {
    loop {
        if stop.load(Ordering::Relaxed) {
            return false;
        }
        let left = due.saturating_sub(start.elapsed());
        if left.is_zero() {
            return true;
        }
        std::thread::sleep(left.min(NAP));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_as_large_as_what_is_mapped_of_their_kind() {
        let text =
            "vm-remap-trace 1 1M\n0 map 1 0 64K own\n0 map 2 64K 4K peer\n0 replace 1 peer\n";
        let trace = Trace::read(text.as_bytes()).unwrap();
        let mut supply = Supply::of(&trace).unwrap();
        for kind in Kind::ALL {
            let inodes = [0; 2].map(|_| {
                let found = rustix::fs::fstat(supply.next(kind).unwrap()).unwrap();
                assert_eq!(found.st_size, 64 << 10, "{kind:?}");
                found.st_ino
            });
            assert_ne!(inodes[0], inodes[1], "the files take turns");
        }
    }

    #[test]
    fn a_time_that_is_past_is_not_waited_for() {
        let stop = AtomicBool::new(false);
        assert!(sleep_until(Instant::now(), Duration::ZERO, &stop));
        stop.store(true, Ordering::Relaxed);
        assert!(!sleep_until(Instant::now(), Duration::from_secs(99), &stop));
    }
}
