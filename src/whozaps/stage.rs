//! Owns the guest that `--who-zaps` works on: its memory, and one window of each backend. Never
//! counts anything.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use vm_remap::{
    BackendKind, GuestAddress, OnWorkers, PageRange, Protection, SlotNumbers, Source, Window,
    WindowOptions,
};

use crate::guest::{Access, GpaRange, Guest, GuestConfig, PAGE, Touch};

/// Where the windows lie: first that of the backend `fixed`, then that of `memslot`.
const FIXED_BASE: u64 = 4 << 30;
const MEMSLOT_BASE: u64 = FIXED_BASE + WINDOW_LEN;
const WINDOW_LEN: u64 = 8 << 20;
/// What is mapped in a window.
const MAPPED: u64 = 1 << 20;
/// RAM that the guest has touched.
const POPULATED: u64 = 32 << 20;

/// Pages of a window that the guest has touched before it is remapped.
pub(super) const TOUCHED_PAGES: u64 = MAPPED / PAGE;

#[derive(Debug)]
pub(super) struct Stage {
    // Before the guest: a window closes before its VM does.
    fixed: Window,
    memslot: Window,
    pub(super) guest: Guest,
    blobs: [File; 2],
}

impl Stage {
    pub(super) fn new() -> anyhow::Result<Self> {
        let guest = Guest::open(&GuestConfig {
            ram_len: POPULATED * 2,
            vcpus: 1,
            window: Some(GpaRange {
                base: FIXED_BASE,
                len: WINDOW_LEN * 2,
            }),
        })?;
        let window = |base, backend, numbers| {
            WindowOptions::new(GuestAddress(base), WINDOW_LEN)
                .segment_size(WINDOW_LEN / 2)
                .backend(backend)
                .open(Arc::clone(guest.vm()) as _, SlotNumbers::new(numbers))
                .with_context(|| format!("cannot open a window with backend {backend}"))
        };
        let stage = Self {
            fixed: window(FIXED_BASE, BackendKind::Fixed, 16..32)?,
            memslot: window(MEMSLOT_BASE, BackendKind::Memslot, 32..48)?,
            guest,
            blobs: [blob()?, blob()?],
        };
        stage.map(&stage.fixed)?;
        stage.create_memslot()?;
        Ok(stage)
    }

    /// Lets the guest touch its RAM and both windows, and stops it.
    pub(super) fn populate(&self) -> anyhow::Result<()> {
        let work = self.guest.layout().working_set().base;
        for (base, len) in [
            (work, POPULATED),
            (FIXED_BASE, MAPPED),
            (MEMSLOT_BASE, MAPPED),
        ] {
            let touched = self.guest.touch(0, base, len, Touch::Write)?;
            ensure!(
                touched == Access::Done(len / PAGE),
                "cannot populate the guest: its access to {len:#x} bytes at {base:#x} ended \
                 with {touched:?}"
            );
        }
        Ok(())
    }

    pub(super) fn create_memslot(&self) -> anyhow::Result<()> {
        self.map(&self.memslot)
    }

    pub(super) fn delete_memslot(&self) -> anyhow::Result<()> {
        Ok(self.memslot.unmap(PageRange::new(0, MAPPED)?)?)
    }

    pub(super) fn remap(&self) -> anyhow::Result<()> {
        let [_, other] = &self.blobs;
        let source = Source::descriptor(other.as_fd(), 0);
        let range = PageRange::new(0, MAPPED)?;
        Ok(self.fixed.replace(range, &source, Protection::ReadWrite)?)
    }

    pub(super) fn invalidate_roots(&self) -> anyhow::Result<()> {
        self.fixed.invalidate_roots(OnWorkers::Allow)?;
        Ok(())
    }

    fn map(&self, window: &Window) -> anyhow::Result<()> {
        let [first, _] = &self.blobs;
        let source = Source::descriptor(first.as_fd(), 0);
        Ok(window.map(PageRange::new(0, MAPPED)?, &source, Protection::ReadWrite)?)
    }
}

fn blob() -> anyhow::Result<File> {
    let make = || {
        let fd = memfd_create("who-zaps", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        let file = File::from(fd);
        file.set_len(MAPPED)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::SEAL)?;
        std::io::Result::Ok(file)
    };
    make().with_context(|| format!("cannot make a file of {MAPPED:#x} bytes in memory"))
}
