//! Owns the listener for a VFIO container with a type1 IOMMU. Never opens a device, and never
//! maps memory other than a window's.

// UNSAFETY: vfio-ioctls maps for reading and writing only, so a mapping that devices may only read
// takes the ioctl itself; and giving devices access to memory is an unsafe call either way.
#![expect(unsafe_code, reason = "VFIO_IOMMU_MAP_DMA is an unsafe call")]

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_TYPE, vfio_iommu_type1_dma_map,
};
use vfio_ioctls::{VfioContainer, VfioError};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_io_nr;

use super::{DmaListener, DmaMapping};

ioctl_io_nr!(VFIO_IOMMU_MAP_DMA, VFIO_TYPE.into(), VFIO_BASE + 13);

/// Maps a window's memory into a VFIO container, for
/// [`Window::add_dma_listener`](crate::Window::add_dma_listener).
///
/// The container pins every page of a mapping when it is mapped, so each of them is allocated
/// then, and counts against `RLIMIT_MEMLOCK`; a container has room for 65535 mappings unless
/// the module parameter `dma_entry_limit` of `vfio_iommu_type1` says otherwise. Nobody else may
/// map anything at the guest addresses of the window into the same container.
///
/// Remove the listener before the container loses its last group: the kernel then unmaps
/// everything by itself, and the listener would find nothing to unmap, which is an error.
pub struct VfioDma {
    container: Arc<VfioContainer>,
    leaves_out: bool,
    /// Guest addresses of what was left out.
    left_out: Mutex<BTreeSet<u64>>,
}

impl VfioDma {
    /// A listener for `container`, which has a group already: its IOMMU is set with the first one.
    #[must_use]
    pub fn new(container: Arc<VfioContainer>) -> Self {
        Self {
            container,
            leaves_out: false,
            left_out: Mutex::default(),
        }
    }

    /// Whether memory that cannot be pinned is left out: the guest has it, devices do not, and a
    /// warning is logged. If not set, a change that maps such memory is refused with `EFAULT`.
    ///
    /// That is a dma-buf of pages of RAM, as udmabuf and most drivers without memory of their own
    /// make them: a mapping of page numbers (`VM_PFNMAP`) is taken only where it is no RAM (Linux:
    /// `drivers/vfio/vfio_iommu_type1.c` `vaddr_get_pfns`, 6.12). It is also a file that has lost
    /// pages.
    #[must_use]
    pub fn leave_out_unpinnable(mut self, leave_out: bool) -> Self {
        self.leaves_out = leave_out;
        self
    }

    fn left_out(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        // A set of numbers is whole at any time.
        self.left_out.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for VfioDma {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VfioDma")
            .field("container", &self.container.as_raw_fd())
            .field("left_out", &self.left_out().len())
            .finish_non_exhaustive()
    }
}

// SAFETY: type1 unmaps the pages from the IOMMU and flushes its caches before it unpins them and
// before the ioctl returns, and says how many bytes it has unmapped, which `vfio_dma_unmap`
// compares; a map that fails half-way is taken back (Linux: drivers/vfio/vfio_iommu_type1.c
// `vfio_dma_do_unmap`, `vfio_pin_map_dma`). What is left out was never mapped.
unsafe impl DmaListener for VfioDma {
    unsafe fn map(&self, mapping: &DmaMapping) -> io::Result<()> {
        let mut flags = VFIO_DMA_MAP_FLAG_READ;
        if mapping.is_writable() {
            flags |= VFIO_DMA_MAP_FLAG_WRITE;
        }
        let request = vfio_iommu_type1_dma_map {
            // The size of a struct of 32 bytes.
            argsz: u32::try_from(size_of::<vfio_iommu_type1_dma_map>()).unwrap_or(0),
            flags,
            vaddr: mapping.host_address(),
            iova: mapping.guest_address().0,
            size: mapping.len(),
        };
        // SAFETY: the descriptor is a VFIO container, the request lives through the call, and the
        // kernel reads `argsz` bytes of it. That the memory stays is the caller's promise.
        let done = unsafe { ioctl_with_ref(&*self.container, VFIO_IOMMU_MAP_DMA(), &request) };
        if done == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if !self.leaves_out || error.raw_os_error() != Some(Errno::FAULT.raw_os_error()) {
            return Err(error);
        }
        let guest = mapping.guest_address();
        log::warn!(
            "devices do not reach {:#x} bytes at {guest}: {error}",
            mapping.len()
        );
        self.left_out().insert(guest.0);
        Ok(())
    }

    fn unmap(&self, mapping: &DmaMapping) -> io::Result<()> {
        if self.left_out().remove(&mapping.guest_address().0) {
            return Ok(());
        }
        // A mapping was a length of host memory.
        let len = usize::try_from(mapping.len()).map_err(io::Error::other)?;
        let unmapped = self
            .container
            .vfio_dma_unmap(mapping.guest_address().0, len);
        unmapped.map_err(|error| match error {
            VfioError::IommuDmaUnmap(errno) => errno.into(),
            other => io::Error::other(other),
        })
    }
}
