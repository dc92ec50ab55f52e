//! Owns the rival `plain`, reserve + `MAP_FIXED` as crosvm, libkrun and QEMU do it, and the floor
//! `bare`, the same system calls with no memslot over the range. Never recovers from anything: a
//! failed call can leave a gap in the reservation, which is one reason for the library.

// UNSAFETY: the rival is the raw system calls, and registering a memslot by hand.
#![expect(unsafe_code, reason = "the rival is the raw system calls")]

use std::ffi::c_void;
use std::os::fd::BorrowedFd;
use std::ptr::null_mut;
use std::sync::Arc;

use anyhow::Context as _;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use crate::guest::GpaRange;

/// A slot number that no window of the bench uses.
const SLOT: u32 = 8;

/// Reserved address space, registered as one memslot or not at all.
#[derive(Debug)]
pub(crate) struct Plain {
    base: *mut c_void,
    len: usize,
    slot: Option<Arc<VmFd>>,
}

impl Plain {
    /// Reserves address space of the window's length and, with a VM, registers it.
    pub(super) fn new(window: GpaRange, vm: Option<Arc<VmFd>>) -> anyhow::Result<Self> {
        let len = usize::try_from(window.len).context("cannot reserve so much address space")?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: without MAP_FIXED the kernel picks a free range, so nothing is replaced.
        let base = unsafe { mmap_anonymous(null_mut(), len, ProtFlags::empty(), flags) }
            .context("cannot reserve address space for the rival `plain`")?;
        let mut plain = Self {
            base,
            len,
            slot: None,
        };
        if let Some(vm) = vm {
            plain
                .set_slot(&vm, window.base, window.len)
                .context("cannot register a memslot")?;
            plain.slot = Some(vm);
        }
        Ok(plain)
    }

    fn set_slot(&self, vm: &VmFd, guest: u64, len: u64) -> Result<(), kvm_ioctls::Error> {
        let region = kvm_userspace_memory_region {
            slot: SLOT,
            flags: 0,
            guest_phys_addr: guest,
            memory_size: len,
            userspace_addr: self.base.addr() as u64,
        };
        // SAFETY: the range was reserved by `new`, no reference points into it, and `drop`
        // unregisters it before it gives it back.
        unsafe { vm.set_user_memory_region(region) }
    }

    /// Maps `len` bytes of `fd`, from the start of the file, at `offset`, over whatever is there.
    pub(super) fn map(
        &self,
        offset: usize,
        len: usize,
        fd: BorrowedFd<'_>,
    ) -> rustix::io::Result<()> {
        let at = self.address(offset, len);
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: the range lies in the reservation, as `address` has checked, and no reference
        // points into it.
        unsafe { mmap(at, len, access, flags, fd, 0) }.map(drop)
    }

    /// Makes `len` bytes at `offset` a hole.
    pub(super) fn unmap(&self, offset: usize, len: usize) -> rustix::io::Result<()> {
        let at = self.address(offset, len);
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: the range lies in the reservation, as `address` has checked, and no reference
        // points into it.
        unsafe { mmap_anonymous(at, len, ProtFlags::empty(), flags) }.map(drop)
    }

    fn address(&self, offset: usize, len: usize) -> *mut c_void {
        let end = offset.checked_add(len);
        assert!(
            end.is_some_and(|end| end <= self.len),
            "a blob lies in the window"
        );
        self.base.wrapping_byte_add(offset)
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        if let Some(vm) = self.slot.take()
            && let Err(error) = self.set_slot(&vm, 0, 0)
        {
            log::warn!("cannot unregister the memslot of the rival `plain`: {error}");
            return;
        }
        // SAFETY: the range is the rival's own, no memslot lies over it any more, and it is not
        // used again.
        if let Err(error) = unsafe { munmap(self.base, self.len) } {
            log::warn!("cannot unmap the reservation of the rival `plain`: {error}");
        }
    }
}
