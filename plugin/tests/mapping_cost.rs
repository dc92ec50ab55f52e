//! Owns the test of what a mapping costs in the process's own memory, in a process of its own
//! because it counts every allocation. Never needs `/dev/kvm` or root.

#![expect(unsafe_code, reason = "an allocator is unsafe to implement")]
#![expect(
    clippy::arithmetic_side_effects,
    reason = "tests compute with small figures of their own"
)]

#[path = "common/recorder.rs"]
#[expect(
    clippy::unwrap_used,
    dead_code,
    unreachable_pub,
    reason = "this test uses less of it than the others"
)]
mod recorder;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use vm_remap::{
    GuestAddress, PAGE_SIZE, PageRange, Protection, SlotNumbers, Source, WindowOptions,
};

/// What is allocated and not freed, in the sizes that a common allocator rounds to: 8 bytes of its
/// own, and multiples of 16.
static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

struct Counting;

fn rounded(layout: Layout) -> usize {
    (layout.size() + 8).next_multiple_of(16)
}

// SAFETY: all is left to the system's allocator, which keeps the promises of the trait; counting
// does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(rounded(layout), Ordering::Relaxed);
        // SAFETY: the caller keeps the same promises to us.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(rounded(layout), Ordering::Relaxed);
        // SAFETY: the caller keeps the same promises to us, and `alloc` got the block from there.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// In the order that is the worst for a tree whose nodes split in the middle, and in any order.
#[test]
fn a_mapping_costs_less_than_256_bytes() {
    const MAPPINGS: u64 = 10_000;
    let fd = rustix::fs::memfd_create("blob", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, PAGE_SIZE).unwrap();
    let source = Source::descriptor(std::os::fd::AsFd::as_fd(&fd), 0);
    // 7919 is prime, so that each number comes once.
    for step in [1, MAPPINGS - 1, 7919] {
        let recorder = Arc::new(recorder::Recorder::default());
        let window = WindowOptions::new(GuestAddress(0), 1 << 30)
            .open(recorder, SlotNumbers::new(0..1))
            .unwrap();
        let before = ALLOCATED.load(Ordering::Relaxed);
        for index in 0..MAPPINGS {
            let page = index * step % MAPPINGS * 2;
            let range = PageRange::new(page * PAGE_SIZE, PAGE_SIZE).unwrap();
            window.map(range, &source, Protection::ReadWrite).unwrap();
        }
        let grown = ALLOCATED.load(Ordering::Relaxed) - before;
        let each = grown / usize::try_from(MAPPINGS).unwrap();
        assert!((80..256).contains(&each), "{each} bytes with step {step}");
    }
}
