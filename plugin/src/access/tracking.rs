//! Owns the bitmap by which vm-memory's slices keep what they point to: each slice has a part of
//! its region's bitmap, and so has each slice made of it. Never makes a slice.

use std::rc::Rc;

use vm_memory::bitmap::{BS, Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};

use super::bounce::Bounce;
use super::pin::Pin;

/// The bitmap of a region that slices of a window can lie in: vm-memory's own bitmap `B`, and for
/// each slice the pin of what it points to.
///
/// A slice whose bitmap is exchanged loses its pin, and must not be used any more; vm-memory's
/// `IommuMemory` does that, see [`WindowRegion`](crate::WindowRegion).
///
/// A collection has one type of bitmap for all its regions, so the ordinary ones next to a window
/// have this as well: `GuestRegionMmap<Pinning<B>>`.
#[derive(Clone, Debug, Default)]
pub struct Pinning<B = ()> {
    inner: B,
}

/// The part of a [`Pinning`] that one slice has.
#[derive(Clone, Debug)]
pub struct PinningSlice<'a, S> {
    inner: S,
    kept: Kept<'a>,
    /// How far into what is kept the slice begins, in bytes.
    at: usize,
}

/// What a slice points to.
#[derive(Clone, Debug)]
pub(super) enum Kept<'a> {
    /// Memory that stays by itself.
    Nothing,
    /// Pinned memory of a window, from this byte of the pin on.
    Pinned(Rc<Pin<'a>>, u64),
    /// A copy of it.
    Copied(Rc<Bounce<'a>>),
}

impl<B: Bitmap> Pinning<B> {
    /// The bitmap of a slice `offset` bytes into the region, which keeps `kept`.
    pub(super) fn keeping<'a>(
        &'a self,
        offset: usize,
        kept: Kept<'a>,
    ) -> PinningSlice<'a, BS<'a, B>> {
        let inner = self.inner.slice_at(offset);
        PinningSlice { inner, kept, at: 0 }
    }

    /// The bitmap inside.
    pub fn inner(&self) -> &B {
        &self.inner
    }
}

impl<'a, B: Bitmap> WithBitmapSlice<'a> for Pinning<B> {
    type S = PinningSlice<'a, BS<'a, B>>;
}

impl<B: Bitmap> Bitmap for Pinning<B> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.inner.mark_dirty(offset, len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.inner.dirty_at(offset)
    }

    fn slice_at(&self, offset: usize) -> PinningSlice<'_, BS<'_, B>> {
        self.keeping(offset, Kept::Nothing)
    }
}

impl<B: NewBitmap> NewBitmap for Pinning<B> {
    fn with_len(len: usize) -> Self {
        let inner = B::with_len(len);
        Self { inner }
    }
}

impl<S: BitmapSlice> WithBitmapSlice<'_> for PinningSlice<'_, S> {
    type S = Self;
}

impl<S: BitmapSlice> BitmapSlice for PinningSlice<'_, S> {}

impl<S: BitmapSlice> Bitmap for PinningSlice<'_, S> {
    /// What was written to a copy is written to the window now, and what was written to the window
    /// is told to its dirty log.
    fn mark_dirty(&self, offset: usize, len: usize) {
        let at = self.at.saturating_add(offset);
        match &self.kept {
            Kept::Nothing => {}
            Kept::Pinned(pin, from) => pin.written(from.saturating_add(at as u64), len),
            Kept::Copied(bounce) => bounce.write_back(at, len),
        }
        self.inner.mark_dirty(offset, len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.inner.dirty_at(offset)
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self {
            inner: self.inner.slice_at(offset),
            kept: self.kept.clone(),
            at: self.at.saturating_add(offset),
        }
    }
}
