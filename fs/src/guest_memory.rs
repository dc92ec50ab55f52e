//! Owns the guest's memory as the FUSE library sees it. Never touches a byte of it.
//!
//! The FUSE library is made for one version of vm-memory, vhost-user for the next. Both map the
//! same descriptors, so that a request is read and answered in place.

use std::io;

use fuse_vm_memory::mmap::MmapRegion;
use fuse_vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

/// Guest memory for the FUSE library.
pub(crate) type FuseMemory = GuestMemoryMmap<()>;

/// Maps every region of `memory` once more.
///
/// # Errors
/// A region without a descriptor, and what the kernel says to mapping one again.
pub(crate) fn for_fuse(memory: &vm_memory::GuestMemoryMmap<()>) -> io::Result<FuseMemory> {
    let regions = memory.iter().map(again).collect::<io::Result<Vec<_>>>()?;
    FuseMemory::from_regions(regions).map_err(io::Error::other)
}

fn again(region: &vm_memory::GuestRegionMmap<()>) -> io::Result<GuestRegionMmap<()>> {
    let start = region.start_addr().raw_value();
    let backing = region.file_offset().ok_or_else(|| {
        io::Error::other(format!(
            "cannot reach the guest memory at {start:#x}: it came without a descriptor"
        ))
    })?;
    let len = usize::try_from(region.len()).map_err(io::Error::other)?;
    let file = FileOffset::new(backing.file().try_clone()?, backing.start());
    let mapped = MmapRegion::from_file(file, len).map_err(io::Error::other)?;
    GuestRegionMmap::new(mapped, GuestAddress(start)).ok_or_else(|| {
        io::Error::other(format!(
            "cannot reach the guest memory at {start:#x}: it ends past the last address"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use fuse_vm_memory::Bytes as _;
    use vm_memory::Bytes as _;

    #[test]
    fn both_views_show_the_same_bytes() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x3000).unwrap();
        let backing = vm_memory::FileOffset::new(file, 0x1000);
        let start = vm_memory::GuestAddress(0x10_0000);
        let memory = vm_memory::GuestMemoryMmap::<()>::from_ranges_with_files([(
            start,
            0x2000,
            Some(backing),
        )])
        .unwrap();
        let fuse = for_fuse(&memory).unwrap();
        memory
            .write_obj(7u32, vm_memory::GuestAddress(0x10_1ffc))
            .unwrap();
        assert_eq!(fuse.read_obj::<u32>(GuestAddress(0x10_1ffc)).unwrap(), 7);
        fuse.write_obj(9u8, GuestAddress(0x10_0000)).unwrap();
        assert_eq!(memory.read_obj::<u8>(start).unwrap(), 9);
    }

    #[test]
    fn memory_without_a_descriptor_is_refused() {
        let start = vm_memory::GuestAddress(0x1000);
        let memory = vm_memory::GuestMemoryMmap::<()>::from_ranges(&[(start, 0x1000)]).unwrap();
        assert_eq!(
            for_fuse(&memory).unwrap_err().to_string(),
            "cannot reach the guest memory at 0x1000: it came without a descriptor"
        );
    }
}
