//! Owns the figures that a hostile caller would try. Never uses them.

use arbitrary::Arbitrary;
use vm_remap::PAGE_SIZE;

/// A length, an offset or an address.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Figure {
    /// Some pages: what an honest caller sends.
    Pages(u8),
    /// The same and some bytes.
    Crooked(u8, u8),
    /// So many pages below the end of the 64 bits.
    BelowEnd(u8),
    /// Around a power of two.
    AroundPower(u8, i8),
    /// Anything.
    Any(u64),
}

impl Figure {
    pub(crate) fn bytes(self) -> u64 {
        let pages = |count: u8| u64::from(count) * PAGE_SIZE;
        match self {
            Self::Pages(count) => pages(count),
            Self::Crooked(count, more) => pages(count) + u64::from(more),
            Self::BelowEnd(count) => 0_u64.wrapping_sub(pages(count)),
            Self::AroundPower(power, near) => {
                (1_u64 << (power % 64)).wrapping_add_signed(i64::from(near) * 4096)
            }
            Self::Any(bytes) => bytes,
        }
    }
}
