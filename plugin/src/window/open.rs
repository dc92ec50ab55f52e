//! Owns the opening of a window: its address space is reserved, all hole. Never registers a slot.

use std::sync::Arc;

use super::Window;
use super::counters::Tally;
use super::holes::HolePolicy;
use super::options::{WindowOptions, Zap};
use super::pins::{Pins, Turnstile};
use super::shared::Shared;
#[cfg(feature = "fault")]
use super::substitute::Substitutes;
use super::transaction::State;
use crate::arena::Arena;
use crate::arena::areas::Areas;
use crate::dma::table::DmaTable;
use crate::error::Error;
use crate::layout::Layout;
use crate::slots::table::SlotTable;
use crate::slots::{SlotNumbers, SlotProvider};
use crate::sync::Mutex;

impl WindowOptions {
    /// Opens the window: reserves its address space, all hole, and registers nothing yet.
    ///
    /// # Errors
    /// [`Error::BadRange`], [`Error::BadGuestAddress`] and [`Error::BadSegmentSize`] for figures
    /// that make no sense; [`Error::Reserve`] where the process has no room;
    /// [`Error::PreciseZapRefused`] where the hypervisor offers precise zapping and refuses it.
    pub fn open(
        self,
        provider: Arc<dyn SlotProvider>,
        numbers: SlotNumbers,
    ) -> Result<Window, Error> {
        let range = self.check()?;
        let (base, len) = (self.base, self.len);
        let reserve = |errno: rustix::io::Errno| Error::Reserve {
            len,
            source: errno.into(),
        };
        let mut arena = Arena::reserve(len, base).map_err(reserve)?;
        if self.holes == HolePolicy::Zero {
            arena.open_holes().map_err(reserve)?;
        }
        let zap = match self.zap {
            Zap::All => Zap::All,
            Zap::Precise => {
                let refused = |source| Error::PreciseZapRefused { source };
                if provider.enable_precise_zap().map_err(refused)? {
                    Zap::Precise
                } else {
                    Zap::All
                }
            }
        };
        let geometry = self.geometry(range, arena.address(0));
        let slots = SlotTable::new(Arc::clone(&provider), base, numbers);
        let shared = Shared {
            geometry,
            arena,
            backend: self.backend.backend(geometry),
            areas: Arc::new(Areas::new()),
            tally: Tally::default(),
            fallback: self.fallback,
            #[cfg(feature = "fault")]
            holes: self.holes,
            #[cfg(feature = "fault")]
            read_only_writes: self.read_only_writes,
            guest_prefault: provider.can_prefault(),
            provider,
            on_pinned: self.on_pinned,
            turnstile: Turnstile::default(),
        };
        let state = State {
            layout: Layout::default(),
            slots,
            dma: DmaTable::default(),
            #[cfg(feature = "fault")]
            substitutes: Substitutes::default(),
            #[cfg(feature = "fault")]
            changes: 0,
            poisoned: false,
            pins: Pins::default(),
        };
        let (kind, scratch) = (self.backend, self.scratch);
        Ok(Window {
            state: Mutex::new(state),
            shared,
            kind,
            zap,
            scratch,
            closed: false,
        })
    }
}
