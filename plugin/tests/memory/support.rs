//! Owns what the tests share: windows, files with known bytes, and the eyes of the guest.
//! Never uses a reference into the arena: bytes are read through `/proc/self/mem`, protections
//! through `/proc/self/maps`.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_remap::{BackendKind, GuestAddress, PageRange, SlotNumbers, Source, Window, WindowOptions};

use crate::recorder::Recorder;

pub const PAGE: u64 = vm_remap::PAGE_SIZE;
pub const BASE: GuestAddress = GuestAddress(4 << 30);

pub fn pages(start: u64, count: u64) -> PageRange {
    PageRange::new(start * PAGE, count * PAGE).unwrap()
}

pub struct Bench {
    pub window: Window,
    pub recorder: Arc<Recorder>,
}

/// A window of 64 pages in segments of 16, with 8 slot numbers.
pub fn open(backend: BackendKind) -> Bench {
    open_with(
        WindowOptions::new(BASE, 64 * PAGE)
            .segment_size(16 * PAGE)
            .backend(backend),
    )
}

pub fn open_with(options: WindowOptions) -> Bench {
    open_as(options, 8..16)
}

/// The first window again, with other slot numbers.
pub fn open_numbered(backend: BackendKind, numbers: std::ops::Range<u32>) -> Bench {
    let options = WindowOptions::new(BASE, 64 * PAGE).segment_size(16 * PAGE);
    open_as(options.backend(backend), numbers)
}

fn open_as(options: WindowOptions, numbers: std::ops::Range<u32>) -> Bench {
    let recorder = Arc::new(Recorder::default());
    let window = options
        .open(Arc::clone(&recorder) as _, SlotNumbers::new(numbers))
        .unwrap();
    Bench { window, recorder }
}

/// A memfd whose page `n` is filled with the byte `first + n`.
pub fn memfd(pages: u64, first: u8) -> OwnedFd {
    filled(
        memfd_create("blob", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap(),
        pages,
        first,
    )
}

/// The same, sealed so that it takes the direct path.
pub fn sealed(pages: u64, first: u8) -> OwnedFd {
    let fd = memfd(pages, first);
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::SEAL).unwrap();
    fd
}

fn filled(fd: OwnedFd, pages: u64, first: u8) -> OwnedFd {
    ftruncate(&fd, pages * PAGE).unwrap();
    let file = File::from(fd);
    for page in 0..pages {
        file.write_all_at(&vec![first + page as u8; PAGE as usize], page * PAGE)
            .unwrap();
    }
    file.into()
}

pub fn source(fd: &OwnedFd) -> Source<'_> {
    Source::descriptor(fd.as_fd(), 0)
}

/// What each page of the window looks like to the guest: its first byte, or `None` for a hole.
pub fn seen(bench: &Bench) -> Vec<Option<u8>> {
    let memory = File::open("/proc/self/mem").unwrap();
    let count = bench.window.len() / PAGE;
    let page = |page: u64| {
        let found = bench
            .window
            .lookup(GuestAddress(bench.window.base().0 + page * PAGE))?;
        let mut byte = [0];
        memory.read_exact_at(&mut byte, found.host_address).unwrap();
        Some(byte[0])
    };
    (0..count).map(page).collect()
}

/// The protection of the area at a host address, as `/proc/self/maps` writes it (`rw-s`).
pub fn protection(address: u64) -> Option<String> {
    let maps = BufReader::new(File::open("/proc/self/maps").unwrap());
    maps.lines().map(Result::unwrap).find_map(|line| {
        let (range, rest) = line.split_once(' ').unwrap();
        let (from, to) = range.split_once('-').unwrap();
        let hex = |digits| u64::from_str_radix(digits, 16).unwrap();
        let inside = hex(from) <= address && address < hex(to);
        inside.then(|| rest.split(' ').next().unwrap().to_owned())
    })
}

/// Host address of the window's first byte, asked for with a page that is mapped for the purpose.
pub fn arena(bench: &Bench) -> u64 {
    let last = bench.window.len() / PAGE - 1;
    let fd = memfd(1, 0);
    let range = pages(last, 1);
    bench
        .window
        .map(range, &source(&fd), vm_remap::Protection::ReadOnly)
        .unwrap();
    let found = bench
        .window
        .lookup(GuestAddress(bench.window.base().0 + last * PAGE))
        .unwrap();
    bench.window.unmap(range).unwrap();
    found.host_address - last * PAGE
}
