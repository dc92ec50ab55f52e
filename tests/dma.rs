//! Owns the proof that a device follows a window: QEMU's device `edu` behind an IOMMU, which the
//! lab has, does DMA at guest addresses while the memory there changes. Never asserts on time.

// UNSAFETY: a listener that leaves devices with old memory shows what the real one is for.
#![expect(unsafe_code, reason = "the listeners' trait is unsafe to implement")]
#![expect(
    clippy::arithmetic_side_effects,
    reason = "tests compute with small figures of their own"
)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "dma_support/edu.rs"]
mod edu;
#[expect(
    dead_code,
    reason = "slots without a window are for the guest's own tests"
)]
#[path = "guest_support/mod.rs"]
mod guest_support;
#[path = "dma_support/udmabuf.rs"]
mod udmabuf;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_remap::BackendKind::{self, Fixed};
use vm_remap::Protection::{self, ReadOnly, ReadWrite};
use vm_remap::{
    Batch, DmaListener, DmaListenerId, DmaMapping, Error, GuestAddress, PageRange, SlotNumbers,
    Source, StateAfter, VfioDma, Window, WindowOptions,
};
use vm_remap_cli::guest::{Access, GpaRange, Guest, PAGE};

use crate::edu::Edu;
use crate::guest_support::{MIB, SLOT, skip};
use crate::udmabuf::DmaBuf;

/// Above the guest's RAM, and low enough for the device's registers.
const BASE: u64 = 128 * MIB;
const LEN: u64 = 16 * MIB;
const REACH: GpaRange = GpaRange {
    base: BASE,
    len: 64 * MIB,
};
/// Where memory lies through which the test and the device talk.
const PORT: u64 = 1024;

struct Bench {
    window: Window,
    listener: DmaListenerId,
    port: Blob,
    edu: Edu,
    guest: Guest,
}

/// A memfd of 8 pages in which the first word of page `n` is `first + n`.
struct Blob(File);

impl Blob {
    fn new(first: u64) -> Self {
        let fd = memfd_create("blob", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, 8 * PAGE).unwrap();
        let blob = Self(fd.into());
        for page in 0..8 {
            blob.set(page, first + page);
        }
        blob
    }

    fn source(&self) -> Source<'_> {
        Source::descriptor(self.0.as_fd(), 0)
    }

    fn set(&self, page: u64, word: u64) {
        let bytes = word.to_ne_bytes();
        self.0.write_all_at(&bytes, page * PAGE).unwrap();
    }

    fn word(&self, page: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.read_exact_at(&mut bytes, page * PAGE).unwrap();
        u64::from_ne_bytes(bytes)
    }
}

fn pages(start: u64, count: u64) -> PageRange {
    PageRange::new(start * PAGE, count * PAGE).unwrap()
}

fn at(page: u64) -> u64 {
    BASE + page * PAGE
}

fn window_at(guest: &Guest, base: u64, len: u64) -> Window {
    let numbers = SlotNumbers::new(SLOT + 16..SLOT + 32);
    let options = WindowOptions::new(GuestAddress(base), len);
    options.open(Arc::clone(guest.vm()) as _, numbers).unwrap()
}

/// A guest, a device, and a window of both; `None` where there is no device or no KVM.
fn open(test: &str, backend: BackendKind) -> Option<Bench> {
    let edu = match Edu::open() {
        Ok(edu) => edu,
        Err(reason) => {
            skip(test, &reason);
            return None;
        }
    };
    let guest = guest_support::open(test, 1, Some(REACH))?;
    let options = WindowOptions::new(GuestAddress(BASE), LEN).backend(backend);
    let numbers = SlotNumbers::new(SLOT..SLOT + 16);
    let window = options.open(Arc::clone(guest.vm()) as _, numbers).unwrap();
    let port = Blob::new(0);
    let dma = VfioDma::new(Arc::clone(&edu.container));
    let listener = window.add_dma_listener(Arc::new(dma)).unwrap();
    window
        .map(pages(PORT, 8), &port.source(), ReadWrite)
        .unwrap();
    Some(Bench {
        window,
        listener,
        port,
        edu,
        guest,
    })
}

impl Bench {
    fn map(&self, page: u64, count: u64, blob: &Blob, protection: Protection) {
        self.window
            .replace(pages(page, count), &blob.source(), protection)
            .unwrap();
    }

    /// Has the device write `word` to a guest address.
    fn send(&self, guest: u64, word: u64) {
        self.port.set(0, word);
        self.edu.fetch(at(PORT));
        self.edu.send(guest);
    }

    /// What the device reads at a guest address.
    fn fetch(&self, guest: u64) -> u64 {
        self.edu.fetch(guest);
        self.edu.send(at(PORT + 1));
        self.port.word(1)
    }

    /// The device itself works, so that what it did not do says something.
    fn is_alive(&self) {
        self.send(at(PORT + 2), 4711);
        assert_eq!(self.port.word(2), 4711);
    }
}

/// Kilobytes that devices have pinned of this process.
fn pinned_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmLck:"));
    let figure = line.unwrap().trim().trim_end_matches(" kB");
    figure.parse().unwrap()
}

#[test]
fn device_reaches_the_new_memory_and_never_again_the_old() {
    let test = "device_reaches_the_new_memory_and_never_again_the_old";
    for backend in BackendKind::ALL {
        let Some(bench) = open(test, backend) else {
            return;
        };
        let (a, b) = (Blob::new(1000), Blob::new(2000));
        bench.map(0, 8, &a, ReadWrite);
        bench.send(at(1), 0x1111);
        assert_eq!(a.word(1), 0x1111, "{backend}");
        assert_eq!(
            bench.guest.read_u64(0, at(1)).unwrap(),
            Access::Done(0x1111)
        );
        let written = bench.guest.write_u64(0, at(2), 0x2222).unwrap();
        assert_eq!(written, Access::Done(()));
        assert_eq!(bench.fetch(at(2)), 0x2222);

        bench.map(0, 8, &b, ReadWrite);
        bench.send(at(1), 0x3333);
        assert_eq!((a.word(1), b.word(1)), (0x1111, 0x3333), "{backend}");
        assert_eq!(
            bench.guest.read_u64(0, at(1)).unwrap(),
            Access::Done(0x3333)
        );
        assert_eq!(bench.fetch(at(2)), 2002);

        bench.window.unmap(pages(0, 8)).unwrap();
        bench.send(at(1), 0x4444);
        assert_eq!((a.word(1), b.word(1)), (0x1111, 0x3333), "{backend}");
        let read = bench.fetch(at(2));
        assert!(read != 0x2222 && read != 2002, "{read:#x}");
        bench.is_alive();

        bench.map(0, 8, &a, ReadOnly);
        bench.send(at(1), 0x5555);
        assert_eq!(a.word(1), 0x1111, "{backend}");
        assert_eq!(bench.fetch(at(2)), 0x2222);
        bench.is_alive();
    }
}

/// A listener that was told of the first mapping only.
#[derive(Debug)]
struct Deaf(VfioDma, AtomicBool);

// SAFETY: it breaks the promise, on purpose: the old pages stay pinned, so the device writes to them
// and to nothing else, and the test keeps the files that they belong to.
unsafe impl DmaListener for Deaf {
    unsafe fn map(&self, mapping: &DmaMapping) -> io::Result<()> {
        if self.1.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        // SAFETY: the container pins the pages, so they stay as long as it does.
        unsafe { self.0.map(mapping) }
    }

    fn unmap(&self, _: &DmaMapping) -> io::Result<()> {
        Ok(())
    }
}

/// The reason for all this, and the proof that the other tests would see it.
#[test]
fn container_that_is_not_told_keeps_the_old_memory() {
    let test = "container_that_is_not_told_keeps_the_old_memory";
    let Some(bench) = open(test, Fixed) else {
        return;
    };
    let other = BASE + 32 * MIB;
    let untold = window_at(&bench.guest, other, LEN);
    let dma = VfioDma::new(Arc::clone(&bench.edu.container));
    let deaf = Deaf(dma, AtomicBool::new(false));
    untold.add_dma_listener(Arc::new(deaf)).unwrap();
    let (a, b) = (Blob::new(1000), Blob::new(2000));
    untold.map(pages(0, 8), &a.source(), ReadWrite).unwrap();
    untold.replace(pages(0, 8), &b.source(), ReadWrite).unwrap();
    bench.send(other + PAGE, 0x1111);
    assert_eq!((a.word(1), b.word(1)), (0x1111, 2001));
    untold.unmap(pages(0, 8)).unwrap();
    bench.send(other + PAGE, 0x2222);
    assert_eq!((a.word(1), b.word(1)), (0x2222, 2001));
}

#[test]
fn each_replace_is_followed() {
    let Some(bench) = open("each_replace_is_followed", Fixed) else {
        return;
    };
    let blobs = [Blob::new(1000), Blob::new(2000)];
    for word in 1..20 {
        let [new, old] = if word % 2 == 0 { [0, 1] } else { [1, 0] };
        bench.map(0, 8, &blobs[new], ReadWrite);
        let before = blobs[old].word(3);
        bench.send(at(3), word);
        assert_eq!((blobs[new].word(3), blobs[old].word(3)), (word, before));
    }
}

#[test]
fn cut_mapping_stays_in_reach_around_the_hole_and_moves_with_the_window() {
    let test = "cut_mapping_stays_in_reach_around_the_hole_and_moves_with_the_window";
    let Some(bench) = open(test, Fixed) else {
        return;
    };
    let a = Blob::new(1000);
    bench.map(0, 8, &a, ReadWrite);
    bench.window.unmap(pages(3, 2)).unwrap();
    for page in 0..8 {
        bench.send(at(page), 0x7000 + page);
    }
    let words: Vec<u64> = (0..8).map(|page| a.word(page)).collect();
    let hit = [0x7000, 0x7001, 0x7002, 1003, 1004, 0x7005, 0x7006, 0x7007];
    assert_eq!(words, hit);

    // The port moves along.
    let there = BASE + 32 * MIB;
    bench.window.relocate(GuestAddress(there)).unwrap();
    bench.port.set(0, 0x8888);
    bench.edu.fetch(there + PORT * PAGE);
    bench.edu.send(at(0));
    assert_eq!(a.word(0), 0x7000, "nothing is left at the old address");
    bench.edu.send(there);
    assert_eq!(a.word(0), 0x8888);
}

#[test]
fn holes_are_not_pinned_and_nothing_is_in_the_end() {
    let test = "holes_are_not_pinned_and_nothing_is_in_the_end";
    let Some(bench) = open(test, Fixed) else {
        return;
    };
    let before = pinned_kib();
    assert_eq!(before, 8 * 4, "the port, and none of the holes");
    // A window of 1 GiB of holes; what is mapped of it is what is pinned.
    let large = window_at(&bench.guest, 4 << 30, 1 << 30);
    let dma = VfioDma::new(Arc::clone(&bench.edu.container));
    large.add_dma_listener(Arc::new(dma)).unwrap();
    assert_eq!(pinned_kib(), before);
    let a = Blob::new(1000);
    large.map(pages(77, 8), &a.source(), ReadWrite).unwrap();
    assert_eq!(pinned_kib(), before + 32);
    large.unmap(pages(78, 4)).unwrap();
    assert_eq!(pinned_kib(), before + 16);
    large.close().unwrap();
    assert_eq!(pinned_kib(), before);
    assert!(bench.window.remove_dma_listener(bench.listener).unwrap());
    assert_eq!(pinned_kib(), 0);
    bench.map(0, 8, &a, ReadWrite);
    assert_eq!(pinned_kib(), 0);
    bench.window.close().unwrap();
}

#[test]
fn address_that_is_none_for_devices_is_refused() {
    let test = "address_that_is_none_for_devices_is_refused";
    let Some(bench) = open(test, Fixed) else {
        return;
    };
    // On x86 this is where interrupts are sent to.
    let window = window_at(&bench.guest, 0xfee0_0000, MIB);
    let a = Blob::new(1000);
    let dma = || Arc::new(VfioDma::new(Arc::clone(&bench.edu.container)));
    window.map(pages(0, 1), &a.source(), ReadWrite).unwrap();
    let error = window.add_dma_listener(dma()).unwrap_err();
    assert!(matches!(error, Error::Dma { verb: "map", .. }), "{error}");
    assert_eq!(
        (error.errno(), error.state_after()),
        (libc::EINVAL, StateAfter::Unchanged)
    );
    window.unmap(pages(0, 1)).unwrap();
    window.add_dma_listener(dma()).unwrap();
    let batch = Batch::new().map(pages(0, 1), &a.source(), ReadWrite);
    let error = window.commit(&batch).unwrap_err();
    assert_eq!(error.state_after(), StateAfter::Unchanged);
    let error = window.map(pages(0, 1), &a.source(), ReadWrite).unwrap_err();
    assert_eq!(error.state_after(), StateAfter::Hole);
    assert!(window.mappings().is_empty());
    window.close().unwrap();
}

/// Type1 pins pages, and takes PFNMAP memory only where it is no RAM of the host's; a udmabuf is
/// both PFNMAP and RAM (Linux 6.12: `drivers/vfio/vfio_iommu_type1.c` `vaddr_get_pfns`).
#[test]
fn udmabuf_is_refused_and_everything_put_back_or_left_out() {
    let test = "udmabuf_is_refused_and_everything_put_back_or_left_out";
    let Some(bench) = open(test, Fixed) else {
        return;
    };
    let Some(buffer) = DmaBuf::new(test, 8, 3000) else {
        return;
    };
    let a = Blob::new(1000);
    bench.map(0, 8, &a, ReadWrite);
    let source = Source::descriptor(buffer.fd.as_fd(), 0);
    let batch = Batch::new().replace(pages(0, 8), &source, ReadWrite);
    let error = bench.window.commit(&batch).unwrap_err();
    assert_eq!(
        (error.errno(), error.state_after()),
        (libc::EFAULT, StateAfter::Unchanged),
        "{error}"
    );
    bench.send(at(1), 0x9999);
    assert_eq!((a.word(1), buffer.word(1)), (0x9999, 3001));

    // A listener that leaves it out lets the guest have it.
    bench.window.remove_dma_listener(bench.listener).unwrap();
    let dma = VfioDma::new(Arc::clone(&bench.edu.container)).leave_out_unpinnable(true);
    bench.window.add_dma_listener(Arc::new(dma)).unwrap();
    bench.window.commit(&batch).unwrap();
    assert_eq!(bench.guest.read_u64(0, at(1)).unwrap(), Access::Done(3001));
    bench.send(at(1), 0xaaaa);
    assert_eq!((a.word(1), buffer.word(1)), (0x9999, 3001));
    bench.is_alive();
    bench.map(0, 8, &a, ReadWrite);
    bench.send(at(1), 0xbbbb);
    assert_eq!(a.word(1), 0xbbbb);
    bench.window.close().unwrap();
}
