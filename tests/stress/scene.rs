//! Owns what all threads of the test share: the guest, its windows, the files, and when it is over.
//! Never changes a window while they run.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_remap::Protection::{ReadOnly, ReadWrite};
use vm_remap::{
    BackendKind, GuestAddress, OnPinned, PageRange, SlotNumbers, Source, Window, WindowOptions,
};
use vm_remap_cli::guest::{GpaRange, Guest, PAGE, Program};

use crate::guest_support::{self, MIB, SLOT, wait_for};

/// Threads that change windows. The last one only replaces in its own part, which is never a hole.
pub(crate) const MAPPERS: u64 = 4;
/// Pages of a window; each mapper has a part of it, and the last part is everybody's.
pub(crate) const PAGES: u64 = 2048;
pub(crate) const PART: u64 = PAGES / 8;
/// The first page, in the first window, of the part whose file shrinks and grows.
pub(crate) const SHRINKING: u64 = MAPPERS * PART;
/// The window whose dirty log is on, and the first page of the part that only its keeper changes.
pub(crate) const LOGGED: usize = 1;
pub(crate) const LOGGED_PART: u64 = 0;
/// How long a change waits for pins.
const PATIENCE: Duration = Duration::from_millis(5);
const SEGMENTS: u64 = 4;
const BASE: u64 = 4 << 30;
/// From the start of one window to the start of the next.
const STRIDE: u64 = 32 * MIB;
pub(crate) const WINDOWS: usize = 2;
pub(crate) const BLOBS: usize = 6;
/// What the first word of each page of a file begins with, so that other memory shows.
const MAGIC: u64 = 0x5ca1;
/// The vCPUs: one walks what is always mapped, the others are those of `touch`.
const WALKER: usize = 0;
pub(crate) const READER: usize = 1;
pub(crate) const WRITER: usize = 2;

/// One way to run the test.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    pub(crate) backend: BackendKind,
    /// Whether a resolver has the guest's faults.
    pub(crate) resolved: bool,
}

impl Setting {
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let both = |backend| [false, true].map(|resolved| Self { backend, resolved });
        BackendKind::ALL.into_iter().flat_map(both)
    }
}

pub(crate) struct Scene {
    pub(crate) setting: Setting,
    pub(crate) windows: Vec<Arc<Window>>,
    /// Host address of each window's first byte.
    pub(crate) arenas: Vec<u64>,
    pub(crate) guest: Guest,
    blobs: Vec<File>,
    seed: u64,
    begun: Instant,
    lasts: Duration,
    broken: AtomicBool,
}

/// Ends the test for all where the thread that holds it panics.
pub(crate) struct Alarm<'a>(&'a AtomicBool);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

pub(crate) fn pages(start: u64, count: u64) -> PageRange {
    PageRange::new(start * PAGE, count * PAGE).unwrap()
}

/// What page `page` of blob `blob` begins with. Blobs are mapped at their own offset only, so a page
/// of the window shows its own number, whichever blob it is.
pub(crate) fn word(blob: usize, page: u64) -> u64 {
    (MAGIC << 48) | (page << 8) | (blob as u64 + 1)
}

/// Which blob a word that was read at `page` comes from.
pub(crate) fn blob_of(word: u64, page: u64) -> Option<usize> {
    let mut blobs = 0..BLOBS;
    blobs.find(|blob| self::word(*blob, page) == word)
}

/// The mappings of files that the process has.
pub(crate) fn mapped_files() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.contains("memfd:")).count()
}

fn blob(number: usize) -> File {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(memfd_create("stress", flags).unwrap());
    ftruncate(&file, PAGES * PAGE).unwrap();
    for page in 0..PAGES {
        let word = word(number, page).to_ne_bytes();
        file.write_all_at(&word, page * PAGE).unwrap();
    }
    if number % 2 == 1 {
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::SEAL).unwrap();
    }
    file
}

impl Scene {
    /// A guest with its windows, every segment registered; `None` where there is no KVM.
    pub(crate) fn open(test: &str, setting: Setting) -> Option<Self> {
        let len = STRIDE * WINDOWS as u64;
        let guest = guest_support::open(test, 3, Some(GpaRange { base: BASE, len }))?;
        let blobs: Vec<File> = (0..BLOBS).map(blob).collect();
        let open = |(base, number): (u64, u32)| {
            WindowOptions::new(GuestAddress(base), PAGES * PAGE)
                .segment_size(PAGES / SEGMENTS * PAGE)
                .backend(setting.backend)
                .on_pinned(OnPinned::Wait(PATIENCE))
                .open(
                    Arc::clone(guest.vm()) as _,
                    SlotNumbers::new(number..number + 4096),
                )
                .map(Arc::new)
                .unwrap()
        };
        let places = (0..).map(|index| BASE + index * STRIDE);
        let numbers = (0..).map(|index| SLOT + index * 4096);
        let windows: Vec<Arc<Window>> = places.zip(numbers).take(WINDOWS).map(open).collect();
        let all = Source::descriptor(blobs[0].as_fd(), 0);
        let mut arenas = Vec::new();
        for window in &windows {
            window.map(pages(0, PAGES), &all, ReadOnly).unwrap();
            arenas.push(window.lookup(window.base()).unwrap().host_address);
            window.unmap(pages(0, PAGES)).unwrap();
        }
        if setting.resolved {
            windows
                .iter()
                .for_each(|window| guest.resolver().add(window));
        }
        let seconds = variable("VM_REMAP_STRESS_SECONDS").unwrap_or(5);
        let scene = Self {
            setting,
            windows,
            arenas,
            guest,
            blobs,
            seed: variable("VM_REMAP_STRESS_SEED").unwrap_or(1),
            begun: Instant::now(),
            lasts: Duration::from_secs(seconds) / 4,
            broken: AtomicBool::new(false),
        };
        let (start, count) = scene.always_mapped();
        let source = scene.source(0, start);
        scene.windows[0]
            .map(pages(start, count), &source, ReadWrite)
            .unwrap();
        Some(scene)
    }

    /// The part of the first window that is replaced and never a hole.
    pub(crate) const fn always_mapped(&self) -> (u64, u64) {
        ((MAPPERS - 1) * PART, PART)
    }

    /// A blob, for the page of a window that it shall show from.
    pub(crate) fn source(&self, blob: usize, page: u64) -> Source<'_> {
        Source::descriptor(self.blobs[blob].as_fd(), page * PAGE).label(blob as u64)
    }

    pub(crate) fn guest_address(&self, window: usize, page: u64) -> u64 {
        BASE + window as u64 * STRIDE + page * PAGE
    }

    /// Whether a page of a window is one whose file shrinks and grows.
    pub(crate) fn shrinks(window: usize, page: u64) -> bool {
        window == 0 && (SHRINKING..SHRINKING + PART).contains(&page)
    }

    /// Whether there is never a hole for the guest at a page of a window.
    pub(crate) fn never_a_hole(&self, window: usize, page: u64) -> bool {
        let (start, count) = self.always_mapped();
        let there = window == 0 && (start..start + count).contains(&page);
        there && self.setting.backend == BackendKind::Fixed
    }

    /// Whether there is time left, and nothing broken.
    pub(crate) fn goes_on(&self) -> bool {
        self.begun.elapsed() < self.lasts && !self.broken.load(Ordering::Relaxed)
    }

    /// The same, and for as long as nothing was `done` yet: a slow machine must not fail for that.
    pub(crate) fn goes_on_with(&self, done: u64) -> bool {
        self.goes_on() || done == 0 && !self.broken.load(Ordering::Relaxed)
    }

    /// Whether the second half has begun.
    pub(crate) fn is_half_over(&self) -> bool {
        self.begun.elapsed() >= self.lasts / 2
    }

    pub(crate) fn alarm(&self) -> Alarm<'_> {
        Alarm(&self.broken)
    }

    /// Figures that look random, the same for the same seed and thread.
    pub(crate) fn random(&self, thread: u64) -> impl FnMut(u64) -> u64 {
        let mut state = (self.seed << 8 | thread) ^ 0x9e37_79b9_7f4a_7c15;
        move |below| {
            // xorshift64 of G. Marsaglia.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 16) % below
        }
    }

    /// Starts the guest's walk: over a whole window where its holes are resolved, else over what is
    /// always mapped.
    pub(crate) fn start_guest(&self) {
        let (start, count) = if self.setting.resolved {
            (0, PAGES)
        } else {
            self.always_mapped()
        };
        let base = self.guest_address(0, start);
        let len = count * PAGE;
        self.guest
            .start(WALKER, Program::Walk { base, len })
            .unwrap();
    }

    /// With `fixed`, a part that is replaced all the time is never missing for the guest. With a
    /// resolver, nothing that it finds ends its walk.
    pub(crate) fn stop_guest(&self) {
        let Setting { backend, resolved } = self.setting;
        if resolved {
            wait_for("walk over all holes", || {
                self.guest.passes(WALKER).unwrap() > 0
            });
        }
        let ran = self.guest.stop(WALKER).unwrap();
        assert!(ran.accesses > 0, "the guest did nothing");
        if resolved || backend == BackendKind::Fixed {
            assert_eq!((ran.efaults, ran.mmio), (0, 0), "{ran:?}");
        }
        if resolved {
            let counters = self.guest.resolver().counters();
            assert_eq!(counters.stops, 0, "{counters:?}");
            assert!(counters.holes > 0, "{counters:?}");
        }
    }

    /// What holds when all threads have ended; and the windows go.
    pub(crate) fn close(self) {
        for window in &self.windows {
            let counters = window.counters();
            let unregistered = counters.slots_unregistered;
            if self.setting.backend == BackendKind::Fixed {
                assert_eq!(
                    (counters.slots, unregistered),
                    (SEGMENTS, 0),
                    "slots did not rest"
                );
            }
            assert_eq!(counters.mappings, window.mappings().len() as u64);
            assert_eq!(counters.slots_registered - unregistered, counters.slots);
            assert_eq!(counters.pins, 0, "a pin is left");
        }
        self.check_blobs();
        for window in self.windows {
            let window = Arc::into_inner(window).unwrap();
            window.close().unwrap();
        }
    }

    /// What the guest has written lies in its own page, or nowhere.
    fn check_blobs(&self) {
        for (number, blob) in self.blobs.iter().enumerate() {
            for page in 0..PAGES {
                let mut words = [[0; 8]; 2];
                for (at, bytes) in (0..).zip(&mut words) {
                    blob.read_exact_at(bytes, page * PAGE + at * 8).unwrap();
                }
                let [first, second] = words.map(u64::from_ne_bytes);
                assert_eq!(first, word(number, page), "blob {number}, page {page}");
                let written = second == 0 || second == crate::touch::written(page);
                assert!(written, "blob {number}, page {page}: {second:#x}");
            }
        }
    }
}
