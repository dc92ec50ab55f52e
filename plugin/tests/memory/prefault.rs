//! Owns the tests of prefault over real memory: what is there when a call returns, what is counted,
//! and what a prefault that fails leaves. Page tables are read through `/proc/self/pagemap`.

#![expect(unsafe_code, reason = "host memory without a descriptor is passed")]

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use vm_remap::BackendKind::{Fixed, Memslot};
use vm_remap::Protection::{ReadOnly, ReadWrite};
use vm_remap::{
    Batch, Error, GuestAddress, Prefault, SlotNumbers, Source, StateAfter, WindowOptions,
};

use crate::recorder::Recorder;
use crate::support::*;

const COUNT: u64 = 8;

/// A memfd of which no page exists yet.
fn cold(pages: u64, sealed: bool) -> OwnedFd {
    let fd = memfd_create("cold", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&fd, pages * PAGE).unwrap();
    if sealed {
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::SEAL).unwrap();
    }
    fd
}

/// How many pages of the window, from `first` on, this process's page tables have.
fn resident(bench: &Bench, first: u64, count: u64) -> usize {
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    let present = |page: &u64| {
        let at = GuestAddress(bench.window.base().0 + page * PAGE);
        let Some(found) = bench.window.lookup(at) else {
            return false;
        };
        let mut entry = [0; 8];
        pagemap
            .read_exact_at(&mut entry, found.host_address / PAGE * 8)
            .unwrap();
        u64::from_ne_bytes(entry) >> 63 == 1
    };
    (first..first + count).filter(present).count()
}

/// Prefaulted mappings, and those that got less.
fn counted(bench: &Bench) -> (u64, u64) {
    let counters = bench.window.counters();
    (counters.prefaulted, counters.prefault_fallbacks)
}

#[test]
fn none_brings_in_no_page_and_counts_nothing() {
    let bench = open(Fixed);
    let fd = cold(COUNT, true);
    bench
        .window
        .map(pages(0, COUNT), &source(&fd), ReadWrite)
        .unwrap();
    assert_eq!(resident(&bench, 0, COUNT), 0);
    assert_eq!(rustix::fs::fstat(&fd).unwrap().st_blocks, 0);
    assert_eq!(counted(&bench), (0, 0));
    assert_eq!(bench.window.counters().direct, 1);
}

#[test]
fn host_prefaults_bring_in_every_page_of_every_kind_of_source() {
    for backend in [Fixed, Memslot] {
        for how in [Prefault::HostRead, Prefault::HostWrite] {
            for protection in [ReadOnly, ReadWrite] {
                let bench = open(backend);
                let (own, peers) = (cold(COUNT, true), cold(COUNT, false));
                let sources = [source(&own), source(&peers), Source::anonymous()];
                for (first, source) in [0, 16, 32].into_iter().zip(&sources) {
                    let range = pages(first, COUNT);
                    let source = source.prefault(how);
                    bench.window.map(range, &source, protection).unwrap();
                    assert_eq!(
                        resident(&bench, first, COUNT),
                        8,
                        "{backend} {how:?} {protection} {first}"
                    );
                }
                assert_eq!(counted(&bench), (3, 0));
                assert_eq!(bench.window.counters().staged, 3);
            }
        }
    }
}

#[test]
fn a_prefaulted_replace_and_batch_show_the_bytes_of_the_source() {
    let bench = open(Fixed);
    let (old, new) = (sealed(COUNT, 1), sealed(COUNT, 101));
    let how = Prefault::HostWrite;
    bench
        .window
        .map(pages(0, COUNT), &source(&old).prefault(how), ReadWrite)
        .unwrap();
    bench
        .window
        .replace(pages(0, COUNT), &source(&new).prefault(how), ReadWrite)
        .unwrap();
    assert_eq!(seen(&bench)[..2], [Some(101), Some(102)]);
    let batch = Batch::new()
        .replace(pages(0, COUNT), &source(&old).prefault(how), ReadWrite)
        .map(pages(COUNT, COUNT), &source(&new), ReadWrite);
    bench.window.commit(&batch).unwrap();
    assert_eq!(
        (seen(&bench)[0], seen(&bench)[8]),
        (Some(1), Some(101)),
        "{:?}",
        seen(&bench)
    );
    assert_eq!(resident(&bench, 0, COUNT), 8);
    assert_eq!(counted(&bench), (3, 0));
}

#[test]
fn guest_prefault_without_a_provider_that_can_fills_the_host() {
    let bench = open(Fixed);
    let fd = cold(COUNT, true);
    let source = source(&fd).prefault(Prefault::Guest);
    bench
        .window
        .map(pages(0, COUNT), &source, ReadWrite)
        .unwrap();
    assert_eq!(resident(&bench, 0, COUNT), 8);
    assert_eq!(counted(&bench), (0, 1));
    assert!(bench.recorder.prefaults().is_empty());
}

fn open_that_can() -> Bench {
    let recorder = Arc::new(Recorder::default());
    recorder.offer_prefault();
    let window = WindowOptions::new(BASE, 64 * PAGE)
        .segment_size(16 * PAGE)
        .open(Arc::clone(&recorder) as _, SlotNumbers::new(8..16))
        .unwrap();
    Bench { window, recorder }
}

#[test]
fn guest_prefault_asks_the_provider_once_the_memory_is_in_place() {
    let bench = open_that_can();
    let fd = cold(COUNT, true);
    let source = source(&fd).prefault(Prefault::Guest);
    let batch = Batch::new()
        .map(pages(4, 4), &source, ReadWrite)
        .unmap(pages(7, 1))
        .map(pages(16, COUNT), &source, ReadWrite);
    bench.window.commit(&batch).unwrap();
    let at = |page: u64| GuestAddress(BASE.0 + page * PAGE);
    assert_eq!(
        bench.recorder.prefaults(),
        [(at(4), 4 * PAGE), (at(16), COUNT * PAGE)]
    );
    assert_eq!(counted(&bench), (2, 0));
    assert_eq!(bench.window.counters().direct, 2);
}

#[test]
fn guest_prefault_that_fails_leaves_the_mapping() {
    let bench = open_that_can();
    bench.recorder.fail_prefault();
    let fd = sealed(COUNT, 1);
    let source = source(&fd).prefault(Prefault::Guest);
    bench
        .window
        .map(pages(0, COUNT), &source, ReadWrite)
        .unwrap();
    assert_eq!(seen(&bench)[..2], [Some(1), Some(2)]);
    assert_eq!(counted(&bench), (0, 1));
}

#[test]
fn a_change_that_fails_asks_for_no_prefault() {
    let bench = open_that_can();
    let fd = sealed(COUNT, 1);
    let source = source(&fd);
    bench
        .window
        .map(pages(0, COUNT), &source, ReadWrite)
        .unwrap();
    let asked = source.prefault(Prefault::Guest);
    bench
        .window
        .map(pages(0, COUNT), &asked, ReadWrite)
        .unwrap_err();
    assert!(bench.recorder.prefaults().is_empty());
    assert_eq!(counted(&bench), (0, 0));
}

/// Memory of this process whose file has lost all its pages.
struct Lost(NonNull<u8>);

impl Lost {
    fn new() -> Self {
        let fd = memfd(COUNT, 1);
        let (len, access) = ((COUNT * PAGE) as usize, ProtFlags::READ | ProtFlags::WRITE);
        // SAFETY: without MAP_FIXED the kernel picks a free range.
        let mapped = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                access,
                MapFlags::SHARED,
                fd.as_fd(),
                0,
            )
        };
        ftruncate(&fd, 0).unwrap();
        Self(NonNull::new(mapped.unwrap().cast()).unwrap())
    }
}

impl Drop for Lost {
    fn drop(&mut self) {
        // SAFETY: the range is this value's own.
        unsafe { munmap(self.0.as_ptr().cast(), (COUNT * PAGE) as usize) }.unwrap();
    }
}

#[test]
fn a_source_that_has_lost_its_pages_is_refused_and_nothing_changes() {
    for how in [Prefault::HostRead, Prefault::HostWrite] {
        let bench = open(Fixed);
        let fd = sealed(COUNT, 1);
        bench
            .window
            .map(pages(0, COUNT), &source(&fd), ReadWrite)
            .unwrap();
        let before = seen(&bench);
        let lost = Lost::new();
        // SAFETY: the memory stays mapped longer than the window uses it, which is not at all.
        let source = unsafe { Source::host_memory(lost.0) }.prefault(how);
        let error = bench
            .window
            .replace(pages(0, COUNT), &source, ReadWrite)
            .unwrap_err();
        assert!(matches!(error, Error::Prefault { .. }), "{error}");
        assert_eq!(error.errno(), 14);
        assert_eq!(error.state_after(), StateAfter::Unchanged);
        assert_eq!(seen(&bench), before);
        assert_eq!(counted(&bench), (0, 0));
    }
}

#[test]
fn a_peer_that_shrinks_its_file_meanwhile_gets_an_error_and_no_signal() {
    const ROUNDS: usize = 300;
    let bench = open(Fixed);
    let fd = cold(COUNT, false);
    let stop = AtomicBool::new(false);
    let refused = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                ftruncate(&fd, 0).unwrap();
                ftruncate(&fd, COUNT * PAGE).unwrap();
            }
        });
        let source = source(&fd).prefault(Prefault::HostWrite);
        let mut refused = 0;
        for _ in 0..ROUNDS {
            match bench.window.map(pages(0, COUNT), &source, ReadWrite) {
                Ok(()) => bench.window.unmap(pages(0, COUNT)).unwrap(),
                Err(Error::PastEnd { .. }) => {}
                Err(error) => {
                    assert!(matches!(error, Error::Prefault { .. }), "{error}");
                    assert_eq!(error.errno(), 14);
                    refused += 1;
                }
            }
            assert!(bench.window.mappings().is_empty());
        }
        stop.store(true, Ordering::Relaxed);
        refused
    });
    let counters = bench.window.counters();
    assert!(counters.failures >= refused && counters.prefaulted + refused <= ROUNDS as u64);
    assert_eq!(counters.prefaulted, counters.maps);
}

#[test]
fn memory_that_is_not_in_the_arena_is_mapped_without() {
    let bench = open(Memslot);
    let lost = Lost::new();
    // SAFETY: the memory stays mapped until the unmap below has returned.
    let source = unsafe { Source::host_memory(lost.0) }.prefault(Prefault::HostWrite);
    bench
        .window
        .map(pages(0, COUNT), &source, ReadWrite)
        .unwrap();
    assert_eq!(counted(&bench), (0, 1));
    bench.window.unmap(pages(0, COUNT)).unwrap();
}

#[test]
fn alignment_is_that_of_the_largest_translation_the_blob_can_have() {
    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
    let ask = |base: u64, segment: u64, backend| {
        let options = WindowOptions::new(GuestAddress(base), 4 * GIB)
            .segment_size(segment)
            .backend(backend);
        let window = open_with(options).window;
        [4 * KIB, 2 * MIB - PAGE, 2 * MIB, GIB - PAGE, GIB, 3 * GIB]
            .map(|len| window.preferred_alignment(len))
    };
    let (small, block) = (PAGE, 2 * MIB);
    let all = [small, small, block, block, GIB, GIB];
    let blocks = [small, small, block, block, block, block];
    assert_eq!(ask(4 * GIB, GIB, Fixed), all);
    assert_eq!(ask(4 * GIB + 2 * MIB, GIB, Fixed), blocks);
    assert_eq!(ask(4 * GIB + PAGE, GIB, Fixed), [small; 6]);
    assert_eq!(ask(4 * GIB, 256 * MIB, Fixed), blocks);
    assert_eq!(ask(4 * GIB, 256 * MIB, Memslot), all);
    assert_eq!(ask(4 * GIB, 3 * MIB, Fixed), [small; 6]);
}

#[test]
fn alignment_follows_the_window_to_another_guest_address() {
    let window = open_with(WindowOptions::new(BASE, 64 << 20)).window;
    assert_eq!(window.preferred_alignment(2 << 20), 2 << 20);
    window.relocate(GuestAddress(BASE.0 + (1 << 20))).unwrap();
    assert_eq!(window.preferred_alignment(2 << 20), PAGE);
}
