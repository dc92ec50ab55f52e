//! Owns one way to make a blob ready, with its guest: the map call, and the guest's first and
//! second touch of every page. Never sums anything up.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use vm_remap::{BackendKind, KvmSlots, Prefault, SlotProvider, Zap};

use super::blob::Supply;
use crate::bench::WINDOW_BASE;
use crate::bench::mapper::Mapper;
use crate::guest::{Access, GpaRange, Guest, GuestConfig, PAGE, Touch};

/// Which rival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Plain,
    Memslot,
    Fixed(Prefault),
}

impl Role {
    pub(super) const ALL: [Self; 6] = [
        Self::Plain,
        Self::Memslot,
        Self::Fixed(Prefault::None),
        Self::Fixed(Prefault::HostRead),
        Self::Fixed(Prefault::HostWrite),
        Self::Fixed(Prefault::Guest),
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Memslot => "memslot",
            Self::Fixed(Prefault::None) => "fixed",
            Self::Fixed(Prefault::HostRead) => "fixed-host-read",
            Self::Fixed(Prefault::HostWrite) => "fixed-host-write",
            Self::Fixed(Prefault::Guest) => "fixed-guest",
        }
    }

    fn prefault(self) -> Prefault {
        match self {
            Self::Fixed(prefault) => prefault,
            Self::Plain | Self::Memslot => Prefault::None,
        }
    }
}

/// A way to map, and the guest that looks. The ways of `fixed` share theirs.
#[derive(Debug)]
pub(super) struct Stage {
    // Before the guest: a window closes before its VM does.
    mapper: Mapper,
    guest: Guest,
}

/// What one map and two touches took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) ready: Duration,
    pub(super) warm: Duration,
    /// Guest faults from the call to the last touch; `None` where the kernel does not count them.
    pub(super) faults: Option<u64>,
}

/// The guests of all rivals.
#[derive(Debug)]
pub(super) struct Stages {
    plain: Stage,
    memslot: Stage,
    fixed: Stage,
    guest_prefault: bool,
}

impl Stages {
    pub(super) fn new(window: GpaRange) -> anyhow::Result<Self> {
        let guest = || -> anyhow::Result<Guest> {
            Ok(Guest::open(&GuestConfig {
                ram_len: 16 << 20,
                vcpus: 1,
                window: Some(window),
            })?)
        };
        let (plain, memslot, fixed) = (guest()?, guest()?, guest()?);
        let provider = KvmSlots::new(Arc::clone(fixed.vm()));
        let provider = Arc::new(provider.spare_vcpu(fixed.spare_vcpu()?));
        let guest_prefault = provider.can_prefault();
        let opened = |mapper: Option<Mapper>| mapper.context("cannot open a window of its own");
        let remapped = Mapper::window_with(provider, &fixed, window, BackendKind::Fixed, Zap::All)?;
        let slotted = Mapper::window(&memslot, window, BackendKind::Memslot, Zap::All)?;
        Ok(Self {
            plain: Stage {
                mapper: Mapper::plain(&plain, window)?,
                guest: plain,
            },
            memslot: Stage {
                mapper: opened(slotted)?,
                guest: memslot,
            },
            fixed: Stage {
                mapper: opened(remapped)?,
                guest: fixed,
            },
            guest_prefault,
        })
    }

    /// Makes huge pages of the first `len` bytes of a memfd; whether that was done.
    pub(super) fn collapse(&self, fd: BorrowedFd<'_>, len: u64) -> anyhow::Result<bool> {
        self.fixed.mapper.collapse(fd, len)
    }

    /// A guest, to describe the host by.
    pub(super) fn any_guest(&self) -> &Guest {
        &self.fixed.guest
    }

    /// Whether the host offers what the rival stands for.
    pub(super) fn offers(&self, role: Role) -> bool {
        role != Role::Fixed(Prefault::Guest) || self.guest_prefault
    }

    pub(super) fn sample(
        &self,
        role: Role,
        supply: &Supply,
        touch: Touch,
    ) -> anyhow::Result<Sample> {
        let stage = match role {
            Role::Plain => &self.plain,
            Role::Memslot => &self.memslot,
            Role::Fixed(_) => &self.fixed,
        };
        stage
            .sample(role.prefault(), supply, touch)
            .with_context(|| format!("cannot measure the rival {}", role.name()))
    }
}

impl Stage {
    fn sample(&self, prefault: Prefault, supply: &Supply, touch: Touch) -> anyhow::Result<Sample> {
        let blob = supply.next()?;
        // Deleting a memslot took the guest's code and tables from it: that is not this blob's cost.
        self.guest
            .read_u64(0, self.guest.layout().working_set().base)?;
        let before = self.faults();
        let begun = Instant::now();
        self.mapper
            .map_prefaulted(blob.as_fd(), supply.len, prefault)?;
        self.touch(supply.len, touch)?;
        let ready = begun.elapsed();
        let after = self.faults();
        let begun = Instant::now();
        self.touch(supply.len, touch)?;
        let warm = begun.elapsed();
        self.mapper.unmap(supply.len)?;
        Ok(Sample {
            ready,
            warm,
            faults: after
                .zip(before)
                .map(|(after, before)| after.saturating_sub(before)),
        })
    }

    fn touch(&self, len: u64, touch: Touch) -> anyhow::Result<()> {
        let touched = self.guest.touch(0, WINDOW_BASE, len, touch)?;
        let pages = len.checked_div(PAGE).unwrap_or(0);
        ensure!(
            touched == Access::Done(pages),
            "the guest did not reach all {pages} pages of the blob: {touched:?}"
        );
        Ok(())
    }

    fn faults(&self) -> Option<u64> {
        self.guest.vcpu_stats(0)?.read("pf_taken").ok()?
    }
}
