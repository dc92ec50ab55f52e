//! Owns the pin: the one way by which the VMM itself reaches window memory. Never hands out a
//! reference into it.

use super::copy::{self, Short};
use crate::error::Error;
use crate::range::PageRange;
use crate::window::Window;
use crate::window::hold::{Hold, Part};

/// Leave to access a range of a window. What is mapped there cannot change while the pin lives.
///
/// A map, replace, unmap, batch or replay that overlaps the range waits until the pin is dropped,
/// or is refused with [`Error::Pinned`], as [`OnPinned`](crate::OnPinned) says. So keep pins
/// short. They nest, also on the same range. [`Window::relocate`] moves slots and no memory, and
/// goes on; a window with pins cannot be closed, since they borrow it.
///
/// The guest goes on using the memory meanwhile: what is read may change right after, and may be
/// a mix of old and new bytes.
///
/// A pin that another thread drops is best the last one that it holds: a pin counts for the thread
/// that made it, and further pins of another thread can wait for a change that waits for this one,
/// until that gives up.
///
/// What a guest writes to a read-only mapping, where a fault resolver drops that, can be read here
/// for the length of that one instruction.
///
/// No access raises a signal. Memory that is mapped and not there, because the file behind it was
/// truncated or has no page left, is an error.
///
/// ```
/// # use std::sync::Arc;
/// # use vm_remap::{GuestAddress, PageRange, Protection, Slot, SlotNumbers, SlotProvider, Source,
/// #     WindowOptions};
/// # #[derive(Debug)] struct Nobody;
/// # unsafe impl SlotProvider for Nobody {
/// #     unsafe fn register(&self, _: &Slot) -> std::io::Result<()> { Ok(()) }
/// #     fn unregister(&self, _: &Slot) -> std::io::Result<()> { Ok(()) }
/// # }
/// # let vm = Arc::new(Nobody);
/// let window = WindowOptions::new(GuestAddress(4 << 30), 1 << 30)
///     .open(vm, SlotNumbers::new(16..32))?;
/// let range = PageRange::new(0x1000, 0x2000)?;
/// window.map(range, &Source::anonymous(), Protection::ReadWrite)?;
///
/// let pin = window.pin(range)?;
/// pin.write(0x10, b"hello")?;
/// let mut bytes = [0; 5];
/// pin.read(0x10, &mut bytes)?;
/// assert_eq!(&bytes, b"hello");
/// drop(pin);
/// window.unmap(range)?;
/// # Ok::<(), vm_remap::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "what is mapped can change as soon as the pin is dropped"]
pub struct Pin<'a> {
    hold: Hold<'a>,
}

impl Window {
    /// Pins `range`, all of which must be mapped.
    ///
    /// Where a change waits for other pins of this range, the call waits until that change is made
    /// or has given up, unless the calling thread holds a pin of this window already.
    ///
    /// # Errors
    /// [`Error::NotMapped`] with the first hole; [`Error::OutsideWindow`]; [`Error::Poisoned`].
    pub fn pin(&self, range: PageRange) -> Result<Pin<'_>, Error> {
        self.hold(range).map(|hold| Pin { hold })
    }
}

impl Pin<'_> {
    /// The pinned range.
    #[must_use]
    pub fn range(&self) -> PageRange {
        self.hold.range()
    }

    /// Whether the guest, and so the VMM, may write all of it.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.hold.parts().iter().all(Part::is_writable)
    }

    /// Whether touching it never raises a signal: shared anonymous memory, and memfds that are
    /// sealed with `F_SEAL_SHRINK` on a host that does not account strictly
    /// (`vm.overcommit_memory` = 2). Memory that is not stable can be read and written all the
    /// same, by a system call for each copy.
    #[must_use]
    pub fn is_stable(&self) -> bool {
        self.hold.parts().iter().all(Part::is_stable)
    }

    /// The host address of the first byte, where all of the pin is stable and writable.
    #[cfg(feature = "vm-memory")]
    pub(super) fn stable_address(&self) -> Option<u64> {
        let good = self.is_stable() && self.is_writable();
        // Stable memory lies in the arena, so the parts follow each other there as well.
        let first = self.hold.parts().first().filter(|_| good)?;
        Some(first.host_address())
    }

    /// Fills `into` from `offset` on, counted in bytes from the start of the pin.
    ///
    /// The copy is a system call and not atomic, however few the bytes.
    ///
    /// # Errors
    /// [`Error::OutsidePin`]; [`Error::Access`] where a byte is not there. `into` has an unknown
    /// mix of old and new bytes then.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        let (start, end) = self.bytes(offset, into.len())?;
        let mut rest = into;
        for (part, distance, len) in self.parts(start, end) {
            let (now, later) = rest.split_at_mut_checked(len).unwrap_or_default();
            rest = later;
            let address = part.host_address().wrapping_add(distance);
            copy::read(address, now)
                .map_err(|short| access("read", start, end, part, distance, short))?;
        }
        Ok(())
    }

    /// Writes `from` to `offset` and on, counted in bytes from the start of the pin.
    ///
    /// The copy is a system call and not atomic, however few the bytes. Its pages are marked in the
    /// window's [dirty log](Window::start_dirty_log), where that is on.
    ///
    /// # Errors
    /// [`Error::OutsidePin`]; [`Error::ReadOnly`], before anything is written; [`Error::Access`]
    /// where a byte is not there, with the number of bytes that were written before.
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<(), Error> {
        let (start, end) = self.bytes(offset, from.len())?;
        self.check_protection(start, end)?;
        let mut rest = from;
        for (part, distance, len) in self.parts(start, end) {
            let (now, later) = rest.split_at_checked(len).unwrap_or_default();
            rest = later;
            let written = copy::write_part(part, distance, now);
            let to = part.range().start().saturating_add(distance);
            self.hold.written(to, to.saturating_add(now.len() as u64));
            written.map_err(|short| access("write", start, end, part, distance, short))?;
        }
        Ok(())
    }

    /// Whether [`write`](Self::write) may write `len` bytes from `offset` on.
    #[cfg(feature = "vm-memory")]
    pub(super) fn check_writable(&self, offset: u64, len: usize) -> Result<(), Error> {
        let (start, end) = self.bytes(offset, len)?;
        self.check_protection(start, end)
    }

    fn check_protection(&self, start: u64, end: u64) -> Result<(), Error> {
        let read_only = |(part, ..): &(&Part, u64, usize)| !part.is_writable();
        match self.parts(start, end).find(read_only) {
            Some((part, ..)) => Err(Error::ReadOnly {
                mapping: part.mapping(),
            }),
            None => Ok(()),
        }
    }

    /// Says that `len` bytes from `offset` on were written, by other means than
    /// [`write`](Self::write).
    #[cfg(feature = "vm-memory")]
    pub(super) fn written(&self, offset: u64, len: usize) {
        if let Ok((start, end)) = self.bytes(offset, len) {
            self.hold.written(start, end);
        }
    }

    /// First and last byte of an access, in the window.
    fn bytes(&self, offset: u64, len: usize) -> Result<(u64, u64), Error> {
        let (pinned, len) = (self.range(), len as u64);
        let end = offset.checked_add(len).filter(|end| *end <= pinned.len());
        let Some(end) = end else {
            return Err(Error::OutsidePin {
                pinned,
                offset,
                len,
            });
        };
        // Both lie in the pin, so neither wraps.
        let at = |offset: u64| pinned.start().saturating_add(offset);
        Ok((at(offset), at(end)))
    }

    /// The parts that an access touches, and of each how far into it and how many bytes.
    fn parts(&self, start: u64, end: u64) -> impl Iterator<Item = (&Part, u64, usize)> {
        self.hold.parts().iter().filter_map(move |part| {
            let range = part.range();
            let from = start.max(range.start());
            let len = end.min(range.end()).checked_sub(from)?;
            let len = usize::try_from(len).ok().filter(|len| *len > 0)?;
            Some((part, range.distance_to(from), len))
        })
    }
}

fn access(
    verb: &'static str,
    start: u64,
    end: u64,
    part: &Part,
    distance: u64,
    short: Short,
) -> Error {
    let before = part.range().start().saturating_add(distance);
    Error::Access {
        verb,
        offset: start,
        len: end.saturating_sub(start),
        done: before.saturating_sub(start).saturating_add(short.done),
        source: short.source,
    }
}
