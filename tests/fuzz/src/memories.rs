//! Owns the memory that the operations map, and what the model knows of its words. Never looks at
//! a window.

// UNSAFETY: host memory without a descriptor is a source by its address, and somebody has to vouch
// for it.
#![expect(
    unsafe_code,
    reason = "the target makes host memory and vouches for it"
)]

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

use arbitrary::Arbitrary;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};
use vm_remap::{PAGE_SIZE, Source};

/// Pages of each memory, and of the window.
pub(crate) const PAGES: u64 = 32;
const LEN: u64 = PAGES * PAGE_SIZE;

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Memory {
    /// A memfd that can shrink: staged.
    Peer,
    /// A memfd that cannot: mapped directly.
    Sealed,
    /// Host memory that can be duplicated.
    Shared,
    /// Host memory that cannot: it needs a slot of its own.
    Private,
    /// New each time it is mapped.
    Anonymous,
}

/// One page of one memory; anonymous memory by the number of its mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Backing {
    pub(crate) memory: Memory,
    pub(crate) instance: u64,
    pub(crate) page: u64,
}

/// One of each, with words that tell their pages apart.
pub(crate) struct Memories {
    peer: File,
    sealed: File,
    shared: MmapRegion,
    private: MmapRegion,
    written: HashMap<Backing, u64>,
}

impl Memories {
    pub(crate) fn new() -> Self {
        let memfd = |memory| {
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let file = File::from(memfd_create("blob", flags).unwrap());
            ftruncate(&file, LEN).unwrap();
            for page in 0..PAGES {
                let word = first_word(memory, page).to_ne_bytes();
                file.write_all_at(&word, page * PAGE_SIZE).unwrap();
            }
            file
        };
        let (peer, sealed) = (memfd(Memory::Peer), memfd(Memory::Sealed));
        fcntl_add_seals(&sealed, SealFlags::SHRINK | SealFlags::SEAL).unwrap();
        let file = FileOffset::new(memfd(Memory::Shared), 0);
        let shared = MmapRegion::from_file(file, LEN as usize).unwrap();
        let private = MmapRegion::new(LEN as usize).unwrap();
        for page in 0..PAGES {
            let place = private.get_ref((page * PAGE_SIZE) as usize).unwrap();
            place.store(first_word(Memory::Private, page));
        }
        Self {
            peer,
            sealed,
            shared,
            private,
            written: HashMap::new(),
        }
    }

    /// What is mapped from page `page` of a memory on.
    pub(crate) fn source(&self, memory: Memory, page: u64) -> Source<'_> {
        let offset = page * PAGE_SIZE;
        let region = match memory {
            Memory::Peer => return Source::descriptor(self.peer.as_fd(), offset),
            Memory::Sealed => return Source::descriptor(self.sealed.as_fd(), offset),
            Memory::Anonymous => return Source::anonymous(),
            Memory::Shared => &self.shared,
            Memory::Private => &self.private,
        };
        let address = region.as_ptr().wrapping_add(offset as usize);
        let address = NonNull::new(address).unwrap();
        // SAFETY: the caller maps no more than what is left of the region, which outlives the
        // window, and no reference to its bytes is ever made.
        unsafe { Source::host_memory(address) }
    }

    /// The word at the start of a page.
    pub(crate) fn word(&self, backing: Backing) -> u64 {
        let written = self.written.get(&backing).copied();
        written.unwrap_or_else(|| first_word(backing.memory, backing.page))
    }

    /// Notes what a guest has written.
    pub(crate) fn set_word(&mut self, backing: Backing, word: u64) {
        self.written.insert(backing, word);
    }
}

fn first_word(memory: Memory, page: u64) -> u64 {
    match memory {
        Memory::Anonymous => 0,
        other => ((other as u64 + 1) << 32) + page,
    }
}
