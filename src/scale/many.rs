//! Owns one rival's window and the mappings in it: fills it, measures calls among them, empties it.
//! Never sums anything up.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use hdrhistogram::Histogram;
use vm_remap::{BackendKind, GuestAddress, PageRange, Zap};

use super::{Options, memory};
use crate::bench::WINDOW_BASE;
use crate::bench::blob::{Owner, file};
use crate::bench::mapper::Mapper;
use crate::bench::tally::{LONGEST, record};
use crate::guest::{GpaRange, Guest, GuestConfig, PAGE};

const WINDOW: GpaRange = GpaRange {
    base: WINDOW_BASE,
    len: 256 << 20,
};
/// A page of memory and a page of hole: two neighbours would be one area for the kernel.
const STRIDE: u64 = 2 * PAGE;
/// How many files the mappings share; each of their own would need as many descriptors.
const FILES: u64 = 128;
/// From how many mappings on memory is counted, so that what else is allocated does not matter.
const COUNTED: u64 = 900;
const SEED: u64 = 5;

/// Which rival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Memslot,
    Plain,
    Fixed,
}

impl Role {
    pub(super) const ALL: [Self; 3] = [Self::Memslot, Self::Plain, Self::Fixed];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Memslot => "memslot",
            Self::Plain => "plain",
            Self::Fixed => "fixed",
        }
    }
}

/// What calls took while a number of mappings lived.
#[derive(Debug)]
pub(super) struct Took {
    pub(super) map: Histogram<u64>,
    pub(super) unmap: Histogram<u64>,
    pub(super) lookup: Histogram<u64>,
}

impl Took {
    pub(super) fn new() -> anyhow::Result<Self> {
        let histogram = || Histogram::new_with_max(LONGEST, 3);
        Ok(Self {
            map: histogram()?,
            unmap: histogram()?,
            lookup: histogram()?,
        })
    }
}

/// One rival with its window and its figures.
#[derive(Debug)]
pub(super) struct Many {
    role: Role,
    // Before the guest: a window closes before its VM does.
    mapper: Mapper,
    _guest: Guest,
    files: Vec<File>,
    random: fastrand::Rng,
    samples: u32,
    live: u64,
    took: BTreeMap<u64, Took>,
    bytes_per_mapping: Option<f64>,
}

impl Many {
    pub(super) fn new(role: Role, options: Options) -> anyhow::Result<Self> {
        let guest = Guest::open(&GuestConfig {
            ram_len: 16 << 20,
            vcpus: 1,
            window: Some(WINDOW),
        })?;
        let window = |backend| Mapper::window_of_many(&guest, WINDOW, backend, Zap::All);
        let mapper = match role {
            Role::Memslot => window(BackendKind::Memslot)?,
            Role::Fixed => window(BackendKind::Fixed)?,
            Role::Plain => Some(Mapper::plain(&guest, WINDOW)?),
        };
        let files = (0..FILES)
            .map(|_| file(PAGE, Owner::Vmm))
            .collect::<std::io::Result<_>>()
            .with_context(|| format!("cannot make {FILES} files in memory"))?;
        Ok(Self {
            role,
            mapper: mapper.context("cannot open a window")?,
            _guest: guest,
            files,
            random: fastrand::Rng::with_seed(SEED),
            samples: options.samples(),
            live: 0,
            took: BTreeMap::new(),
            bytes_per_mapping: None,
        })
    }

    pub(super) fn role(&self) -> Role {
        self.role
    }

    pub(super) fn took(&self, count: u64) -> Option<&Took> {
        self.took.get(&count)
    }

    pub(super) fn bytes_per_mapping(&self) -> Option<f64> {
        self.bytes_per_mapping
    }

    /// Measures at each of the counts, ascending, and leaves the window empty.
    pub(super) fn take_turn(
        &mut self,
        counts: &[u64],
        stop: &AtomicBool,
        progress: &mut dyn FnMut(&str),
    ) -> anyhow::Result<()> {
        let name = self.role.name();
        let measured = self.counts(counts, stop, progress);
        measured.with_context(|| format!("cannot measure the rival {name}"))
    }

    fn counts(
        &mut self,
        counts: &[u64],
        stop: &AtomicBool,
        progress: &mut dyn FnMut(&str),
    ) -> anyhow::Result<()> {
        for &count in counts {
            self.fill(count, stop)?;
            self.measure(count, stop)?;
            progress(self.role.name());
        }
        // Mappings that are left when it is interrupted go with the window.
        while self.live > 0 && !stop.load(Ordering::Relaxed) {
            let last = self.live.saturating_sub(1);
            self.mapper.unmap_at(place(last)?)?;
            self.live = last;
        }
        Ok(())
    }

    fn fill(&mut self, count: u64, stop: &AtomicBool) -> anyhow::Result<()> {
        let (from, before) = (self.live, memory::allocated());
        while self.live < count && !stop.load(Ordering::Relaxed) {
            self.map(self.live)?;
            self.live = self.live.saturating_add(1);
        }
        let added = self.live.saturating_sub(from);
        if added >= COUNTED {
            let grown = before
                .zip(memory::allocated())
                .map(|(before, after)| after.saturating_sub(before));
            self.bytes_per_mapping = grown.map(|grown| grown as f64 / added as f64);
        }
        Ok(())
    }

    /// Takes mappings anywhere among the living ones away and puts them back, and looks others up.
    fn measure(&mut self, count: u64, stop: &AtomicBool) -> anyhow::Result<()> {
        let mut took = match self.took.remove(&count) {
            Some(took) => took,
            None => Took::new()?,
        };
        for _ in 0..self.samples {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let index = self.random.u64(0..count);
            let begun = Instant::now();
            self.mapper.unmap_at(place(index)?)?;
            record(&mut took.unmap, begun.elapsed());
            let begun = Instant::now();
            self.map(index)?;
            record(&mut took.map, begun.elapsed());
            let index = self.random.u64(0..count);
            self.look_up(index, &mut took)?;
        }
        self.took.insert(count, took);
        Ok(())
    }

    fn look_up(&self, index: u64, took: &mut Took) -> anyhow::Result<()> {
        let Mapper::Window(window) = &self.mapper else {
            return Ok(());
        };
        let offset = place(index)?.start();
        let address = GuestAddress(WINDOW.base.saturating_add(offset));
        let begun = Instant::now();
        let found = window.lookup(address);
        record(&mut took.lookup, begun.elapsed());
        let found = found.map(|found| found.mapping.range().start());
        ensure!(
            found == Some(offset),
            "the window found {found:x?} at {offset:#x}"
        );
        Ok(())
    }

    fn map(&self, index: u64) -> anyhow::Result<()> {
        let file = index.checked_rem(FILES).unwrap_or(0);
        let file = self.files.get(usize::try_from(file)?);
        let file = file.context("cannot find the file of a mapping")?;
        self.mapper.map_at(place(index)?, file.as_fd())
    }
}

/// Where the mapping with this number lies.
fn place(index: u64) -> anyhow::Result<PageRange> {
    Ok(PageRange::new(index.saturating_mul(STRIDE), PAGE)?)
}
