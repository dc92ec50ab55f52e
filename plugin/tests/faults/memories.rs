//! Owns the memory that the scripts map, with known bytes in it, and the making of their steps.
//! Never checks what comes of them.

// UNSAFETY: host memory without a descriptor is a source by its address, and somebody has to map
// and vouch for it.
#![expect(unsafe_code, reason = "the test makes host memory and vouches for it")]

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr::{NonNull, null_mut};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap};
use vm_remap::Protection::ReadWrite;
use vm_remap::{
    Batch, Error, GuestAddress, LayoutRecord, MappingRecord, OnWorkers, Origin, PAGE_SIZE,
    PageRange, Prefault, Slot, Source, Window,
};

use super::script::{Change, Memory, PAGES, Step};

const LEN: u64 = PAGES * PAGE_SIZE;

/// One of each; the host memory stays to the end of the process.
#[derive(Debug)]
pub struct Memories {
    peer: OwnedFd,
    sealed: OwnedFd,
    shared: NonNull<u8>,
    private: NonNull<u8>,
}

fn memfd(memory: Memory) -> OwnedFd {
    let fd = memfd_create("blob", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&fd, LEN).unwrap();
    let file = File::from(fd);
    for page in 0..PAGES {
        let bytes = [memory.byte(page); PAGE_SIZE as usize];
        file.write_all_at(&bytes, page * PAGE_SIZE).unwrap();
    }
    file.into()
}

fn host_memory(memory: Memory, flags: MapFlags) -> NonNull<u8> {
    let fd = memfd(memory);
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: without MAP_FIXED nothing is replaced.
    let mapped = unsafe { mmap(null_mut(), LEN as usize, access, flags, &fd, 0) };
    NonNull::new(mapped.unwrap().cast()).unwrap()
}

pub fn pages(start: u64, count: u64) -> PageRange {
    PageRange::new(start * PAGE_SIZE, count * PAGE_SIZE).unwrap()
}

impl Memories {
    pub fn new() -> Self {
        let sealed = memfd(Memory::Sealed);
        fcntl_add_seals(&sealed, SealFlags::SHRINK | SealFlags::SEAL).unwrap();
        Self {
            peer: memfd(Memory::Peer),
            sealed,
            shared: host_memory(Memory::Shared, MapFlags::SHARED),
            private: host_memory(Memory::Private, MapFlags::PRIVATE),
        }
    }

    /// Whether all of a slot lies over the host memory.
    pub fn hold(&self, slot: &Slot) -> bool {
        [self.shared, self.private].iter().any(|memory| {
            let start = memory.addr().get() as u64;
            start <= slot.host_address() && slot.host_address() + slot.len() <= start + LEN
        })
    }

    fn source(&self, memory: Memory) -> Source<'_> {
        let address = match memory {
            Memory::Peer => return Source::descriptor(self.peer.as_fd(), 0),
            Memory::Filled => {
                let source = Source::descriptor(self.peer.as_fd(), 0);
                return source.prefault(Prefault::HostWrite);
            }
            Memory::Sealed => return Source::descriptor(self.sealed.as_fd(), 0),
            Memory::Anonymous => return Source::anonymous(),
            Memory::Shared => self.shared,
            Memory::Private => self.private,
        };
        // SAFETY: the memory stays to the end of the process, and no reference to it is made.
        unsafe { Source::host_memory(address) }
    }

    pub fn carry_out(&self, window: &Window, step: &Step) -> Result<(), Error> {
        match step {
            Step::One(change) => match *change {
                Change::Map(start, count, memory) => {
                    window.map(pages(start, count), &self.source(memory), ReadWrite)
                }
                Change::Replace(start, count, memory) => {
                    window.replace(pages(start, count), &self.source(memory), ReadWrite)
                }
                Change::Unmap(start, count) => window.unmap(pages(start, count)),
            },
            Step::Batch(changes) => window.commit(&self.batch(changes)),
            Step::Replay(maps) => self.replay(window, maps),
            Step::Relocate(base) => window.relocate(GuestAddress(*base)),
            Step::InvalidateRoots => window.invalidate_roots(OnWorkers::Allow).map(drop),
        }
    }

    fn batch(&self, changes: &[Change]) -> Batch<'_> {
        let mut batch = Batch::new();
        for change in changes {
            batch = match *change {
                Change::Map(start, count, memory) => {
                    batch.map(pages(start, count), &self.source(memory), ReadWrite)
                }
                Change::Replace(start, count, memory) => {
                    batch.replace(pages(start, count), &self.source(memory), ReadWrite)
                }
                Change::Unmap(start, count) => batch.unmap(pages(start, count)),
            };
        }
        batch
    }

    fn replay(&self, window: &Window, maps: &[(u64, u64, Memory)]) -> Result<(), Error> {
        let entry = |&(start, count, memory): &(u64, u64, Memory)| MappingRecord {
            offset: start * PAGE_SIZE,
            len: count * PAGE_SIZE,
            protection: ReadWrite,
            origin: Origin::Anonymous,
            label: memory as u64,
        };
        let record = LayoutRecord {
            version: 2,
            base: 0,
            window: LEN,
            mappings: maps.iter().map(entry).collect(),
        };
        window.replay(&record, |recorded| {
            let mut maps = maps.iter();
            let found = maps.find(|(start, ..)| start * PAGE_SIZE == recorded.offset);
            Ok(self.source(found.unwrap().2))
        })
    }
}
