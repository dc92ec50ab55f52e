//! Owns the memory that is made ready: four kinds of files. Never maps it.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::Context as _;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use crate::bench::blob::{Owner, file};
use crate::guest::BLOCK;

/// What stands behind a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Pages of 4 KiB that are all there.
    Warm,
    /// Pages of 4 KiB, none of which is there.
    Cold,
    /// A memfd whose pages were made 2 MiB ones.
    ShmemHuge,
    /// Pages of 2 MiB of the pool.
    Hugetlb,
}

impl Kind {
    pub(super) const ALL: [Self; 4] = [Self::Warm, Self::Cold, Self::ShmemHuge, Self::Hugetlb];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Warm => "memfd-warm",
            Self::Cold => "memfd-cold",
            Self::ShmemHuge => "shmem-huge",
            Self::Hugetlb => "hugetlb-2m",
        }
    }

    fn is_huge(self) -> bool {
        matches!(self, Self::ShmemHuge | Self::Hugetlb)
    }
}

/// Blobs of one kind and size.
#[derive(Debug)]
pub(super) struct Supply {
    pub(super) kind: Kind,
    pub(super) len: u64,
    kept: Option<File>,
}

impl Supply {
    /// `None` where the size, or this host, does not allow the kind. `collapse` makes huge pages of a
    /// memfd, and says whether it did.
    pub(super) fn new(
        kind: Kind,
        len: u64,
        collapse: &dyn Fn(BorrowedFd<'_>) -> anyhow::Result<bool>,
    ) -> anyhow::Result<Option<Self>> {
        if kind.is_huge() && !len.is_multiple_of(BLOCK) {
            return Ok(None);
        }
        let all_there = || {
            file(len, Owner::Vmm)
                .with_context(|| format!("cannot make a blob of {len:#x} bytes; pass --quick"))
        };
        let kept = match kind {
            Kind::Warm => Some(all_there()?),
            Kind::Cold => None,
            Kind::ShmemHuge => {
                let file = all_there()?;
                if !collapse(file.as_fd())? {
                    log::info!("this host makes no huge pages of a memfd");
                    return Ok(None);
                }
                Some(file)
            }
            Kind::Hugetlb => match hugetlb(len) {
                Ok(file) => Some(file),
                Err(error) => {
                    log::info!("this host has no hugetlb pages: {error}");
                    return Ok(None);
                }
            },
        };
        Ok(Some(Self { kind, len, kept }))
    }

    /// The blob for the next sample.
    pub(super) fn next(&self) -> anyhow::Result<File> {
        match &self.kept {
            Some(file) => file.try_clone().context("cannot use a blob again"),
            None => cold(self.len).context("cannot make a fresh blob"),
        }
    }
}

/// Sealed, as what a VMM makes itself should be.
fn cold(len: u64) -> std::io::Result<File> {
    let fd = memfd_create("ready", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let file = File::from(fd);
    file.set_len(len)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(file)
}

fn hugetlb(len: u64) -> std::io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    let file = File::from(memfd_create("ready", flags)?);
    file.set_len(len)?;
    // The pages are taken now: a pool that is short shows here, and every sample finds them.
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, len)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn cold_blobs_are_fresh_and_warm_ones_are_the_same_each_time() {
        let cold = Supply::new(Kind::Cold, 8192, &|_| Ok(false))
            .unwrap()
            .unwrap();
        let [a, b] = [cold.next().unwrap(), cold.next().unwrap()].map(|f| f.metadata().unwrap());
        assert_ne!(a.ino(), b.ino());
        assert_eq!((a.blocks(), a.len()), (0, 8192));
        let warm = Supply::new(Kind::Warm, 8192, &|_| Ok(false))
            .unwrap()
            .unwrap();
        let [a, b] = [warm.next().unwrap(), warm.next().unwrap()].map(|f| f.metadata().unwrap());
        assert_eq!(a.ino(), b.ino());
        assert_eq!(a.blocks() * 512, 8192);
    }

    #[test]
    fn huge_pages_come_in_whole_blocks_only() {
        for kind in [Kind::ShmemHuge, Kind::Hugetlb] {
            assert!(
                Supply::new(kind, 64 << 10, &|_| Ok(true))
                    .unwrap()
                    .is_none()
            );
        }
    }
}
