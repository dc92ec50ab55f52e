//! Owns what the tests of the guest share: opening it, and slots of the
//! caller's own. Never asserts what a test promises.

// UNSAFETY: registering a slot in the window is the caller's part, and that
// call is unsafe in kvm-ioctls.
#![expect(unsafe_code, reason = "the tests register slots in the window")]
#![expect(
    clippy::unwrap_used,
    reason = "clippy takes a test's helpers for production code"
)]

use std::io::{ErrorKind, Write};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{MmapRegion, VolatileMemory};
use vm_remap_cli::guest::{GpaRange, Guest, GuestConfig, GuestError};

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const WINDOW: GpaRange = GpaRange {
    base: 4 << 30,
    len: 4 * MIB,
};
/// The first slot number that is the caller's.
pub(crate) const SLOT: u32 = 8;

/// Past the capture of the test harness, so that a skip is seen.
pub(crate) fn skip(test: &str, reason: &str) {
    let mut stderr = std::io::stderr();
    writeln!(stderr, "SKIP {test}: {reason}").unwrap();
}

/// Opens a guest, or says why the test cannot run here.
pub(crate) fn open(test: &str, vcpus: usize, window: Option<GpaRange>) -> Option<Guest> {
    let config = GuestConfig {
        vcpus,
        window,
        ..GuestConfig::default()
    };
    match Guest::open(&config) {
        Ok(guest) => Some(guest),
        Err(GuestError::OpenKvm { advice, source })
            if matches!(
                source.kind(),
                ErrorKind::NotFound | ErrorKind::PermissionDenied
            ) =>
        {
            skip(test, advice);
            None
        }
        Err(error) => panic!("{error}: {:?}", std::error::Error::source(&error)),
    }
}

/// Waits for something another thread brings about.
pub(crate) fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(60), "no {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A slot of the test's own, and the memory behind it.
pub(crate) struct Slot {
    vm: Arc<VmFd>,
    memory: MmapRegion,
}

impl Slot {
    pub(crate) fn new(vm: Arc<VmFd>, gpa: u64, len: u64, prot: i32) -> Self {
        let memory = MmapRegionBuilder::new(usize::try_from(len).unwrap())
            .with_mmap_prot(prot)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
            .build()
            .unwrap();
        let slot = Self { vm, memory };
        slot.register(gpa, len);
        slot
    }

    fn register(&self, gpa: u64, len: u64) {
        let region = kvm_userspace_memory_region {
            slot: SLOT,
            guest_phys_addr: gpa,
            memory_size: len,
            userspace_addr: self.memory.as_ptr().addr() as u64,
            flags: 0,
        };
        // SAFETY: the range is the mapping `memory` owns, or empty; `drop`
        // removes the slot before the mapping goes.
        unsafe { self.vm.set_user_memory_region(region) }.unwrap();
    }

    pub(crate) fn store(&self, offset: usize, value: u64) {
        let place = self.memory.get_ref::<u64>(offset).unwrap();
        place.store(value);
    }

    pub(crate) fn load(&self, offset: usize) -> u64 {
        self.memory.get_ref::<u64>(offset).unwrap().load()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.register(WINDOW.base, 0);
    }
}
