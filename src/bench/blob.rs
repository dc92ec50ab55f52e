//! Owns the memory that is mapped: two files that take turns. Never maps it.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use anyhow::Context as _;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

/// Whose the files are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The VMM's own: its seals are final.
    Vmm,
    /// A peer's: it can change under the VMM's hands at any time.
    Peer,
}

/// Two memfds of the same size, with all pages there.
#[derive(Debug)]
pub(super) struct Blobs {
    files: [File; 2],
    current: usize,
    sequence: u64,
}

impl Blobs {
    pub(super) fn new(len: u64, owner: Owner) -> anyhow::Result<Self> {
        let file = || {
            file(len, owner).with_context(|| {
                format!("cannot make a blob of {len:#x} bytes; pass a smaller --blob")
            })
        };
        Ok(Self {
            files: [file()?, file()?],
            current: 0,
            sequence: 0,
        })
    }

    /// The file whose turn it is.
    pub(super) fn current(&self) -> BorrowedFd<'_> {
        let [a, b] = &self.files;
        if self.current == 0 {
            a.as_fd()
        } else {
            b.as_fd()
        }
    }

    /// Goes on to the other file.
    pub(super) fn turn(&mut self) {
        self.current ^= 1;
    }

    /// Goes on to the other file and writes the next number into its first word.
    pub(super) fn number_the_next(&mut self) -> std::io::Result<u64> {
        self.turn();
        self.sequence = self.sequence.saturating_add(1);
        let [a, b] = &self.files;
        let file = if self.current == 0 { a } else { b };
        file.write_all_at(&self.sequence.to_le_bytes(), 0)?;
        Ok(self.sequence)
    }
}

/// A memfd with all pages there.
pub(crate) fn file(len: u64, owner: Owner) -> std::io::Result<File> {
    let fd = memfd_create("bench", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let file = File::from(fd);
    file.set_len(len)?;
    let chunk = vec![0_u8; 1 << 20];
    let mut at = 0_u64;
    while at < len {
        let part = len.saturating_sub(at).min(chunk.len() as u64);
        let part = usize::try_from(part).unwrap_or(chunk.len());
        file.write_all_at(chunk.get(..part).unwrap_or(&chunk), at)?;
        at = at.saturating_add(part as u64);
    }
    if owner == Owner::Vmm {
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::SEAL)?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_up_and_the_files_take_turns() {
        let mut blobs = Blobs::new(4096, Owner::Peer).unwrap();
        for expected in 1..5 {
            assert_eq!(blobs.number_the_next().unwrap(), expected);
            let mut word = [0; 8];
            blobs.files[blobs.current]
                .read_exact_at(&mut word, 0)
                .unwrap();
            assert_eq!(u64::from_le_bytes(word), expected);
        }
    }

    #[test]
    fn only_the_vmms_own_files_have_final_seals() {
        for (owner, expected) in [(Owner::Vmm, true), (Owner::Peer, false)] {
            let blobs = Blobs::new(4096, owner).unwrap();
            let seals = rustix::fs::fcntl_get_seals(blobs.current()).unwrap();
            assert_eq!(seals.contains(SealFlags::SEAL), expected);
        }
    }
}
