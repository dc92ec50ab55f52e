//! Owns host memory that tests register, and the calls that do it. Never looks at what comes back.

// UNSAFETY: the hypervisor's memory calls are unsafe functions; the memory here outlives the VM's
// use of it in every test, because `Memory` is dropped last or the region is removed before.
#![expect(unsafe_code, reason = "the hypervisor's memory calls are unsafe")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use hypervisor::{HypervisorVmError, Vm};
use vm_memory::{FileOffset, MmapRegion};
use vm_remap::PAGE_SIZE;

/// Memory of the VMM's: shared with a file through which tests look at it, or private.
pub struct Memory {
    pub file: Option<File>,
    region: MmapRegion<()>,
}

/// What the trait wants to know of a region.
#[derive(Clone, Copy)]
pub struct Figures {
    pub slot: u32,
    pub guest: u64,
    pub len: usize,
    pub read_only: bool,
}

pub fn figures(slot: u32, guest: u64, pages: u64) -> Figures {
    Figures {
        slot,
        guest,
        len: (pages * PAGE_SIZE) as usize,
        read_only: false,
    }
}

impl Memory {
    pub fn shared(pages: u64) -> Self {
        let fd = rustix::fs::memfd_create("region", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, pages * PAGE_SIZE).unwrap();
        let file = File::from(fd);
        let own = FileOffset::new(file.try_clone().unwrap(), 0);
        Self {
            file: Some(file),
            region: MmapRegion::from_file(own, (pages * PAGE_SIZE) as usize).unwrap(),
        }
    }

    pub fn private(pages: u64) -> Self {
        Self::anonymous(pages, libc::PROT_READ | libc::PROT_WRITE)
    }

    /// Nobody can read or write it.
    pub fn barred(pages: u64) -> Self {
        Self::anonymous(pages, libc::PROT_NONE)
    }

    fn anonymous(pages: u64, protection: i32) -> Self {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let len = (pages * PAGE_SIZE) as usize;
        Self {
            file: None,
            region: MmapRegion::build(None, len, protection, flags).unwrap(),
        }
    }

    pub fn store(&self, at: u64, bytes: &[u8]) {
        self.file.as_ref().unwrap().write_all_at(bytes, at).unwrap();
    }

    pub fn load(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        let file = self.file.as_ref().unwrap();
        file.read_exact_at(&mut bytes, at).unwrap();
        u64::from_le_bytes(bytes)
    }

    pub fn host(&self) -> *mut u8 {
        self.region.as_ptr()
    }
}

pub fn create(vm: &dyn Vm, of: Figures, memory: &Memory) -> Result<(), HypervisorVmError> {
    create_at(vm, of, memory.host())
}

pub fn create_at(vm: &dyn Vm, of: Figures, host: *mut u8) -> Result<(), HypervisorVmError> {
    let Figures {
        slot, guest, len, ..
    } = of;
    // SAFETY: the memory is valid until the region is removed or the VM is gone.
    unsafe { vm.create_user_memory_region(slot, guest, len, host, of.read_only, true) }
}

pub fn remove(vm: &dyn Vm, of: Figures, memory: &Memory) -> Result<(), HypervisorVmError> {
    let Figures {
        slot, guest, len, ..
    } = of;
    let host = memory.host();
    // SAFETY: the memory is still valid.
    unsafe { vm.remove_user_memory_region(slot, guest, len, host, of.read_only, true) }
}

/// The text of an error, with its causes.
pub fn text(error: HypervisorVmError) -> String {
    format!("{:#}", anyhow::Error::new(error))
}

/// A handle as the VMM has it.
pub fn as_vm(vm: &Arc<vm_remap_cloud_hypervisor::RemapVm>) -> Arc<dyn Vm> {
    Arc::clone(vm) as Arc<dyn Vm>
}
