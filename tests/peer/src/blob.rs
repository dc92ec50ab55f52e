//! Owns memory of the device: memfds whose pages carry stamps. Never maps them anywhere but here.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};

use anyhow::{Context, Result};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use crate::PAGE;
use crate::stamp::Stamp;
use crate::words::{Mapped, Words};

/// A memfd that nobody can shrink, mapped here as well.
#[derive(Debug)]
pub struct Blob {
    file: File,
    memory: Mapped,
}

impl Blob {
    /// Makes memory of so many pages, filled with zeroes.
    pub fn empty(pages: u64) -> Result<Self> {
        let len = pages.checked_mul(PAGE).context("too many pages")?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create("vm-remap-peer", flags)?);
        file.set_len(len)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW)?;
        let memory = Mapped::new(file.try_clone()?, 0, len)?;
        Ok(Self { file, memory })
    }

    /// Makes memory of so many pages, each with a stamp of the change `number`.
    pub fn stamped(pages: u64, number: u64) -> Result<Self> {
        let blob = Self::empty(pages)?;
        for index in 0..pages {
            Stamp { number, index }.put(&blob.memory, index.saturating_mul(PAGE))?;
        }
        Ok(blob)
    }
}

impl AsRawFd for Blob {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl Words for Blob {
    fn load(&self, at: u64) -> Result<u64> {
        self.memory.load(at)
    }

    fn store(&self, at: u64, value: u64) -> Result<()> {
        self.memory.store(at, value)
    }
}
