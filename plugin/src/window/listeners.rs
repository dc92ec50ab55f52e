//! Owns a window's side of DMA: which of its mappings the listeners have, before and after each
//! change. Never changes memory or slots on its own account.
//!
//! What a change touches is unmapped from every listener before memory changes, and whatever the
//! layout has then is mapped after it; so is what a failure left in place. Where that cannot be
//! had, the window is poisoned.

use std::sync::Arc;

use super::Window;
use super::shared::Shared;
use super::transaction::State;
use crate::dma::table::{Part, Parts};
use crate::dma::{DmaListener, DmaListenerId};
use crate::error::{Error, StateAfter};
use crate::layout::Undo;
use crate::range::{GuestAddress, PageRange};

impl State {
    /// Takes everything that is about to change away from devices. What a failure leaves undone,
    /// [`map_dma`](Self::map_dma) puts back.
    pub(super) fn unmap_dma(&mut self, undos: &[Undo]) -> Result<(), Error> {
        if self.dma.is_empty() {
            return Ok(());
        }
        let changing: Vec<PageRange> = undos.iter().map(Undo::range).collect();
        self.dma.unmap(&changing)
    }

    /// Maps for DMA what the layout has in reach of `spans`, where that is not done already.
    pub(super) fn map_dma(&mut self, shared: &Shared, spans: &[PageRange]) -> Result<(), Error> {
        if self.dma.is_empty() {
            return Ok(());
        }
        // A device must never get a page that stands in for one while a guest instruction runs.
        #[cfg(feature = "fault")]
        self.make_way(shared, spans.iter().copied())?;
        let base = self.slots.base();
        let mappings = spans.iter().flat_map(|span| self.layout.overlapping(*span));
        let wanted: Parts = mappings
            .map(|mapping| {
                let (range, start) = (mapping.range, mapping.range.start());
                // The window's end was seen to fit.
                let guest = GuestAddress(base.0.saturating_add(start));
                let host = mapping
                    .in_place()
                    .unwrap_or_else(|| shared.arena.address(start));
                let writable = mapping.protection.is_writable();
                (start, Part::new(range, guest, host, writable))
            })
            .collect();
        self.dma.map(&wanted)
    }

    /// Moves slots and DMA to another guest address or, after a failure, neither.
    pub(super) fn relocate(&mut self, shared: &Shared, base: GuestAddress) -> Result<(), Error> {
        let all = [shared.geometry.window];
        let old = self.slots.base();
        let moved = self
            .dma
            .unmap(&all)
            .and_then(|()| self.slots.relocate(base))
            .and_then(|()| self.map_dma(shared, &all));
        let Err(error) = moved else {
            return Ok(());
        };
        if error.state_after() == StateAfter::Poisoned {
            return Err(error);
        }
        let mut put_back = Ok(());
        if self.slots.base() != old {
            put_back = self.dma.unmap(&all).and_then(|()| self.slots.relocate(old));
        }
        let put_back = put_back.and_then(|()| self.map_dma(shared, &all));
        Err(unless_stuck(error, put_back))
    }

    fn add_listener(
        &mut self,
        shared: &Shared,
        listener: Arc<dyn DmaListener>,
    ) -> Result<DmaListenerId, Error> {
        let all = shared.geometry.window;
        let id = self.dma.add(listener);
        let Err(error) = self.map_dma(shared, &[all]) else {
            return Ok(id);
        };
        let taken_back = self.dma.unmap_of(id, all);
        self.dma.forget(id);
        Err(unless_stuck(error, taken_back))
    }

    fn remove_listener(&mut self, shared: &Shared, id: DmaListenerId) -> Result<bool, Error> {
        let all = shared.geometry.window;
        let Err(error) = self.dma.unmap_of(id, all) else {
            return Ok(self.dma.forget(id));
        };
        let put_back = self.map_dma(shared, &[all]);
        Err(unless_stuck(error, put_back))
    }
}

/// `error`, which poisons where what it left undone could not be put back.
fn unless_stuck(error: Error, put_back: Result<(), Error>) -> Error {
    match put_back {
        Ok(()) => error,
        Err(second) => {
            log::warn!("cannot put back what is mapped for DMA: {second}");
            error.with_state(StateAfter::Poisoned)
        }
    }
}

impl Window {
    /// Tells `listener` of every mapping there is, and of every change from now on, so that
    /// devices reach what the guest reaches; see [`DmaListener`] for what it is told and when.
    /// Add a listener to a window once only.
    ///
    /// Calls that change the window wait for it: an IOMMU pins each page of what it maps.
    ///
    /// # Errors
    /// [`Error::Dma`] where a mapping could not be mapped. The listener has nothing mapped then
    /// and is told nothing more, or the window is poisoned where it kept something.
    pub fn add_dma_listener(&self, listener: Arc<dyn DmaListener>) -> Result<DmaListenerId, Error> {
        self.guarded(|state| state.add_listener(&self.shared, listener))
    }

    /// Unmaps everything from a listener, and tells it nothing more. Returns `false` where this
    /// window has no such listener, because it was removed before.
    ///
    /// # Errors
    /// [`Error::Dma`] where it did not unmap a mapping. The listener stays as it was then, with
    /// everything mapped, or the window is poisoned where that could not be had.
    pub fn remove_dma_listener(&self, listener: DmaListenerId) -> Result<bool, Error> {
        self.guarded(|state| state.remove_listener(&self.shared, listener))
    }
}
