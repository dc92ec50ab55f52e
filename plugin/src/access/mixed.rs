//! Owns the choice between ordinary memory and a window, for a collection that has both. Never
//! does more than pass on.

use std::sync::atomic::Ordering;

use vm_memory::bitmap::{BS, Bitmap};
use vm_memory::{
    AtomicAccess, Bytes, FileOffset, GuestAddress, GuestMemoryError, GuestMemoryRegion,
    MemoryRegionAddress, ReadVolatile, VolatileSlice, WriteVolatile,
};

use super::region::WindowRegion;
use super::tracking::Pinning;

type Result<T> = std::result::Result<T, GuestMemoryError>;

/// A region of guest memory that is ordinary memory `R` or a window: what a
/// `vm_memory::GuestRegionCollection` needs to hold both, as it has one type for all its regions.
///
/// ```
/// use vm_memory::{GuestRegionCollection, GuestRegionMmap};
/// use vm_remap::{MixedRegion, Pinning};
///
/// type Ram = GuestRegionMmap<Pinning>;
/// type Memory = GuestRegionCollection<MixedRegion<Ram>>;
/// # let _: Option<Memory> = None;
/// ```
#[derive(Debug)]
pub enum MixedRegion<R, B = ()> {
    /// Ordinary memory.
    Ram(R),
    /// A window.
    Window(WindowRegion<B>),
}

/// Calls the same method of whichever it is.
macro_rules! of_either {
    ($self:ident, $region:ident => $call:expr) => {
        match $self {
            Self::Ram($region) => $call,
            Self::Window($region) => $call,
        }
    };
}

impl<R, B> GuestMemoryRegion for MixedRegion<R, B>
where
    R: GuestMemoryRegion<B = Pinning<B>>,
    B: Bitmap,
{
    type B = Pinning<B>;

    fn len(&self) -> u64 {
        of_either!(self, region => region.len())
    }

    fn start_addr(&self) -> GuestAddress {
        of_either!(self, region => region.start_addr())
    }

    fn bitmap(&self) -> BS<'_, Self::B> {
        of_either!(self, region => region.bitmap())
    }

    fn get_host_address(&self, addr: MemoryRegionAddress) -> Result<*mut u8> {
        of_either!(self, region => region.get_host_address(addr))
    }

    fn file_offset(&self) -> Option<&FileOffset> {
        of_either!(self, region => region.file_offset())
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_, BS<'_, Self::B>>> {
        of_either!(self, region => region.get_slice(offset, count))
    }

    fn is_hugetlbfs(&self) -> Option<bool> {
        of_either!(self, region => region.is_hugetlbfs())
    }
}

impl<R, B> Bytes<MemoryRegionAddress> for MixedRegion<R, B>
where
    R: GuestMemoryRegion<B = Pinning<B>>,
    B: Bitmap,
{
    type E = GuestMemoryError;

    fn write(&self, buf: &[u8], addr: MemoryRegionAddress) -> Result<usize> {
        of_either!(self, region => region.write(buf, addr))
    }

    fn read(&self, buf: &mut [u8], addr: MemoryRegionAddress) -> Result<usize> {
        of_either!(self, region => region.read(buf, addr))
    }

    fn write_slice(&self, buf: &[u8], addr: MemoryRegionAddress) -> Result<()> {
        of_either!(self, region => region.write_slice(buf, addr))
    }

    fn read_slice(&self, buf: &mut [u8], addr: MemoryRegionAddress) -> Result<()> {
        of_either!(self, region => region.read_slice(buf, addr))
    }

    fn read_volatile_from<F: ReadVolatile>(
        &self,
        addr: MemoryRegionAddress,
        src: &mut F,
        count: usize,
    ) -> Result<usize> {
        of_either!(self, region => region.read_volatile_from(addr, src, count))
    }

    fn read_exact_volatile_from<F: ReadVolatile>(
        &self,
        addr: MemoryRegionAddress,
        src: &mut F,
        count: usize,
    ) -> Result<()> {
        of_either!(self, region => region.read_exact_volatile_from(addr, src, count))
    }

    fn write_volatile_to<F: WriteVolatile>(
        &self,
        addr: MemoryRegionAddress,
        dst: &mut F,
        count: usize,
    ) -> Result<usize> {
        of_either!(self, region => region.write_volatile_to(addr, dst, count))
    }

    fn write_all_volatile_to<F: WriteVolatile>(
        &self,
        addr: MemoryRegionAddress,
        dst: &mut F,
        count: usize,
    ) -> Result<()> {
        of_either!(self, region => region.write_all_volatile_to(addr, dst, count))
    }

    fn store<T: AtomicAccess>(
        &self,
        val: T,
        addr: MemoryRegionAddress,
        order: Ordering,
    ) -> Result<()> {
        of_either!(self, region => region.store(val, addr, order))
    }

    fn load<T: AtomicAccess>(&self, addr: MemoryRegionAddress, order: Ordering) -> Result<T> {
        of_either!(self, region => region.load(addr, order))
    }
}
