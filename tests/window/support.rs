//! Owns what the tests share: a guest with a window, files of known words, and what the guest
//! sees of them. Never asserts what a test promises.

use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_remap::Protection::ReadOnly;
use vm_remap::{
    BackendKind, GuestAddress, KvmSlots, PageRange, SlotNumbers, Source, Window, WindowOptions,
};
use vm_remap_cli::guest::{Access, GpaRange, Guest, GuestConfig, PAGE};

use crate::guest_support::{self, MIB, SLOT, wait_for};

/// Where the window of a test begins.
pub(crate) const BASE: u64 = 4 << 30;
/// Its length: four segments.
pub(crate) const LEN: u64 = 8 * MIB;
pub(crate) const SEGMENT: u64 = 2 * MIB;
pub(crate) const SEGMENT_PAGES: u64 = SEGMENT / PAGE;
/// What the guest reaches: the window, and room for another and for a move.
const REACH: GpaRange = GpaRange {
    base: BASE,
    len: 64 * MIB,
};
/// Slot numbers of the window under test, and of a second one.
pub(crate) const NUMBERS: Range<u32> = SLOT..SLOT + 16;
pub(crate) const MORE_NUMBERS: Range<u32> = SLOT + 16..SLOT + 32;

pub(crate) struct Bench {
    pub(crate) window: Window,
    pub(crate) guest: Guest,
}

pub(crate) fn options(backend: BackendKind) -> WindowOptions {
    WindowOptions::new(GuestAddress(BASE), LEN)
        .segment_size(SEGMENT)
        .backend(backend)
}

/// A guest of one vCPU with a window of `backend`; `None` where there is no KVM.
pub(crate) fn open(test: &str, backend: BackendKind) -> Option<Bench> {
    open_with(test, 1, options(backend), NUMBERS)
}

pub(crate) fn open_with(
    test: &str,
    vcpus: usize,
    options: WindowOptions,
    numbers: Range<u32>,
) -> Option<Bench> {
    keep_one_guest();
    let guest = guest_support::open(test, vcpus, Some(REACH))?;
    let window = window_in(&guest, options, numbers);
    Some(Bench { window, guest })
}

/// Keeps a guest to the end: the kernel patches its own code when the first VM comes and when the
/// last one goes (static keys), and an emulator with a thread for each CPU can trip over that.
fn keep_one_guest() {
    static KEPT: OnceLock<Option<Guest>> = OnceLock::new();
    KEPT.get_or_init(|| Guest::open(&GuestConfig::default()).ok());
}

pub(crate) fn window_in(guest: &Guest, options: WindowOptions, numbers: Range<u32>) -> Window {
    let vm = Arc::clone(guest.vm());
    options.open(vm, SlotNumbers::new(numbers)).unwrap()
}

/// A guest of one vCPU and a spare one, with a window that can prefault where KVM can.
pub(crate) fn open_with_spare(test: &str, backend: BackendKind) -> Option<Bench> {
    keep_one_guest();
    let guest = guest_support::open(test, 1, Some(REACH))?;
    let provider = KvmSlots::new(Arc::clone(guest.vm())).spare_vcpu(guest.spare_vcpu().unwrap());
    let numbers = SlotNumbers::new(NUMBERS);
    let window = options(backend).open(Arc::new(provider), numbers).unwrap();
    Some(Bench { window, guest })
}

/// Guest address of the window's page `page`.
pub(crate) const fn at(page: u64) -> u64 {
    BASE + page * PAGE
}

pub(crate) fn pages(start: u64, count: u64) -> PageRange {
    PageRange::new(start * PAGE, count * PAGE).unwrap()
}

/// Whether a file takes the direct path (one `mmap`) or the staged one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seal {
    Sealed,
    Unsealed,
}

/// A memfd in which every word of page `n` is `first + n`.
pub(crate) struct Blob {
    file: File,
    first: u64,
    pages: u64,
}

impl Blob {
    pub(crate) fn new(seal: Seal, pages: u64, first: u64) -> Self {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = memfd_create("blob", flags).unwrap();
        let blob = Self::filled(fd, pages, first);
        if seal == Seal::Sealed {
            fcntl_add_seals(&blob.file, SealFlags::SHRINK | SealFlags::SEAL).unwrap();
        }
        blob
    }

    fn filled(fd: OwnedFd, pages: u64, first: u64) -> Self {
        ftruncate(&fd, pages * PAGE).unwrap();
        let file = File::from(fd);
        let blob = Self { file, first, pages };
        for (page, bytes) in blob.expected().chunks_exact(4096).enumerate() {
            blob.file.write_all_at(bytes, page as u64 * PAGE).unwrap();
        }
        blob
    }

    /// The bytes it was made with.
    pub(crate) fn expected(&self) -> Vec<u8> {
        let page = |n| self.word(n).to_ne_bytes().repeat(512);
        (0..self.pages).flat_map(page).collect()
    }

    /// The bytes it has now.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.pages * PAGE).unwrap()];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    pub(crate) fn truncate(&self, pages: u64) {
        self.file.set_len(pages * PAGE).unwrap();
    }

    pub(crate) fn set_word(&self, page: u64, word: u64) {
        self.file
            .write_all_at(&word.to_ne_bytes(), page * PAGE)
            .unwrap();
    }

    pub(crate) const fn word(&self, page: u64) -> u64 {
        self.first + page
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub(crate) fn source(&self) -> Source<'_> {
        self.source_at(0)
    }

    /// From page `page` on.
    pub(crate) fn source_at(&self, page: u64) -> Source<'_> {
        Source::descriptor(self.file.as_fd(), page * PAGE)
    }
}

/// Whether KVM has a memslot at a guest address: it takes no second one there.
pub(crate) fn has_slot(guest: &Guest, gpa: u64) -> bool {
    let place = WindowOptions::new(GuestAddress(gpa), PAGE).backend(BackendKind::Memslot);
    let probe = window_in(guest, place, MORE_NUMBERS);
    match probe.map(pages(0, 1), &Source::anonymous(), ReadOnly) {
        Ok(()) => false,
        Err(error) => {
            assert_eq!(error.errno(), libc::EEXIST, "{error}");
            true
        }
    }
}

/// What an access to a hole ends in, where the segment is registered.
pub(crate) fn hole<T>(backend: BackendKind, gpa: u64, write: bool) -> Access<T> {
    match backend {
        BackendKind::Fixed => Access::Fault,
        BackendKind::Memslot => Access::Mmio { gpa, write },
    }
}

/// What the guest reads as the first word of each page of a range of the window.
pub(crate) fn view(guest: &Guest, range: Range<u64>) -> Vec<Access<u64>> {
    range
        .map(|page| guest.read_u64(0, at(page)).unwrap())
        .collect()
}

/// What [`view`] gives where `blob` is mapped from its first page on.
pub(crate) fn words(blob: &Blob) -> Vec<Access<u64>> {
    (0..blob.pages)
        .map(|n| Access::Done(blob.word(n)))
        .collect()
}

/// Waits until the endless program has made a whole pass that began after this call.
pub(crate) fn advance(guest: &Guest, vcpu: usize) {
    let from = guest.passes(vcpu).unwrap();
    wait_for("passes", || guest.passes(vcpu).unwrap() >= from + 2);
}
