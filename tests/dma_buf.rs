//! Owns the proof that a dma-buf works as a source: made from a memfd by `/dev/udmabuf`, which
//! Debian's generic kernels have. Its memory is PFNMAP, which the kernel does not duplicate.

// UNSAFETY: a listener that refuses is the one way to have a batch fail when its memory has changed.
#![expect(unsafe_code, reason = "the listeners' trait is unsafe to implement")]
#![expect(
    clippy::arithmetic_side_effects,
    reason = "tests compute with small figures of their own"
)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[expect(
    dead_code,
    reason = "slots without a window are for the guest's own tests"
)]
#[path = "guest_support/mod.rs"]
mod guest_support;
#[path = "dma_support/udmabuf.rs"]
mod udmabuf;

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_remap::BackendKind::{self, Fixed, Memslot};
use vm_remap::Protection::{ReadOnly, ReadWrite};
use vm_remap::{
    Batch, DescriptorKind, DmaListener, DmaMapping, Error, GuestAddress, Origin, PageRange,
    Prefault, SlotNumbers, Source, StateAfter, Window, WindowOptions,
};
use vm_remap_cli::guest::{Access, Guest, PAGE, Touch};

use crate::guest_support::{SLOT, WINDOW};
use crate::udmabuf::DmaBuf;

const COUNT: u64 = 16;

struct Bench {
    window: Arc<Window>,
    buffer: DmaBuf,
    guest: Guest,
}

/// A listener without devices that takes no mapping of one page.
#[derive(Debug)]
struct NoSinglePage;

// SAFETY: no device ever learns of the memory.
unsafe impl DmaListener for NoSinglePage {
    unsafe fn map(&self, mapping: &DmaMapping) -> io::Result<()> {
        if mapping.len() == PAGE {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        Ok(())
    }

    fn unmap(&self, _: &DmaMapping) -> io::Result<()> {
        Ok(())
    }
}

fn pages(start: u64, count: u64) -> PageRange {
    PageRange::new(start * PAGE, count * PAGE).unwrap()
}

fn at(page: u64) -> u64 {
    WINDOW.base + page * PAGE
}

/// A guest, a window, and a dma-buf that is not mapped yet; `None` where there is no KVM or no
/// udmabuf.
fn open(test: &str, backend: BackendKind) -> Option<Bench> {
    let buffer = DmaBuf::new(test, COUNT, 3000)?;
    let guest = guest_support::open(test, 1, Some(WINDOW))?;
    let window = WindowOptions::new(GuestAddress(WINDOW.base), WINDOW.len)
        .backend(backend)
        .open(
            Arc::clone(guest.vm()) as _,
            SlotNumbers::new(SLOT..SLOT + 8),
        )
        .unwrap();
    Some(Bench {
        window: Arc::new(window),
        buffer,
        guest,
    })
}

impl Bench {
    fn source(&self) -> Source<'_> {
        Source::descriptor(self.buffer.fd.as_fd(), 0)
    }

    fn read(&self, page: u64) -> Access<u64> {
        self.guest.read_u64(0, at(page)).unwrap()
    }

    fn write(&self, page: u64, word: u64) -> Access<()> {
        self.guest.write_u64(0, at(page), word).unwrap()
    }
}

#[test]
fn guest_reads_and_writes_a_dma_buf() {
    for backend in BackendKind::ALL {
        let Some(bench) = open("guest_reads_and_writes_a_dma_buf", backend) else {
            return;
        };
        let range = pages(0, COUNT);
        bench.window.map(range, &bench.source(), ReadWrite).unwrap();
        let found = bench.window.lookup(GuestAddress(at(3))).unwrap();
        assert!(
            matches!(
                found.mapping.origin(),
                Origin::Descriptor {
                    kind: DescriptorKind::DmaBuf,
                    ..
                }
            ),
            "{found:?}"
        );
        // Pages that are written first, and pages that are read first.
        assert_eq!(bench.write(1, 0x1111), Access::Done(()), "{backend}");
        assert_eq!(bench.buffer.word(1), 0x1111);
        assert_eq!(bench.read(2), Access::Done(3002), "{backend}");
        assert_eq!(bench.write(2, 0x2222), Access::Done(()), "{backend}");
        assert_eq!(bench.buffer.word(2), 0x2222);
        bench.buffer.set_word(3, 0x3333);
        assert_eq!(bench.read(3), Access::Done(0x3333));
        let touched = bench.guest.touch(0, at(0), COUNT * PAGE, Touch::Write);
        assert_eq!(touched.unwrap(), Access::Done(COUNT));
        assert_eq!(bench.buffer.word(15), at(15));
    }
}

#[test]
fn dma_buf_is_replaced_cut_and_unmapped() {
    for backend in BackendKind::ALL {
        let Some(bench) = open("dma_buf_is_replaced_cut_and_unmapped", backend) else {
            return;
        };
        let range = pages(0, COUNT);
        bench.window.map(range, &bench.source(), ReadWrite).unwrap();
        assert_eq!(bench.read(0), Access::Done(3000));
        let other = memfd_create("other", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&other, 2 * PAGE).unwrap();
        let zeros = Source::descriptor(other.as_fd(), 0);
        bench
            .window
            .replace(pages(4, 2), &zeros, ReadWrite)
            .unwrap();
        let seen: Vec<_> = (3..7).map(|page| bench.read(page)).collect();
        assert_eq!(seen, [3003, 0, 0, 3006].map(Access::Done), "{backend}");
        // From another offset of the buffer.
        let later = Source::descriptor(bench.buffer.fd.as_fd(), 8 * PAGE);
        bench
            .window
            .replace(pages(4, 2), &later, ReadWrite)
            .unwrap();
        assert_eq!(bench.read(5), Access::Done(3009), "{backend}");
        bench.window.unmap(range).unwrap();
        assert_ne!(bench.read(0), Access::Done(3000), "{backend}");
        assert_eq!(bench.window.counters().mappings, 0);
    }
}

#[test]
fn batch_that_fails_puts_a_dma_buf_back() {
    for backend in BackendKind::ALL {
        let Some(bench) = open("batch_that_fails_puts_a_dma_buf_back", backend) else {
            return;
        };
        let range = pages(0, COUNT);
        bench.window.map(range, &bench.source(), ReadWrite).unwrap();
        assert_eq!(bench.write(1, 0x1111), Access::Done(()));
        bench
            .window
            .add_dma_listener(Arc::new(NoSinglePage))
            .unwrap();
        let other = Source::anonymous();
        let batch = Batch::new()
            .replace(pages(0, 8), &other, ReadWrite)
            .unmap(pages(10, 2))
            .map(pages(20, 1), &other, ReadWrite);
        // Refused when all of the memory has changed.
        let error = bench.window.commit(&batch).unwrap_err();
        assert!(matches!(error, Error::Dma { verb: "map", .. }), "{error}");
        assert_eq!(error.state_after(), StateAfter::Unchanged, "{error}");
        assert_eq!(bench.read(1), Access::Done(0x1111), "{backend}");
        assert_eq!(bench.read(11), Access::Done(3011), "{backend}");
        assert_eq!(bench.write(10, 0x2222), Access::Done(()), "{backend}");
        assert_eq!(bench.buffer.word(10), 0x2222);
        assert_eq!(bench.window.counters().mappings, 1);
    }
}

/// Over ordinary memory a write that the mapping forbids is a fault, always. Over PFNMAP memory it
/// is one only until the page is there; then KVM sees a page that cannot be written and emulates
/// the instruction (Linux 6.12: `virt/kvm/kvm_main.c` `hva_to_pfn_remapped`,
/// `KVM_PFN_ERR_RO_FAULT`).
#[test]
fn guest_write_to_a_read_only_dma_buf_does_not_get_through() {
    let test = "guest_write_to_a_read_only_dma_buf_does_not_get_through";
    let emulated = Access::Mmio {
        gpa: at(1),
        write: true,
    };
    for backend in BackendKind::ALL {
        let Some(bench) = open(test, backend) else {
            return;
        };
        let range = pages(0, COUNT);
        bench.window.map(range, &bench.source(), ReadOnly).unwrap();
        // On a page that was never touched, and on one that was read.
        let untouched = match backend {
            Memslot => emulated,
            _ => Access::Fault,
        };
        assert_eq!(bench.write(1, 0x1111), untouched, "{backend}");
        assert_eq!(bench.read(1), Access::Done(3001), "{backend}");
        assert_eq!(bench.write(1, 0x1111), emulated, "{backend}");
        assert_eq!(bench.read(1), Access::Done(3001), "{backend}");
        assert_eq!(bench.buffer.word(1), 3001);
    }
}

#[test]
fn prefault_of_a_dma_buf_brings_its_pages_in() {
    let test = "prefault_of_a_dma_buf_brings_its_pages_in";
    let Some(bench) = open(test, Fixed) else {
        return;
    };
    for (number, prefault) in (1..).zip([Prefault::HostRead, Prefault::HostWrite]) {
        let source = bench.source().prefault(prefault);
        let range = pages(0, COUNT);
        bench.window.map(range, &source, ReadWrite).unwrap();
        let counters = bench.window.counters();
        let counted = (counters.prefaulted, counters.prefault_fallbacks);
        assert_eq!(counted, (number, 0));
        assert_eq!(bench.write(1, 0x1111), Access::Done(()));
        bench.window.unmap(range).unwrap();
    }
}

/// KVM ends such a write in two ways: EFAULT where the host has no page table entry yet, and an
/// MMIO exit where it has a read-only one.
#[test]
fn a_resolver_drops_writes_to_a_read_only_dma_buf() {
    let test = "a_resolver_drops_writes_to_a_read_only_dma_buf";
    for backend in BackendKind::ALL {
        let Some(bench) = open(test, backend) else {
            return;
        };
        bench.guest.resolver().add(&bench.window);
        let range = pages(0, COUNT);
        bench.window.map(range, &bench.source(), ReadOnly).unwrap();
        let word = bench.read(2);
        for page in [2, 5] {
            assert_eq!(bench.write(page, 0xdead), Access::Done(()), "{backend}");
        }
        assert_eq!(bench.read(2), word, "{backend}");
        assert_ne!(bench.read(5), Access::Done(0xdead), "{backend}");
        assert_eq!(bench.guest.resolver().counters().stops, 0);
        // What stood in is gone: the buffer is whole again, and can be written.
        let source = bench.source();
        bench.window.replace(range, &source, ReadWrite).unwrap();
        assert_eq!(bench.read(2), word, "{backend}");
        assert_eq!(bench.write(5, 0xbeef), Access::Done(()));
        assert_eq!(bench.read(5), Access::Done(0xbeef));
    }
}
