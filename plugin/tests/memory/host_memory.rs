//! Owns the tests of host memory without a descriptor: duplicated, refused, or given a slot.

#![expect(
    unsafe_code,
    reason = "the tests make mappings of their own and vouch for them"
)]

use std::ffi::c_void;
use std::fs::OpenOptions;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use vm_remap::BackendKind::{Fixed, Memslot};
use vm_remap::Protection::ReadWrite;
use vm_remap::{Error, GuestAddress, Source, StateAfter, WindowOptions};

use crate::support::*;

/// Memory of the test's own, unmapped at the end.
struct Own(*mut c_void, usize);

impl Own {
    fn anonymous(pages: u64, flags: MapFlags) -> Self {
        let len = (pages * PAGE) as usize;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: without MAP_FIXED nothing is replaced.
        let mapped = unsafe { mmap_anonymous(std::ptr::null_mut(), len, access, flags) };
        Self(mapped.unwrap(), len)
    }

    fn shared(fd: &OwnedFd, pages: u64) -> Self {
        let len = (pages * PAGE) as usize;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let nowhere = std::ptr::null_mut();
        // SAFETY: without MAP_FIXED nothing is replaced.
        let mapped = unsafe { mmap(nowhere, len, access, MapFlags::SHARED, fd.as_fd(), 0) };
        Self(mapped.unwrap(), len)
    }

    fn source(&self) -> Source<'static> {
        let address = NonNull::new(self.0.cast::<u8>()).unwrap();
        // SAFETY: the memory is the test's own, lives as long as the window, and has no reference.
        unsafe { Source::host_memory(address) }
    }

    fn write(&self, byte: u8) {
        let memory = OpenOptions::new()
            .write(true)
            .open("/proc/self/mem")
            .unwrap();
        memory.write_all_at(&[byte], self.0.addr() as u64).unwrap();
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // SAFETY: the range is the test's own and not used again.
        unsafe { munmap(self.0, self.1) }.unwrap();
    }
}

#[test]
fn shared_host_memory_is_duplicated_and_both_see_the_same_bytes() {
    let own = Own::anonymous(4, MapFlags::SHARED);
    let bench = open(Fixed);
    bench
        .window
        .map(pages(8, 4), &own.source(), ReadWrite)
        .unwrap();
    own.write(99);
    assert_eq!(seen(&bench)[8], Some(99));
    let found = bench
        .window
        .lookup(GuestAddress(BASE.0 + 8 * PAGE))
        .unwrap();
    assert_ne!(found.host_address, own.0.addr() as u64);
    assert_eq!(bench.window.counters().fallbacks, 0);
}

#[test]
fn private_host_memory_is_refused_before_anything_changes() {
    let own = Own::anonymous(4, MapFlags::PRIVATE);
    let bench = open(Fixed);
    let fd = memfd(4, 1);
    bench
        .window
        .map(pages(8, 4), &source(&fd), ReadWrite)
        .unwrap();
    let before = seen(&bench);
    let error = bench
        .window
        .replace(pages(8, 4), &own.source(), ReadWrite)
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("it is private memory; pass its descriptor"),
        "{error}"
    );
    assert_eq!(error.state_after(), StateAfter::Unchanged);
    assert_eq!(seen(&bench), before);
}

#[test]
fn host_memory_longer_than_its_mapping_shows_no_more_of_the_file() {
    // mremap with an old size of 0 would map the rest of the file.
    let fd = memfd(8, 1);
    let own = Own::shared(&fd, 2);
    let bench = open(Fixed);
    let error = bench
        .window
        .map(pages(0, 4), &own.source(), ReadWrite)
        .unwrap_err();
    assert!(matches!(error, Error::HostMemory { .. }), "{error}");
    assert_eq!(seen(&bench)[0], None);
    bench
        .window
        .map(pages(0, 2), &own.source(), ReadWrite)
        .unwrap();
}

#[test]
fn private_host_memory_falls_back_to_a_slot_of_its_own_where_that_is_allowed() {
    let own = Own::anonymous(4, MapFlags::PRIVATE);
    own.write(77);
    let bench = open_with(
        WindowOptions::new(BASE, 64 * PAGE)
            .segment_size(16 * PAGE)
            .fallback(true),
    );
    let fd = memfd(16, 1);
    bench
        .window
        .map(pages(0, 16), &source(&fd), ReadWrite)
        .unwrap();
    bench
        .window
        .replace(pages(4, 4), &own.source(), ReadWrite)
        .unwrap();
    assert_eq!(bench.window.counters().fallbacks, 1);
    assert_eq!(
        &seen(&bench)[3..9],
        [Some(4), Some(77), Some(0), Some(0), Some(0), Some(9)]
    );
    let live = bench.recorder.live();
    assert_eq!(
        live.iter().map(vm_remap::Slot::len).collect::<Vec<_>>(),
        [4, 4, 8].map(|n| n * PAGE)
    );
    assert_eq!(live[1].host_address(), own.0.addr() as u64);

    bench.window.unmap(pages(4, 4)).unwrap();
    let live = bench.recorder.live();
    assert_eq!(
        live.iter().map(vm_remap::Slot::len).collect::<Vec<_>>(),
        [16 * PAGE]
    );
    let slots = bench.window.counters().slots_registered;
    bench
        .window
        .map(pages(4, 4), &source(&fd), ReadWrite)
        .unwrap();
    assert_eq!(
        bench.window.counters().slots_registered,
        slots,
        "slots rest again"
    );
}

#[test]
fn memslot_registers_host_memory_where_it_lies() {
    let own = Own::anonymous(2, MapFlags::PRIVATE);
    own.write(5);
    let bench = open(Memslot);
    bench
        .window
        .map(pages(0, 2), &own.source(), ReadWrite)
        .unwrap();
    assert_eq!(bench.recorder.live()[0].host_address(), own.0.addr() as u64);
    bench.window.unmap(pages(1, 1)).unwrap();
    assert_eq!(&seen(&bench)[..2], [Some(5), None]);
    assert_eq!(bench.window.counters().fallbacks, 0);
}

#[test]
fn shared_host_memory_gets_the_protection_that_was_asked_for() {
    let own = Own::anonymous(1, MapFlags::SHARED);
    let bench = open(Fixed);
    bench
        .window
        .map(pages(0, 1), &own.source(), vm_remap::Protection::ReadOnly)
        .unwrap();
    let address = bench.window.lookup(BASE).unwrap().host_address;
    assert_eq!(protection(address).as_deref(), Some("r--s"));
    assert_eq!(
        protection(own.0.addr() as u64).as_deref(),
        Some("rw-s"),
        "the original"
    );
}

#[test]
fn a_segment_that_is_cut_for_host_memory_is_dirty_all_over() {
    let own = Own::anonymous(2, MapFlags::PRIVATE);
    let options = WindowOptions::new(BASE, 64 * PAGE).segment_size(16 * PAGE);
    let bench = open_with(options.fallback(true));
    let map = |range, source: &Source<'_>| bench.window.map(range, source, ReadWrite).unwrap();
    map(pages(0, 2), &Source::anonymous());
    bench.window.start_dirty_log().unwrap();
    // The hypervisor's log of the segment goes with its slot, whoever wrote there.
    map(pages(4, 2), &own.source());
    let changed = || {
        let logs = bench.window.take_dirty_log().unwrap();
        let addresses = logs.iter().flat_map(vm_remap::SlotDirtyLog::addresses);
        addresses
            .map(|address| (address.0 - BASE.0) / PAGE)
            .collect::<Vec<_>>()
    };
    let all: Vec<u64> = (0..16).collect();
    assert_eq!(changed(), all);
    assert!(changed().is_empty());
    bench.window.unmap(pages(4, 2)).unwrap();
    assert_eq!(changed(), all);
    bench.window.close().unwrap();
}
