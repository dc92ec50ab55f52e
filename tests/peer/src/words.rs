//! Owns how memory that another side changes at any time is read and written: in words of 8 bytes,
//! each at once. Never makes a reference into it.

use std::fs::File;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

/// Memory in words of 8 bytes, at offsets that are multiples of 8.
pub trait Words {
    /// Reads a word; what was written before the word is seen, too.
    fn load(&self, at: u64) -> Result<u64>;

    /// Writes a word; whoever sees it sees what was written before.
    fn store(&self, at: u64, value: u64) -> Result<()>;
}

/// A file mapped into this process, shared with whoever else maps it.
#[derive(Debug)]
pub struct Mapped(MmapRegion);

impl Mapped {
    /// Maps `len` bytes of `file` from `offset` on, for reads and writes.
    pub fn new(file: File, offset: u64, len: u64) -> Result<Self> {
        let size = usize::try_from(len)?;
        let region = MmapRegion::from_file(FileOffset::new(file, offset), size)
            .with_context(|| format!("cannot map {len} bytes at {offset:#x}"))?;
        Ok(Self(region))
    }
}

impl Words for Mapped {
    fn load(&self, at: u64) -> Result<u64> {
        let all = self.0.as_volatile_slice();
        let word = all.load(usize::try_from(at)?, Ordering::Acquire);
        word.with_context(|| format!("cannot read at {at:#x}"))
    }

    fn store(&self, at: u64, value: u64) -> Result<()> {
        let all = self.0.as_volatile_slice();
        let done = all.store(value, usize::try_from(at)?, Ordering::Release);
        done.with_context(|| format!("cannot write at {at:#x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn word_is_found_again_and_nothing_lies_beyond_the_end() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        let memory = Mapped::new(file.try_clone().unwrap(), 4096, 4096).unwrap();
        memory.store(8, 7).unwrap();
        let again = Mapped::new(file, 0, 8192).unwrap();
        assert_eq!(again.load(4104).unwrap(), 7);
        memory.load(4096).unwrap_err();
        memory.store(u64::MAX - 7, 1).unwrap_err();
        memory.load(4).unwrap_err();
    }
}
