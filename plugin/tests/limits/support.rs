//! Owns what these tests share: a window with an eye on it, files with known bytes, and the right
//! to run. Never sets a limit.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_remap::{
    Error, GuestAddress, PAGE_SIZE, PageRange, Protection, SlotNumbers, Source, StateAfter, Window,
    WindowOptions,
};

use crate::eyes;
use crate::recorder::Recorder;

pub const BASE: GuestAddress = GuestAddress(4 << 30);
pub const MIB: u64 = 1 << 20;

pub fn skip(test: &str, reason: &str) {
    let mut stderr = std::io::stderr();
    writeln!(stderr, "SKIP {test}: {reason}").unwrap();
}

/// Whether this is an emulated machine of the lab, whose settings are nobody else's.
pub fn in_the_lab() -> bool {
    Path::new("/lab/settings").exists()
}

pub fn pages(start: u64, count: u64) -> PageRange {
    PageRange::new(start * PAGE_SIZE, count * PAGE_SIZE).unwrap()
}

/// A memfd whose every page begins with `byte`.
pub fn memfd(len: u64, byte: u8) -> OwnedFd {
    let fd = memfd_create("blob", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&fd, len).unwrap();
    let file = File::from(fd);
    for page in 0..(len / PAGE_SIZE).min(64) {
        file.write_all_at(&[byte; 8], page * PAGE_SIZE).unwrap();
    }
    file.into()
}

/// The same, sealed so that it takes the direct path.
pub fn sealed(len: u64, byte: u8) -> OwnedFd {
    let fd = memfd(len, byte);
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::SEAL).unwrap();
    fd
}

pub fn source(fd: &OwnedFd) -> Source<'_> {
    Source::descriptor(fd.as_fd(), 0)
}

/// A window, and what each of its first pages shows.
pub struct Watched {
    pub window: Window,
    arena: u64,
}

impl Watched {
    pub fn open(len: u64) -> Self {
        let options = WindowOptions::new(BASE, len);
        let numbers = SlotNumbers::new(8..32);
        let window = options
            .open(Arc::new(Recorder::default()), numbers)
            .unwrap();
        let probe = pages(0, 1);
        window
            .map(probe, &Source::anonymous(), Protection::ReadOnly)
            .unwrap();
        let arena = window.lookup(BASE).unwrap().host_address;
        window.unmap(probe).unwrap();
        Self { window, arena }
    }

    /// The first byte of each of the first 64 pages, `None` where there is a hole.
    pub fn view(&self) -> Vec<Option<u8>> {
        let page = |page| eyes::peek(self.arena + page * PAGE_SIZE);
        (0..64).map(page).collect()
    }

    /// Makes a call, and sees that it has done what it says: all, or what the error names.
    pub fn sees(
        &self,
        range: PageRange,
        expected: Option<u8>,
        call: impl FnOnce(&Window) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let before = self.view();
        let result = call(&self.window);
        let comes = match result.as_ref().map_err(Error::state_after) {
            Ok(()) => Some(expected),
            Err(StateAfter::Unchanged) => None,
            Err(StateAfter::Hole) => Some(None),
            Err(state) => panic!("{state}"),
        };
        let mut after = before;
        for (page, byte) in (0..).zip(&mut after) {
            if let Some(comes) = comes.filter(|_| range.contains(page * PAGE_SIZE)) {
                *byte = comes;
            }
        }
        assert_eq!(self.view(), after, "{result:?}");
        let len = self.window.len();
        assert!(eyes::is_mapped(self.arena, len), "a gap: {result:?}");
        result
    }

    pub fn map(&self, range: PageRange, fd: &OwnedFd, byte: u8) -> Result<(), Error> {
        self.sees(range, Some(byte), |window| {
            window.map(range, &source(fd), Protection::ReadWrite)
        })
    }

    pub fn replace(&self, range: PageRange, fd: &OwnedFd, byte: u8) -> Result<(), Error> {
        self.sees(range, Some(byte), |window| {
            window.replace(range, &source(fd), Protection::ReadWrite)
        })
    }

    pub fn unmap(&self, range: PageRange) -> Result<(), Error> {
        self.sees(range, None, |window| window.unmap(range))
    }
}
