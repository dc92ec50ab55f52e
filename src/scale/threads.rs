//! Owns what several threads do at once: each maps and unmaps a blob of its own, again and again,
//! on four grounds that share less and less. Never sums anything up.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use vm_remap::{GuestAddress, PageRange, Protection, SlotNumbers, Source, Window, WindowOptions};

use crate::bench::WINDOW_BASE;
use crate::bench::blob::{Owner, file};
use crate::bench::mapper::Mapper;
use crate::guest::{GpaRange, Guest, GuestConfig};

/// The window of one thread, and its part of the window that all share.
const PART: u64 = 64 << 20;
const BLOB: u64 = 64 << 10;

/// What the threads work on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ground {
    /// Parts of one window: its lock, `mmap_lock` and the CPUs are shared.
    OneWindow,
    /// A window each, in the same VM: `mmap_lock` and the CPUs are shared.
    OwnWindows,
    /// Address space of their own and no window: `mmap_lock` and the CPUs are shared.
    Bare,
    /// A system call that takes no lock: the CPUs are shared.
    NoLock,
}

impl Ground {
    pub(super) const ALL: [Self; 4] = [Self::OneWindow, Self::OwnWindows, Self::Bare, Self::NoLock];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::OneWindow => "one-window",
            Self::OwnWindows => "own-windows",
            Self::Bare => "bare",
            Self::NoLock => "no-lock",
        }
    }
}

/// Calls per second, one figure a round, by ground and number of threads.
pub(super) type Rates = BTreeMap<(Ground, usize), Vec<f64>>;

/// All four grounds.
#[derive(Debug)]
pub(super) struct Grounds {
    // Before the guest: a window closes before its VM does.
    shared: Window,
    own: Vec<Window>,
    guest: Guest,
    files: Vec<File>,
    rates: Rates,
}

impl Grounds {
    pub(super) fn new(threads: &[usize]) -> anyhow::Result<Self> {
        let most = threads.iter().copied().max().unwrap_or(1);
        let parts = (most as u64).saturating_mul(PART);
        let guest = Guest::open(&GuestConfig {
            ram_len: 16 << 20,
            vcpus: 1,
            window: Some(GpaRange {
                base: WINDOW_BASE,
                len: parts.saturating_mul(2),
            }),
        })?;
        let open = |part: u64, len: u64| {
            let base = WINDOW_BASE.saturating_add(part.saturating_mul(PART));
            let first = u32::try_from(part)?.saturating_add(16);
            let numbers = SlotNumbers::new(first..first.saturating_add(1));
            let options = WindowOptions::new(GuestAddress(base), len).segment_size(len);
            anyhow::Ok(options.open(Arc::clone(guest.vm()) as _, numbers)?)
        };
        let own = (0..most as u64).map(|part| open(part, PART));
        let own = own.collect::<anyhow::Result<_>>()?;
        let shared = open(most as u64, parts)?;
        let files = (0..most).map(|_| file(BLOB, Owner::Vmm));
        let files = files
            .collect::<std::io::Result<_>>()
            .context("cannot make a file for each thread")?;
        Ok(Self {
            shared,
            own,
            guest,
            files,
            rates: Rates::new(),
        })
    }

    /// A guest, to describe the host by.
    pub(super) fn guest(&self) -> &Guest {
        &self.guest
    }

    pub(super) fn rates(&self) -> &Rates {
        &self.rates
    }

    /// One turn of each ground with each number of threads.
    pub(super) fn take_turns(
        &mut self,
        threads: &[usize],
        slice: Duration,
        stop: &AtomicBool,
        progress: &mut dyn FnMut(&str),
    ) -> anyhow::Result<()> {
        for ground in Ground::ALL {
            for &threads in threads {
                if stop.load(Ordering::Relaxed) {
                    return Ok(());
                }
                let rate = self.rate(ground, threads, slice).with_context(|| {
                    format!("cannot measure {threads} threads on {}", ground.name())
                })?;
                self.rates.entry((ground, threads)).or_default().push(rate);
                progress(ground.name());
            }
        }
        Ok(())
    }

    /// Calls per second of all threads together.
    fn rate(&self, ground: Ground, threads: usize, slice: Duration) -> anyhow::Result<f64> {
        let end = AtomicBool::new(false);
        // One more: this thread counts the time.
        let start = Barrier::new(threads.saturating_add(1));
        std::thread::scope(|scope| {
            let spawn = |index| {
                let (start, end) = (&start, &end);
                scope.spawn(move || self.work(ground, index, start, end))
            };
            let handles: Vec<_> = (0..threads).map(spawn).collect();
            start.wait();
            let begun = Instant::now();
            std::thread::sleep(slice);
            end.store(true, Ordering::Relaxed);
            let took = begun.elapsed().as_secs_f64();
            let mut calls = 0_u64;
            for handle in handles {
                let made = handle.join().map_err(|_| anyhow!("a thread panicked"))??;
                calls = calls.saturating_add(made);
            }
            Ok(calls as f64 / took)
        })
    }

    /// One thread's calls until the end; it waits at `start` whatever happens.
    fn work(
        &self,
        ground: Ground,
        index: usize,
        start: &Barrier,
        end: &AtomicBool,
    ) -> anyhow::Result<u64> {
        let prepared = self.prepare(ground, index);
        start.wait();
        let mut pair = prepared?;
        let mut calls = 0_u64;
        while !end.load(Ordering::Relaxed) {
            pair()?;
            calls = calls.saturating_add(2);
        }
        Ok(calls)
    }

    /// Two calls of a thread: a map and an unmap.
    fn prepare(
        &self,
        ground: Ground,
        index: usize,
    ) -> anyhow::Result<Box<dyn FnMut() -> anyhow::Result<()> + '_>> {
        let file = self.files.get(index).context("cannot find a file")?;
        let on_window = |window: &'_ Window, offset| {
            let range = PageRange::new(offset, BLOB)?;
            let source = Source::descriptor(file.as_fd(), 0);
            window.map(range, &source, Protection::ReadWrite)?;
            anyhow::Ok(window.unmap(range)?)
        };
        Ok(match ground {
            Ground::OneWindow => {
                let offset = (index as u64).saturating_mul(PART);
                Box::new(move || on_window(&self.shared, offset))
            }
            Ground::OwnWindows => {
                let window = self.own.get(index).context("cannot find a window")?;
                Box::new(move || on_window(window, 0))
            }
            Ground::Bare => {
                let reserved = Mapper::bare(GpaRange { base: 0, len: PART })?;
                Box::new(move || {
                    reserved.map(file.as_fd(), BLOB)?;
                    reserved.unmap(BLOB)
                })
            }
            Ground::NoLock => Box::new(|| {
                for _ in 0..2 {
                    std::hint::black_box(rustix::process::getppid());
                }
                Ok(())
            }),
        })
    }
}
