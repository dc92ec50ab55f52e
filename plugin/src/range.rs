//! Owns the units: guest addresses and page ranges, with checked arithmetic.
//! Never touches memory and never makes a system call.

use std::fmt;

use crate::error::Error;

/// The granule of every range here: the x86 base page, 4 KiB.
pub const PAGE_SIZE: u64 = 4096;

/// 1 GiB, the largest size of memory that x86 page tables, and KVM's, can map with one entry.
pub(crate) const HUGE_1G: u64 = 1 << 30;

/// 2 MiB, the size below that.
pub(crate) const HUGE_2M: u64 = 2 << 20;

/// A guest-physical address, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestAddress(pub u64);

impl GuestAddress {
    /// The address `offset` bytes further on, or `None` past the end of the address space.
    #[must_use]
    pub fn checked_add(self, offset: u64) -> Option<Self> {
        self.0.checked_add(offset).map(Self)
    }
}

impl fmt::Display for GuestAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A range of whole pages, in bytes from the start of a window: never empty, page-aligned at
/// both ends, and without wrap-around.
///
/// ```
/// use vm_remap::PageRange;
///
/// let range = PageRange::new(0x20_0000, 0x1000)?;
/// assert_eq!(range.end(), 0x20_1000);
/// assert!(PageRange::new(0x800, 0x1000).is_err());
/// # Ok::<(), vm_remap::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageRange {
    start: u64,
    len: u64,
}

impl PageRange {
    /// The range of `len` bytes that starts `start` bytes into the window.
    ///
    /// # Errors
    /// [`Error::BadRange`] where `len` is 0, where either figure is no multiple of
    /// [`PAGE_SIZE`], or where the end does not fit in 64 bits.
    pub fn new(start: u64, len: u64) -> Result<Self, Error> {
        let aligned = start.is_multiple_of(PAGE_SIZE) && len.is_multiple_of(PAGE_SIZE);
        if len == 0 || !aligned || start.checked_add(len).is_none() {
            return Err(Error::BadRange { start, len });
        }
        Ok(Self { start, len })
    }

    /// The range between two page-aligned ends, or `None` where it would be empty. For ends
    /// that come from ranges which were checked before.
    pub(crate) fn between(start: u64, end: u64) -> Option<Self> {
        debug_assert!(start.is_multiple_of(PAGE_SIZE) && end.is_multiple_of(PAGE_SIZE));
        let len = end.checked_sub(start)?;
        (len > 0).then_some(Self { start, len })
    }

    /// The first byte, counted from the start of the window.
    #[must_use]
    pub fn start(self) -> u64 {
        self.start
    }

    /// The length in bytes, at least [`PAGE_SIZE`].
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a page range is never empty")]
    pub fn len(self) -> u64 {
        self.len
    }

    /// The first byte past the range.
    #[must_use]
    pub fn end(self) -> u64 {
        // `new` and `between` have seen that this does not wrap.
        self.start.saturating_add(self.len)
    }

    /// Whether `offset`, in bytes from the start of the window, lies in the range.
    #[must_use]
    pub fn contains(self, offset: u64) -> bool {
        self.start <= offset && offset < self.end()
    }

    /// Whether all of `other` lies in this range.
    #[must_use]
    pub fn covers(self, other: Self) -> bool {
        self.start <= other.start && other.end() <= self.end()
    }

    /// The pages that both ranges have.
    #[must_use]
    pub fn intersection(self, other: Self) -> Option<Self> {
        Self::between(self.start.max(other.start), self.end().min(other.end()))
    }

    /// The smallest range that covers both.
    pub(crate) fn hull(self, other: Self) -> Self {
        let start = self.start.min(other.start);
        let len = self.end().max(other.end()).saturating_sub(start);
        Self { start, len }
    }

    /// How far into this range `offset` lies; 0 where it lies before it.
    pub(crate) fn distance_to(self, offset: u64) -> u64 {
        offset.saturating_sub(self.start)
    }
}

impl fmt::Display for PageRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start, self.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_refuses_what_is_empty_unaligned_or_wraps() {
        for (start, len) in [
            (0, 0),
            (1, PAGE_SIZE),
            (0, 1),
            (0, PAGE_SIZE + 8),
            (u64::MAX - PAGE_SIZE + 1, PAGE_SIZE),
            (PAGE_SIZE, u64::MAX - PAGE_SIZE + 1),
        ] {
            let error = PageRange::new(start, len).unwrap_err();
            assert!(
                matches!(error, Error::BadRange { .. }),
                "{start:#x} {len:#x}"
            );
        }
    }

    #[test]
    fn intersection_of_neighbours_is_none() {
        let a = PageRange::new(0, PAGE_SIZE).unwrap();
        let b = PageRange::new(PAGE_SIZE, PAGE_SIZE).unwrap();
        assert_eq!(a.intersection(b), None);
        assert_eq!(a.hull(b), PageRange::new(0, 2 * PAGE_SIZE).unwrap());
        assert!(a.hull(b).covers(a));
        assert!(!a.covers(a.hull(b)));
    }
}
