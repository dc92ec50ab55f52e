//! Owns the measurement of what the VMM's own access to a window costs: a pin, copies of several
//! sizes through it, and the direct slice of stable memory. Prints medians; never asserts on them.

use std::error::Error;
use std::hint::black_box;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_memory::{Bytes, GuestMemoryRegion, MemoryRegionAddress};
use vm_remap::{
    GuestAddress, Indirect, PageRange, Protection, Slot, SlotNumbers, SlotProvider, Source,
    WindowOptions, WindowRegion,
};

const LEN: u64 = 2 << 20;
const SIZES: [usize; 5] = [8, 512, 4 << 10, 64 << 10, 2 << 20];

/// A hypervisor without a guest.
#[derive(Debug)]
struct Nobody;

#[expect(unsafe_code, reason = "the provider trait is unsafe to implement")]
// SAFETY: no guest ever learns of the memory.
unsafe impl SlotProvider for Nobody {
    unsafe fn register(&self, _: &Slot) -> io::Result<()> {
        Ok(())
    }

    fn unregister(&self, _: &Slot) -> io::Result<()> {
        Ok(())
    }
}

/// The median of many calls, after a few that do not count.
fn median(calls: usize, mut call: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..calls.saturating_add(20))
        .map(|_| {
            let start = Instant::now();
            call();
            start.elapsed()
        })
        .skip(20)
        .collect();
    times.sort();
    times.get(calls / 2).copied().unwrap_or_default()
}

#[expect(
    unsafe_code,
    reason = "only the maker of a region knows what it is put under"
)]
fn main() -> Result<(), Box<dyn Error>> {
    let window = WindowOptions::new(GuestAddress(4 << 30), 2 * LEN)
        .open(Arc::new(Nobody), SlotNumbers::new(0..8))?;
    for (place, seals) in [(0, SealFlags::SHRINK), (LEN, SealFlags::empty())] {
        let fd = memfd_create("blob", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&fd, LEN)?;
        fcntl_add_seals(&fd, seals)?;
        let source = Source::descriptor(fd.as_fd(), 0);
        let range = PageRange::new(place, LEN)?;
        window.map(range, &source, Protection::ReadWrite)?;
        window.pin(range)?.write(0, &vec![1; 2 << 20])?;
    }
    let window = Arc::new(window);
    let limit = 4 << 20;
    // SAFETY: nothing here exchanges the bitmaps of slices.
    let region = unsafe { WindowRegion::<()>::new(Arc::clone(&window), Indirect::Copy { limit }) };
    let mut out = io::stdout().lock();
    let whole = PageRange::new(LEN, LEN)?;
    let pin = median(20_000, || drop(black_box(window.pin(whole))));
    writeln!(out, "pin and unpin: {pin:?}")?;
    writeln!(
        out,
        "{:>8} {:>12} {:>12} {:>14} {:>14}",
        "bytes", "pin read", "pin write", "slice, direct", "slice, copied"
    )?;
    let held = window.pin(whole)?;
    for size in SIZES {
        let mut own = vec![2; size];
        let calls = if size > 1 << 20 { 200 } else { 2000 };
        let read = median(calls, || drop(black_box(held.read(0, &mut own))));
        let write = median(calls, || drop(black_box(held.write(0, &own))));
        let mut sliced = |place: u64| {
            median(calls, || {
                let slice = region.get_slice(MemoryRegionAddress(place), size);
                drop(black_box(slice.map(|slice| slice.read_slice(&mut own, 0))));
            })
        };
        let (direct, copied) = (sliced(0), sliced(LEN));
        writeln!(
            out,
            "{size:>8} {read:>12.2?} {write:>12.2?} {direct:>14.2?} {copied:>14.2?}"
        )?;
    }
    Ok(())
}
