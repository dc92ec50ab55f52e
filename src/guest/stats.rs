//! Owns the reading of KVM's binary statistics of one VM or one vCPU. Never
//! changes one, and never believes a figure of the file beyond its bounds.
//!
//! Only scalar values are read; histograms are left out.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::stats_fd;

/// Far more of each than any kernel has: Linux 6.18 has 48-byte names, and
/// fewer than 100 statistics.
const MAX_NAME: u32 = 512;
const MAX_COUNT: u32 = 4096;
const MAX_DATA: usize = 1 << 20;
const HEADER: usize = 24;
/// The fixed part of a descriptor; its name follows.
const DESCRIPTOR: usize = 16;
const WORD: usize = 8;

/// The statistics of one VM or one vCPU.
#[derive(Debug)]
pub struct Stats {
    file: File,
    data: u64,
    data_len: usize,
    /// Where each value lies in the data block, in bytes.
    index: Arc<BTreeMap<String, usize>>,
}

/// All values, read in one go.
#[derive(Clone, Debug)]
pub struct Snapshot {
    bytes: Vec<u8>,
    index: Arc<BTreeMap<String, usize>>,
}

impl Stats {
    /// Opens the statistics of a VM or vCPU descriptor and reads the names.
    ///
    /// # Errors
    /// The answer of `KVM_GET_STATS_FD` (before Linux 5.14: `ENOTTY`), or
    /// `InvalidData` if the file does not describe itself soundly.
    pub fn open(of: &impl AsRawFd) -> io::Result<Self> {
        Self::from_fd(stats_fd::open(of)?)
    }

    /// Another reader of the same statistics.
    ///
    /// # Errors
    /// Whatever duplicating the descriptor answers.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            file: self.file.try_clone()?,
            data: self.data,
            data_len: self.data_len,
            index: Arc::clone(&self.index),
        })
    }

    fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let file = File::from(fd);
        let mut header = [0; HEADER];
        file.read_exact_at(&mut header, 0)?;
        let name_len = bounded(word32(&header, 4)?, MAX_NAME, "name size")?;
        let count = bounded(word32(&header, 8)?, MAX_COUNT, "number of statistics")?;
        let descriptors = word32(&header, 16)?;
        let data = word32(&header, 20)?;

        let each = DESCRIPTOR.saturating_add(name_len);
        let mut block = vec![0; each.saturating_mul(count)];
        file.read_exact_at(&mut block, descriptors.into())?;
        let mut index = BTreeMap::new();
        let mut data_len = 0;
        for descriptor in block.chunks_exact(each) {
            let (name, offset, values) = parse(descriptor)?;
            let end = offset.saturating_add(WORD);
            if end > MAX_DATA {
                return Err(unsound("offset of a value", end));
            }
            if values == 1 {
                data_len = data_len.max(end);
                index.insert(name, offset);
            }
        }
        Ok(Self {
            file,
            data: data.into(),
            data_len,
            index: Arc::new(index),
        })
    }

    /// The names this kernel has.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.index.keys().map(String::as_str)
    }

    /// The present value; `None` if the kernel has no scalar of that name.
    ///
    /// # Errors
    /// Whatever reading the descriptor answers.
    pub fn read(&self, name: &str) -> io::Result<Option<u64>> {
        let Some(&offset) = self.index.get(name) else {
            return Ok(None);
        };
        let mut word = [0; WORD];
        self.file
            .read_exact_at(&mut word, self.data.saturating_add(offset as u64))?;
        Ok(Some(u64::from_ne_bytes(word)))
    }

    /// All values as they are now.
    ///
    /// # Errors
    /// Whatever reading the descriptor answers.
    pub fn snapshot(&self) -> io::Result<Snapshot> {
        let mut bytes = vec![0; self.data_len];
        self.file.read_exact_at(&mut bytes, self.data)?;
        Ok(Snapshot {
            bytes,
            index: Arc::clone(&self.index),
        })
    }
}

impl Snapshot {
    /// The value at the time of the snapshot; `None` if the kernel has none.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<u64> {
        word64(&self.bytes, *self.index.get(name)?)
    }

    /// All names and values, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        let index = self.index.iter();
        index.filter_map(|(name, &at)| Some((name.as_str(), word64(&self.bytes, at)?)))
    }
}

/// Takes one descriptor apart: its name, offset in the data, and number of values.
fn parse(descriptor: &[u8]) -> io::Result<(String, usize, u16)> {
    let values = descriptor
        .get(6..8)
        .and_then(|bytes| bytes.try_into().ok())
        .map(u16::from_ne_bytes)
        .ok_or_else(|| unsound("descriptor length", descriptor.len()))?;
    let offset = word32(descriptor, 8)?;
    let name = descriptor.get(DESCRIPTOR..).unwrap_or_default();
    let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
    let name = String::from_utf8_lossy(name).into_owned();
    let offset = usize::try_from(offset).map_err(io::Error::other)?;
    Ok((name, offset, values))
}

fn word32(bytes: &[u8], at: usize) -> io::Result<u32> {
    bytes
        .get(at..at.saturating_add(4))
        .and_then(|bytes| bytes.try_into().ok())
        .map(u32::from_ne_bytes)
        .ok_or_else(|| unsound("length", bytes.len()))
}

fn word64(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.saturating_add(WORD))?;
    bytes.try_into().ok().map(u64::from_ne_bytes)
}

fn bounded(value: u32, limit: u32, what: &str) -> io::Result<usize> {
    let small = (value <= limit).then_some(value);
    small
        .and_then(|value| usize::try_from(value).ok())
        .ok_or_else(|| unsound(what, value))
}

fn unsound(what: &str, value: impl std::fmt::Display) -> io::Error {
    let text = format!("cannot read KVM statistics: the {what} {value} makes no sense");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
#[expect(
    clippy::arithmetic_side_effects,
    reason = "figures of a test are small"
)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const NAME: usize = 16;

    /// A statistics file as KVM lays it out.
    fn file(header: [u32; 6], descriptors: &[(&str, u32, u16)], data: &[u64]) -> OwnedFd {
        let mut bytes = Vec::new();
        for word in header {
            bytes.extend(word.to_ne_bytes());
        }
        for (name, offset, values) in descriptors {
            bytes.extend([0; 6]);
            bytes.extend(values.to_ne_bytes());
            bytes.extend(offset.to_ne_bytes());
            bytes.extend([0; 4]);
            let mut padded = name.as_bytes().to_vec();
            padded.resize(NAME, 0);
            bytes.extend(padded);
        }
        for word in data {
            bytes.extend(word.to_ne_bytes());
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        file.into()
    }

    const fn header(count: u32) -> [u32; 6] {
        [0, 16, count, 0, 24, 24 + count * 32]
    }

    #[test]
    fn stats_scalars_are_found_and_histograms_left_out() {
        let descriptors = [("exits", 0, 1), ("histogram", 8, 2), ("pf_taken", 24, 1)];
        let stats = Stats::from_fd(file(header(3), &descriptors, &[7, 1, 2, 9])).unwrap();
        assert_eq!(stats.read("exits").unwrap(), Some(7));
        assert_eq!(stats.read("pf_taken").unwrap(), Some(9));
        assert_eq!(stats.read("histogram").unwrap(), None);
        let snapshot = stats.try_clone().unwrap().snapshot().unwrap();
        assert_eq!(snapshot.get("pf_taken"), Some(9));
        assert_eq!(snapshot.get("none"), None);
        let all: Vec<_> = snapshot.iter().collect();
        assert_eq!(all, [("exits", 7), ("pf_taken", 9)]);
    }

    #[test]
    fn stats_header_without_sense_is_refused() {
        let mut long_names = header(1);
        long_names[1] = u32::MAX;
        for header in [long_names, header(4097)] {
            let error = Stats::from_fd(file(header, &[("exits", 0, 1)], &[7])).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn stats_offset_beyond_reason_is_refused() {
        let error = Stats::from_fd(file(header(1), &[("exits", u32::MAX, 1)], &[7])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot read KVM statistics: the offset of a value 4294967303 makes no sense"
        );
    }

    #[test]
    fn stats_short_file_is_an_error_not_a_zero() {
        let stats = Stats::from_fd(file(header(1), &[("exits", 8, 1)], &[7])).unwrap();
        stats.read("exits").unwrap_err();
        stats.snapshot().unwrap_err();
        Stats::from_fd(file(header(2), &[("exits", 0, 1)], &[])).unwrap_err();
    }
}
