//! Owns a window's face towards vm-memory: one region of guest memory. Never hands out memory that
//! is not pinned as long as it is used.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use vm_memory::bitmap::{BS, Bitmap, NewBitmap};
use vm_memory::{
    Address, GuestAddress, GuestMemoryError, GuestMemoryRegion, MemoryRegionAddress, VolatileSlice,
};

use super::bounce::{Bounce, Copies};
use super::pin::Pin;
use super::slice;
use super::tracking::Pinning;
use crate::error::Error;
use crate::range::{PAGE_SIZE, PageRange};
use crate::window::Window;

/// What a [`WindowRegion`] hands out in place of memory that cannot be touched directly: memory
/// that can vanish under the access, and mappings that are read-only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Indirect {
    /// An error.
    Refuse,
    /// A copy. What is written to it reaches the window at once, as far as vm-memory knows of it:
    /// through its own methods and readers, and where a raw pointer was written through, not
    /// before `mark_dirty` is called on the slice's bitmap. Code that writes through raw pointers
    /// and does not say so must not be given this.
    ///
    /// A write that cannot be made, to a read-only mapping or past the end of a file that was
    /// truncated meanwhile, is dropped and [counted](WindowRegion::lost_writes). Atomic accesses
    /// fail, so rings have to lie in ordinary memory, or in stable memory.
    Copy {
        /// The most bytes that all copies of the region may take together. The guest chooses how
        /// many there are, so it is what a malicious one can make the VMM allocate.
        limit: usize,
    },
}

/// A window as a region of vm-memory's guest memory, so that a device finds buffers inside it.
///
/// Put it into a collection of [`MixedRegion`](crate::MixedRegion)s, next to ordinary memory. Each
/// slice keeps a [`Pin`] until it and all slices made of it are dropped: a device that holds on to
/// a descriptor chain's reader or writer keeps the buffers mapped, and changes of them wait.
/// A pointer that was taken out of a slice is good as long as the slice.
///
/// A slice of memory that [is stable](Pin::is_stable) and writable points to it; for any other,
/// [`Indirect`] says what happens. `read`, `write` and their like of the region itself copy
/// through a pin and need no such choice; vm-memory's collections use slices only.
///
/// **Not under an `IommuMemory`**: see [`new`](Self::new). Use the region's own `read` and `write`
/// there, or translate before.
///
/// Holes are errors: nothing is mapped at them, and so is memory whose file has been truncated.
///
/// The region keeps the guest address that the window has when it is made. When the window is
/// relocated, make another region and exchange the collection, as for any other change of it.
#[derive(Debug)]
pub struct WindowRegion<B = ()> {
    window: Arc<Window>,
    base: GuestAddress,
    bitmap: Pinning<B>,
    indirect: Indirect,
    copies: Copies,
}

impl<B: NewBitmap> WindowRegion<B> {
    /// The region of `window`, at the guest address that it has now. It keeps the window open.
    ///
    /// # Safety
    /// Neither the region nor a collection that it is in may lie under anything that gives slices
    /// another bitmap, as vm-memory's `IommuMemory` does (0.18, feature `iommu`): the pin goes with
    /// the old one, and the slice then points to memory that can change, or to a copy that is gone.
    #[expect(
        unsafe_code,
        reason = "only the caller knows what the region lies under"
    )]
    #[must_use]
    pub unsafe fn new(window: Arc<Window>, indirect: Indirect) -> Self {
        let len = usize::try_from(window.len()).unwrap_or(usize::MAX);
        let limit = match indirect {
            Indirect::Refuse => 0,
            Indirect::Copy { limit } => limit,
        };
        Self {
            base: GuestAddress(window.base().0),
            bitmap: Pinning::with_len(len),
            window,
            indirect,
            copies: Copies::new(limit),
        }
    }
}

impl<B> WindowRegion<B> {
    /// The window.
    #[must_use]
    pub fn window(&self) -> &Arc<Window> {
        &self.window
    }

    /// How often something written to a copy did not reach the window.
    #[must_use]
    pub fn lost_writes(&self) -> u64 {
        self.copies.lost()
    }

    pub(super) fn tracking(&self) -> &Pinning<B> {
        &self.bitmap
    }

    /// A pin of the pages around `len` bytes, of which there is at least one, and how far into it
    /// they begin.
    pub(super) fn pin(
        &self,
        start: MemoryRegionAddress,
        len: usize,
    ) -> Result<(Pin<'_>, u64), GuestMemoryError> {
        let invalid = GuestMemoryError::InvalidBackendAddress;
        let first = start.raw_value();
        let end = first.checked_add(len as u64);
        let end = end.filter(|end| *end <= self.window.len());
        let end = end.ok_or(GuestMemoryError::InvalidBackendAddress)?;
        let inside = first.checked_rem(PAGE_SIZE).unwrap_or(0);
        let aligned = first.saturating_sub(inside);
        let around = end.checked_next_multiple_of(PAGE_SIZE).unwrap_or(end);
        let range = PageRange::between(aligned, around).ok_or(invalid)?;
        Ok((self.window.pin(range).map_err(outward)?, inside))
    }
}

impl<B: Bitmap> GuestMemoryRegion for WindowRegion<B> {
    type B = Pinning<B>;

    fn len(&self) -> u64 {
        self.window.len()
    }

    fn start_addr(&self) -> GuestAddress {
        self.base
    }

    fn bitmap(&self) -> BS<'_, Self::B> {
        self.bitmap.slice_at(0)
    }

    /// Always an error: nothing would keep the memory behind a bare address where it is.
    fn get_host_address(&self, addr: MemoryRegionAddress) -> Result<*mut u8, GuestMemoryError> {
        let (pin, _) = self.pin(addr, 1)?;
        let range = pin.range();
        Err(outward(Error::NotDirect {
            range,
            reason: "nothing keeps the memory behind a bare address mapped",
        }))
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_, BS<'_, Self::B>>, GuestMemoryError> {
        let at = usize::try_from(offset.raw_value())
            .map_err(|_| GuestMemoryError::InvalidBackendAddress)?;
        if count == 0 {
            return Ok(slice::empty(&self.bitmap, at));
        }
        let (pin, inside) = self.pin(offset, count)?;
        let pin = Rc::new(pin);
        if let Some(direct) = slice::pinned(&self.bitmap, at, &pin, inside, count) {
            return Ok(direct);
        }
        let range = pin.range();
        let reason = not_direct(&pin);
        let pin = Rc::into_inner(pin).filter(|_| self.indirect != Indirect::Refuse);
        let pin = pin.ok_or_else(|| outward(Error::NotDirect { range, reason }))?;
        let bounce = Bounce::new(pin, inside, count, &self.copies).map_err(outward)?;
        Ok(slice::copied(&self.bitmap, at, &Rc::new(bounce)))
    }
}

/// Why a pin has no memory for direct access.
pub(super) fn not_direct(pin: &Pin<'_>) -> &'static str {
    if pin.is_writable() {
        "the memory behind it can vanish (seal its memfd with F_SEAL_SHRINK)"
    } else {
        "it is mapped read-only"
    }
}

/// The error as vm-memory has it: with its text, and in an `io::Error` of the kind that its number
/// stands for.
pub(super) fn outward(error: Error) -> GuestMemoryError {
    let kind = io::Error::from_raw_os_error(error.errno()).kind();
    GuestMemoryError::IOError(io::Error::new(kind, error))
}
