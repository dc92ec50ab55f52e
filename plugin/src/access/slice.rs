//! Owns the memory that volatile slices are made of: pinned and stable memory of a window, or a
//! buffer of our own. Never makes one of memory that can vanish.

// UNSAFETY: vm-memory makes a volatile slice of an address on the caller's word alone.
#![expect(
    unsafe_code,
    reason = "a volatile slice of an address is made on trust"
)]

use std::ptr::{self, NonNull};
use std::rc::Rc;

use vm_memory::VolatileSlice;
use vm_memory::bitmap::{BS, Bitmap};

use super::bounce::Bounce;
use super::pin::Pin;
use super::tracking::{Kept, Pinning, PinningSlice};

/// A slice of a region with the bitmap `Pinning<B>`.
type Slice<'a, B> = VolatileSlice<'a, PinningSlice<'a, BS<'a, B>>>;

impl Pin<'_> {
    /// The pinned memory for direct, volatile access; `None` unless all of it
    /// [is stable](Self::is_stable) and writable, since a slice can always be written.
    ///
    /// Writes are not marked in any dirty bitmap: see [`Window::mark_dirty`](crate::Window::mark_dirty).
    #[must_use]
    pub fn slice(&self) -> Option<VolatileSlice<'_>> {
        let address = self.direct()?;
        let len = usize::try_from(self.range().len()).ok()?;
        // SAFETY: as in `pinned`, for the whole range of the pin, which the slice borrows.
        Some(unsafe { VolatileSlice::new(address, len) })
    }

    /// Host address of the first byte, where all of the pin is stable and writable. Stable memory
    /// lies in the arena, so it is in one piece.
    fn direct(&self) -> Option<*mut u8> {
        let address = self.stable_address()?;
        Some(ptr::with_exposed_provenance_mut(
            usize::try_from(address).ok()?,
        ))
    }
}

/// `len` bytes of `pin` from `offset` on, as the slice that lies `at` bytes into the region of
/// `tracking`; `None` where [`Pin::slice`] is. The slice keeps the pin.
pub(super) fn pinned<'a, B: Bitmap>(
    tracking: &'a Pinning<B>,
    at: usize,
    pin: &Rc<Pin<'a>>,
    offset: u64,
    len: usize,
) -> Option<Slice<'a, B>> {
    let address = pin.direct()?;
    let end = offset.checked_add(len as u64)?;
    let address = address.wrapping_add(usize::try_from(offset).ok()?);
    if end > pin.range().len() {
        return None;
    }
    let keeps_pin = tracking.keeping(at, Kept::Pinned(Rc::clone(pin), offset));
    // SAFETY: the bytes lie in the pin, by the check above. The pin is kept by the slice's bitmap,
    // and by that of every slice made of it (`IommuMemory` exchanges bitmaps, and the region's
    // documentation forbids that); while it lives nothing else is mapped there, and the
    // window lives too, since the pin borrows it. The memory is stable and writable, so no access
    // raises a signal. No Rust reference points there, and whoever else uses the memory is the
    // guest, or goes by the same rules.
    Some(unsafe { VolatileSlice::with_bitmap(address, len, keeps_pin, None) })
}

/// All of a copy, as the slice that lies `at` bytes into the region of `tracking`. The slice keeps
/// the copy.
pub(super) fn copied<'a, B: Bitmap>(
    tracking: &'a Pinning<B>,
    at: usize,
    bounce: &Rc<Bounce<'a>>,
) -> Slice<'a, B> {
    let Buffer { len, .. } = *bounce.buffer();
    let start = bounce.buffer().start();
    let keeps_copy = tracking.keeping(at, Kept::Copied(Rc::clone(bounce)));
    // SAFETY: `start` and `len` are the buffer's own. It is kept by the slice's bitmap and by that
    // of every slice made of it, and only volatile slices reach its bytes.
    unsafe { VolatileSlice::with_bitmap(start, len, keeps_copy, None) }
}

/// Bytes of our own that volatile slices point to. They lie at an odd address: an atomic access,
/// which would reach the copy only, fails for its alignment.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: NonNull<[u8]>,
    skip: usize,
    len: usize,
}

impl Buffer {
    /// A buffer of `len` bytes, filled by `fill`.
    pub(super) fn filled<E>(
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut bytes = vec![0; len.saturating_add(1)].into_boxed_slice();
        let skip = usize::from(bytes.as_ptr().addr().is_multiple_of(2));
        let end = skip.saturating_add(len);
        fill(bytes.get_mut(skip..end).unwrap_or_default())?;
        let bytes = NonNull::from(Box::leak(bytes));
        Ok(Self { bytes, skip, len })
    }

    /// All of the buffer.
    pub(super) fn slice(&self) -> VolatileSlice<'_> {
        // SAFETY: start and length are the buffer's own, which the slice borrows, and only
        // volatile slices reach its bytes.
        unsafe { VolatileSlice::new(self.start(), self.len) }
    }

    fn start(&self) -> *mut u8 {
        self.bytes.cast::<u8>().as_ptr().wrapping_add(self.skip)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the pointer came from a box that nobody else frees, and every slice of it is
        // gone, or this would still be kept.
        drop(unsafe { Box::from_raw(self.bytes.as_ptr()) });
    }
}

/// A slice of no bytes, `at` bytes into the region of `tracking`.
pub(super) fn empty<B: Bitmap>(tracking: &Pinning<B>, at: usize) -> Slice<'_, B> {
    let nothing = tracking.slice_at(at);
    // SAFETY: there is no byte to access.
    unsafe { VolatileSlice::with_bitmap(NonNull::dangling().as_ptr(), 0, nothing, None) }
}
