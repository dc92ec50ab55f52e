//! Owns the memory that the changes put in place: one file or one for each change, the VMM's own or a
//! peer's. Never maps it.

use std::fs::File;
use std::os::fd::AsFd;

use anyhow::Context as _;
use vm_remap::Source;

use super::EACH;
use crate::bench::blob::{Owner, file};

/// Whose files, and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Files {
    One,
    OneOfAPeer,
    Many,
    ManyOfAPeer,
}

impl Files {
    pub(super) const ALL: [Self; 4] = [Self::One, Self::OneOfAPeer, Self::Many, Self::ManyOfAPeer];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::One => "one-file",
            Self::OneOfAPeer => "one-file-peer",
            Self::Many => "many-files",
            Self::ManyOfAPeer => "many-files-peer",
        }
    }

    /// Two sets of memory for `count` changes, which take turns.
    pub(super) fn supply(self, count: u64) -> anyhow::Result<[Supply; 2]> {
        Ok([self.set(count)?, self.set(count)?])
    }

    fn set(self, count: u64) -> anyhow::Result<Supply> {
        let owner = match self {
            Self::One | Self::Many => Owner::Vmm,
            Self::OneOfAPeer | Self::ManyOfAPeer => Owner::Peer,
        };
        let (files, len) = match self {
            Self::One | Self::OneOfAPeer => (1, EACH.saturating_mul(count)),
            Self::Many | Self::ManyOfAPeer => (count, EACH),
        };
        let files = (0..files)
            .map(|_| file(len, owner))
            .collect::<Result<_, _>>()
            .context("cannot make the files; raise the limit of open files")?;
        Ok(Supply { files })
    }
}

/// Memory for some changes.
#[derive(Debug)]
pub(super) struct Supply {
    files: Vec<File>,
}

impl Supply {
    /// What change `index` puts in place.
    pub(super) fn source(&self, index: u64) -> anyhow::Result<Source<'_>> {
        let (file, offset) = match self.files.as_slice() {
            [one] => (Some(one), index.saturating_mul(EACH)),
            many => (many.get(usize::try_from(index)?), 0),
        };
        let file = file.context("cannot find the file of a change")?;
        Ok(Source::descriptor(file.as_fd(), offset))
    }
}
