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
        let numbers = SlotNumbers::new(first..first.saturating_add(16));
        Self::open(provider, window, backend, zap, numbers)
    }

    /// A window that has all slot numbers that the VM has to give: the only window of its VM.
    pub(crate) fn window_of_many(
        guest: &Guest,
        window: GpaRange,
        backend: BackendKind,
        zap: Zap,
    ) -> anyhow::Result<Option<Self>> {
        let most = u32::try_from(guest.kvm().get_nr_memslots())?;
        let provider = Arc::clone(guest.vm());
        Self::open(provider, window, backend, zap, SlotNumbers::new(16..most))
    }

    fn open(
        provider: Arc<dyn SlotProvider>,
        window: GpaRange,
        backend: BackendKind,
        zap: Zap,
        numbers: SlotNumbers,
    ) -> anyhow::Result<Option<Self>> {
        let opened = WindowOptions::new(GuestAddress(window.base), window.len)
            .backend(backend)
            .zap(zap)
            .open(provider, numbers)
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
        self.place(PageRange::new(0, len)?, fd, prefault)
    }

    /// As [`map`](Self::map), anywhere in the window.
    pub(crate) fn map_at(&self, range: PageRange, fd: BorrowedFd<'_>) -> anyhow::Result<()> {
        self.place(range, fd, Prefault::None)
    }

    fn place(
        &self,
        range: PageRange,
        fd: BorrowedFd<'_>,
        prefault: Prefault,
    ) -> anyhow::Result<()> {
        match self {
            Self::Window(window) => {
                let source = Source::descriptor(fd, 0).prefault(prefault);
                window.map(range, &source, Protection::ReadWrite)?;
            }
            Self::Plain(plain) => plain.map(start(range)?, len(range)?, fd)?,
        }
        Ok(())
    }

    /// Makes huge pages of the first `len` bytes of a memfd, by mapping it for a moment; whether that
    /// was done. `plain` knows no such thing.
    pub(crate) fn collapse(&self, fd: BorrowedFd<'_>, len: u64) -> anyhow::Result<bool> {
        let Self::Window(window) = self else {
            return Ok(false);
        };
        let before = window.counters().collapsed;
        let range = PageRange::new(0, len)?;
        let source = Source::descriptor(fd, 0).collapse(true);
        window.map(range, &source, Protection::ReadWrite)?;
        window.unmap(range)?;
        Ok(window.counters().collapsed > before)
    }

    pub(crate) fn replace(&self, fd: BorrowedFd<'_>, len: u64) -> anyhow::Result<()> {
        self.replace_at(PageRange::new(0, len)?, fd)
    }

    /// As [`replace`](Self::replace), anywhere in the window.
    pub(crate) fn replace_at(&self, range: PageRange, fd: BorrowedFd<'_>) -> anyhow::Result<()> {
        match self {
            Self::Window(window) => {
                let source = Source::descriptor(fd, 0);
                window.replace(range, &source, Protection::ReadWrite)?;
            }
            Self::Plain(plain) => plain.map(start(range)?, len(range)?, fd)?,
        }
        Ok(())
    }

    pub(crate) fn unmap(&self, len: u64) -> anyhow::Result<()> {
        self.unmap_at(PageRange::new(0, len)?)
    }

    /// As [`unmap`](Self::unmap), anywhere in the window.
    pub(crate) fn unmap_at(&self, range: PageRange) -> anyhow::Result<()> {
        match self {
            Self::Window(window) => window.unmap(range)?,
            Self::Plain(plain) => plain.unmap(start(range)?, len(range)?)?,
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

fn start(range: PageRange) -> anyhow::Result<usize> {
    Ok(usize::try_from(range.start())?)
}

fn len(range: PageRange) -> anyhow::Result<usize> {
    Ok(usize::try_from(range.len())?)
}
