//! Owns the three operations as each rival does them. Never measures them.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use anyhow::Context as _;
use vm_remap::{
    BackendKind, GuestAddress, PageRange, Prefault, Protection, SlotNumbers, SlotProvider, Source,
    Window, WindowOptions, Zap,
};

use super::plain::Plain;
use crate::guest::{GpaRange, Guest};

/// A rival's way to map a blob at the start of its window.
#[derive(Debug)]
pub(crate) enum Mapper {
    Window(Box<Window>),
    Plain(Plain),
}

impl Mapper {
    /// A window of the library; `None` where the host does not offer the zap asked for.
    pub(crate) fn window(
        guest: &Guest,
        window: GpaRange,
        backend: BackendKind,
        zap: Zap,
    ) -> anyhow::Result<Option<Self>> {
        let provider = Arc::clone(guest.vm());
        Self::window_with(provider, guest, window, backend, zap)
    }

    /// The same with a provider of the caller's own, for the guest's VM.
    pub(crate) fn window_with(
        provider: Arc<dyn SlotProvider>,
        guest: &Guest,
        window: GpaRange,
        backend: BackendKind,
        zap: Zap,
    ) -> anyhow::Result<Option<Self>> {
        // Two windows of one VM keep their numbers apart by where they lie.
        let first = if guest.layout().window() == Some(window) {
            16
        } else {
            32
        };
        let opened = WindowOptions::new(GuestAddress(window.base), window.len)
            .backend(backend)
            .zap(zap)
            .open(provider, SlotNumbers::new(first..first.saturating_add(16)))
            .with_context(|| format!("cannot open a window with backend {backend}"))?;
        Ok((opened.zap() == zap).then_some(Self::Window(Box::new(opened))))
    }

    /// Reserve + `MAP_FIXED` under a registered memslot.
    pub(crate) fn plain(guest: &Guest, window: GpaRange) -> anyhow::Result<Self> {
        Ok(Self::Plain(Plain::new(
            window,
            Some(Arc::clone(guest.vm())),
        )?))
    }

    /// The same with no memslot.
    pub(crate) fn bare(window: GpaRange) -> anyhow::Result<Self> {
        Ok(Self::Plain(Plain::new(window, None)?))
    }

    pub(crate) fn map(&self, fd: BorrowedFd<'_>, len: u64) -> anyhow::Result<()> {
        self.map_prefaulted(fd, len, Prefault::None)
    }

    /// As [`map`](Self::map); `plain` knows no prefault.
    pub(crate) fn map_prefaulted(
        &self,
        fd: BorrowedFd<'_>,
        len: u64,
        prefault: Prefault,
    ) -> anyhow::Result<()> {
        match self {
            Self::Window(window) => {
                let source = Source::descriptor(fd, 0).prefault(prefault);
                window.map(PageRange::new(0, len)?, &source, Protection::ReadWrite)?;
            }
            Self::Plain(plain) => plain.map(fd, usize::try_from(len)?)?,
        }
        Ok(())
    }

    pub(crate) fn replace(&self, fd: BorrowedFd<'_>, len: u64) -> anyhow::Result<()> {
        match self {
            Self::Window(window) => {
                let source = Source::descriptor(fd, 0);
                window.replace(PageRange::new(0, len)?, &source, Protection::ReadWrite)?;
            }
            Self::Plain(plain) => plain.map(fd, usize::try_from(len)?)?,
        }
        Ok(())
    }

    pub(crate) fn unmap(&self, len: u64) -> anyhow::Result<()> {
        match self {
            Self::Window(window) => window.unmap(PageRange::new(0, len)?)?,
            Self::Plain(plain) => plain.unmap(usize::try_from(len)?)?,
        }
        Ok(())
    }

    /// Memslot calls made so far. `plain` registers its one slot before anything is measured.
    pub(crate) fn slot_calls(&self) -> u64 {
        match self {
            Self::Window(window) => {
                let counters = window.counters();
                counters
                    .slots_registered
                    .saturating_add(counters.slots_unregistered)
            }
            Self::Plain(_) => 0,
        }
    }
}
