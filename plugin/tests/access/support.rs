//! Owns what the tests share: windows, and memory of each kind with known bytes. Never uses a
//! reference into a window.

// UNSAFETY: what a region is put under, only its maker knows.
#![expect(unsafe_code, reason = "the tests make regions")]

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_memory::bitmap::NewBitmap;
use vm_memory::{GuestMemoryBackend, GuestRegionCollection, GuestRegionMmap};
use vm_remap::Protection::ReadWrite;
use vm_remap::{
    GuestAddress, Indirect, MixedRegion, OnPinned, PageRange, Pinning, SlotNumbers, Source, Window,
    WindowOptions, WindowRegion,
};

use crate::recorder::Recorder;

pub const PAGE: u64 = vm_remap::PAGE_SIZE;
pub const BASE: u64 = 4 << 30;
pub const PAGES: u64 = 64;
pub const EFAULT: i32 = 14;

pub fn pages(start: u64, count: u64) -> PageRange {
    PageRange::new(start * PAGE, count * PAGE).unwrap()
}

pub fn options() -> WindowOptions {
    WindowOptions::new(GuestAddress(BASE), PAGES * PAGE)
}

pub fn open() -> Window {
    open_with(options())
}

pub fn open_with(options: WindowOptions) -> Window {
    let recorder = Arc::new(Recorder::default());
    options.open(recorder, SlotNumbers::new(8..16)).unwrap()
}

/// A memfd whose page `n` is filled with the byte `first + n`, that anybody can truncate.
pub fn memfd(pages: u64, first: u8) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = std::fs::File::from(memfd_create("blob", flags).unwrap());
    for page in 0..pages {
        let bytes = [first + page as u8; PAGE as usize];
        file.write_all_at(&bytes, page * PAGE).unwrap();
    }
    file.into()
}

/// The same, and nobody can truncate it.
pub fn sealed(pages: u64, first: u8) -> OwnedFd {
    let fd = memfd(pages, first);
    fcntl_add_seals(&fd, SealFlags::SHRINK).unwrap();
    fd
}

pub fn source(fd: &OwnedFd) -> Source<'_> {
    Source::descriptor(fd.as_fd(), 0)
}

/// Maps a whole memfd of `count` pages at the page `at`.
pub fn map(window: &Window, at: u64, count: u64, fd: &OwnedFd) {
    let range = pages(at, count);
    window.map(range, &source(fd), ReadWrite).unwrap();
}

pub fn truncate(fd: &OwnedFd, pages: u64) {
    ftruncate(fd, pages * PAGE).unwrap();
}

/// Guest memory with a window in it: ordinary memory from 0 on, and the window right behind it.
pub type Memory = GuestRegionCollection<MixedRegion<GuestRegionMmap<Pinning>>>;

/// Bytes of ordinary memory in [`memory`], and where its window begins.
pub const RAM: u64 = 64 << 10;

/// Room for a few copies.
pub const COPY: Indirect = Indirect::Copy { limit: 256 << 10 };

pub fn memory(on_pinned: OnPinned, indirect: Indirect) -> (Memory, Arc<Window>) {
    let options = WindowOptions::new(GuestAddress(RAM), PAGES * PAGE).on_pinned(on_pinned);
    let window = Arc::new(open_with(options));
    let ram = GuestRegionMmap::from_range(vm_memory::GuestAddress(0), RAM as usize, None).unwrap();
    let region = region_over(Arc::clone(&window), indirect);
    let regions = vec![MixedRegion::Ram(ram), MixedRegion::Window(region)];
    (Memory::from_regions(regions).unwrap(), window)
}

/// Guest address of the window's byte `offset`, in [`memory`].
pub fn at(offset: u64) -> vm_memory::GuestAddress {
    vm_memory::GuestAddress(RAM + offset)
}

/// The window's region of [`memory`].
pub fn region(memory: &Memory) -> &WindowRegion {
    match memory.iter().last() {
        Some(MixedRegion::Window(region)) => region,
        other => panic!("no window, but {other:?}"),
    }
}

/// The text of the library's own error inside one of vm-memory's.
pub fn inner(error: &vm_memory::GuestMemoryError) -> String {
    match error {
        vm_memory::GuestMemoryError::IOError(error) => error.to_string(),
        other => panic!("not ours: {other}"),
    }
}

pub fn skip(test: &str, reason: &str) {
    let mut stderr = std::io::stderr();
    writeln!(stderr, "SKIP {test}: {reason}").unwrap();
}

/// A window as a region.
pub fn region_over<B: NewBitmap>(window: Arc<Window>, indirect: Indirect) -> WindowRegion<B> {
    // SAFETY: nothing in these tests exchanges the bitmaps of slices.
    unsafe { WindowRegion::new(window, indirect) }
}
