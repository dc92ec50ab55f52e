//! Owns what is asked of a descriptor before it is mapped: kind, size, access, seals.
//! Never maps it, and never believes it beyond the call: a peer can change it at any time.

use std::fmt;
use std::os::fd::BorrowedFd;

use rustix::fs::{
    AtFlags, FileType, OFlags, SealFlags, StatxFlags, fcntl_get_seals, fcntl_getfl, fstat, fstatfs,
    statx,
};
use rustix::io::Errno;

use crate::error::Error;
use crate::range::{PAGE_SIZE, PageRange};
use crate::source::Protection;
use crate::source::policy::DescriptorPolicy;

/// File-system numbers, as `fstatfs` reports them (Linux: `include/uapi/linux/magic.h`).
const TMPFS_MAGIC: i64 = 0x0102_1994;
const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;
const DMA_BUF_MAGIC: i64 = 0x444d_4142;

/// What a mapped descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum DescriptorKind {
    /// A memfd, or another file on tmpfs.
    Shmem,
    /// A hugetlb memfd, or another file on hugetlbfs.
    Hugetlb {
        /// Size of its pages, in bytes.
        page_size: u64,
    },
    /// A file on any other file system.
    RegularFile,
    /// A dma-buf.
    DmaBuf,
}

impl fmt::Display for DescriptorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shmem => f.write_str("memfd"),
            Self::Hugetlb { page_size } => write!(f, "hugetlb {page_size:#x}"),
            Self::RegularFile => f.write_str("file"),
            Self::DmaBuf => f.write_str("dma-buf"),
        }
    }
}

/// What the kernel says of a descriptor at one instant.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    pub(crate) kind: DescriptorKind,
    pub(crate) device: u64,
    pub(crate) inode: u64,
    /// Asked for where the seals leave the kind open.
    file_system: Option<i64>,
    /// Size of the pages that its file system gives it, as far as that says so (`st_blksize`; Linux:
    /// `mm/shmem.c` `shmem_getattr`).
    pub(crate) block: u64,
    /// Whether the file lacks pages, on tmpfs; elsewhere `st_blocks` does not tell.
    pub(crate) sparse: bool,
    size: u64,
    /// Read before the size: what is sealed against shrinking keeps at least that.
    pub(super) seals: Option<SealFlags>,
    /// Not asked for where [`Descriptor::cannot_fail_halfway`] holds: the kernel judges the access
    /// mode before it unmaps anything (mmap(2), EACCES; Linux: `mm/mmap.c` `do_mmap`).
    flags: Option<OFlags>,
}

impl Descriptor {
    /// Asks the kernel about `fd`, and refuses what cannot stand behind guest memory. Each question
    /// is a system call on the path of every map, so none is asked twice. Where `policy` accepts no
    /// file of any file system, none is asked that its owner would have to answer.
    pub(crate) fn inspect(
        fd: BorrowedFd<'_>,
        range: PageRange,
        policy: DescriptorPolicy,
    ) -> Result<Self, Error> {
        let failed = |errno: Errno| Error::Inspect {
            range,
            source: errno.into(),
        };
        let refused = |kind| Error::DescriptorKind { range, kind };
        let seals = match fcntl_get_seals(fd) {
            Ok(seals) => Some(seals),
            // The file system has no seals.
            Err(Errno::INVAL) => None,
            Err(errno) => {
                let path = fcntl_getfl(fd).is_ok_and(|flags| flags.contains(OFlags::PATH));
                return Err(if path {
                    refused("an O_PATH descriptor")
                } else {
                    failed(errno)
                });
            }
        };
        if seals.is_none() && !policy.accepts_files() {
            refuse_files(fd, range, policy)?;
        }
        let stat = fstat(fd).map_err(failed)?;
        // Seals exist on tmpfs and hugetlbfs only, and huge pages are larger than this.
        let (kind, file_system) =
            if seals.is_some() && u64::try_from(stat.st_blksize) == Ok(PAGE_SIZE) {
                (DescriptorKind::Shmem, None)
            } else {
                let file_system = fstatfs(fd).map_err(failed)?;
                let page_size = u64::try_from(file_system.f_bsize).unwrap_or(PAGE_SIZE);
                let file_type = FileType::from_raw_mode(stat.st_mode);
                let kind = kind_of(file_type, file_system.f_type, page_size).map_err(refused)?;
                (kind, Some(file_system.f_type))
            };
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let (device, inode) = (stat.st_dev, stat.st_ino);
        let bytes = u64::try_from(stat.st_blocks)
            .unwrap_or(0)
            .saturating_mul(512);
        let mut found = Self {
            kind,
            device,
            inode,
            file_system,
            block: match kind {
                DescriptorKind::Hugetlb { page_size } => page_size,
                DescriptorKind::Shmem => u64::try_from(stat.st_blksize).unwrap_or(PAGE_SIZE),
                DescriptorKind::RegularFile | DescriptorKind::DmaBuf => PAGE_SIZE,
            },
            sparse: kind == DescriptorKind::Shmem && bytes < size,
            size,
            seals,
            flags: None,
        };
        if !found.cannot_fail_halfway() {
            found.flags = Some(fcntl_getfl(fd).map_err(failed)?);
        }
        Ok(found)
    }

    /// Checks a request for `range` from `offset` on, to lie at the host address `address`.
    pub(crate) fn admit(
        &self,
        range: PageRange,
        offset: u64,
        protection: Protection,
        address: u64,
    ) -> Result<(), Error> {
        if !offset.is_multiple_of(PAGE_SIZE) {
            return Err(Error::SourceOffset { range, offset });
        }
        if let DescriptorKind::Hugetlb { page_size } = self.kind {
            let aligned = |value: u64| value.is_multiple_of(page_size);
            if !(aligned(offset) && aligned(range.len()) && aligned(address)) {
                return Err(Error::HugePageAlignment {
                    range,
                    page_size,
                    address,
                    offset,
                });
            }
        }
        let end = offset.checked_add(range.len());
        // The last page of a file whose size is no multiple of a page can be mapped.
        let limit = self
            .size
            .checked_next_multiple_of(PAGE_SIZE)
            .unwrap_or(self.size);
        if end.is_none_or(|end| end > limit) {
            let end = end.unwrap_or(u64::MAX);
            return Err(Error::PastEnd {
                range,
                offset,
                end,
                size: self.size,
            });
        }
        self.admit_access(range, protection)
    }

    fn admit_access(&self, range: PageRange, protection: Protection) -> Result<(), Error> {
        if let Some(flags) = self.flags.filter(|flags| !allows(*flags, protection)) {
            return Err(access_error(range, flags, protection));
        }
        match self.seals {
            Some(seals) if protection.is_writable() && forbids_writing(seals) => {
                Err(Error::Sealed {
                    range,
                    seals: seals.bits(),
                })
            }
            _ => Ok(()),
        }
    }

    /// Whether nobody can take pages away from the end of the file: seals are never taken back
    /// (Linux: `mm/memfd.c` `memfd_add_seals`), and they were asked for before the size was.
    pub(crate) fn cannot_shrink(&self) -> bool {
        self.kind == DescriptorKind::Shmem
            && self
                .seals
                .is_some_and(|seals| seals.contains(SealFlags::SHRINK))
    }

    /// Whether nobody can make a `MAP_FIXED` of this descriptor fail after the kernel has
    /// unmapped what was there: shmem's own mmap fails for its seals only, and they are final
    /// (Linux: `mm/shmem.c` `shmem_mmap`, `mm/mmap.c` `mapping_map_writable`, 6.1 to 6.18).
    pub(crate) fn cannot_fail_halfway(&self) -> bool {
        self.kind == DescriptorKind::Shmem
            && self
                .seals
                .is_some_and(|seals| seals.contains(SealFlags::SEAL) && !forbids_writing(seals))
    }
}

impl fmt::Display for Descriptor {
    /// The kind, and the file system of a file that may be on any.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.kind, self.file_system) {
            (DescriptorKind::RegularFile, Some(number)) => {
                write!(f, "file on file system {number:#x}")
            }
            (kind, _) => kind.fmt(f),
        }
    }
}

/// Refuses what is a file of a file system, by what the kernel knows of it: its owner can leave
/// `fstat` and `fstatfs` waiting (Linux: `fs/fuse/dir.c` `fuse_update_get_attr`).
fn refuse_files(
    fd: BorrowedFd<'_>,
    range: PageRange,
    policy: DescriptorPolicy,
) -> Result<(), Error> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let known = statx(fd, c"", flags, StatxFlags::TYPE).map_err(|errno| Error::Inspect {
        range,
        source: errno.into(),
    })?;
    match FileType::from_raw_mode(known.stx_mode.into()) {
        // A dma-buf has no type.
        FileType::Unknown => Ok(()),
        file_type => {
            kind_of(file_type, 0, PAGE_SIZE)
                .map_err(|kind| Error::DescriptorKind { range, kind })?;
            Err(policy.refuses(range, "file".to_owned()))
        }
    }
}

/// What to say of a descriptor that the kernel refused with `EACCES`, if it is for its access mode:
/// a security module says the same.
pub(crate) fn access_refused(
    fd: BorrowedFd<'_>,
    range: PageRange,
    protection: Protection,
) -> Option<Error> {
    let flags = fcntl_getfl(fd).ok()?;
    (!allows(flags, protection)).then(|| access_error(range, flags, protection))
}

/// Whether a descriptor that is open like this can be mapped with that protection.
fn allows(flags: OFlags, protection: Protection) -> bool {
    match flags & OFlags::ACCMODE {
        OFlags::WRONLY => false,
        OFlags::RDONLY => !protection.is_writable(),
        _ => true,
    }
}

fn access_error(range: PageRange, flags: OFlags, protection: Protection) -> Error {
    let open = match flags & OFlags::ACCMODE {
        OFlags::RDONLY => "read-only",
        OFlags::WRONLY => "write-only",
        _ => "read-write",
    };
    Error::DescriptorAccess {
        range,
        wanted: protection.name(),
        open,
    }
}

fn forbids_writing(seals: SealFlags) -> bool {
    seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE)
}

pub(super) fn kind_of(
    file_type: FileType,
    file_system: i64,
    page_size: u64,
) -> Result<DescriptorKind, &'static str> {
    match (file_system, file_type) {
        (DMA_BUF_MAGIC, _) => Ok(DescriptorKind::DmaBuf),
        (HUGETLBFS_MAGIC, FileType::RegularFile) => Ok(DescriptorKind::Hugetlb { page_size }),
        (TMPFS_MAGIC, FileType::RegularFile) => Ok(DescriptorKind::Shmem),
        (_, FileType::RegularFile) => Ok(DescriptorKind::RegularFile),
        (_, FileType::Directory) => Err("a directory"),
        (_, FileType::Socket) => Err("a socket"),
        (_, FileType::Fifo) => Err("a pipe"),
        (_, FileType::CharacterDevice) => Err("a character device"),
        (_, FileType::BlockDevice) => Err("a block device"),
        (_, FileType::Symlink) => Err("a symbolic link"),
        (_, _) => Err("an anonymous inode"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::fs::{MemfdFlags, fcntl_add_seals, ftruncate, memfd_create};

    use super::*;

    impl Descriptor {
        /// A descriptor of nothing, for those who judge it.
        pub(in crate::source) fn of_test(kind: DescriptorKind, seals: Option<SealFlags>) -> Self {
            Self {
                block: PAGE_SIZE,
                sparse: false,
                kind,
                device: 0,
                inode: 0,
                file_system: None,
                size: 0,
                seals,
                flags: None,
            }
        }
    }

    fn range(len: u64) -> PageRange {
        PageRange::new(0, len).unwrap()
    }

    #[test]
    fn size_check_allows_the_last_partial_page_and_no_more() {
        let fd = memfd_create("partial", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, 5000).unwrap();
        let descriptor =
            Descriptor::inspect(fd.as_fd(), range(8192), DescriptorPolicy::own()).unwrap();
        descriptor
            .admit(range(8192), 0, Protection::ReadWrite, 0)
            .unwrap();
        let error = descriptor
            .admit(range(8192), 4096, Protection::ReadWrite, 0)
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot map 0x0..0x2000: it needs the descriptor's bytes 0x1000..0x3000, and the \
             descriptor ends at 0x1388"
        );
    }

    #[test]
    fn offset_near_the_end_of_the_address_space_does_not_wrap() {
        let fd = memfd_create("wrap", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, 4096).unwrap();
        let descriptor =
            Descriptor::inspect(fd.as_fd(), range(4096), DescriptorPolicy::own()).unwrap();
        let offset = u64::MAX - 4095;
        let error = descriptor
            .admit(range(4096), offset, Protection::ReadOnly, 0)
            .unwrap_err();
        assert!(
            matches!(error, Error::PastEnd { end: u64::MAX, .. }),
            "{error}"
        );
    }

    #[test]
    fn only_final_seals_that_allow_writing_skip_the_staging() {
        let sealed = |seals| {
            let fd = memfd_create("s", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
            fcntl_add_seals(&fd, seals).unwrap();
            Descriptor::inspect(fd.as_fd(), range(4096), DescriptorPolicy::own())
                .unwrap()
                .cannot_fail_halfway()
        };
        assert!(sealed(SealFlags::SEAL));
        assert!(sealed(SealFlags::SEAL | SealFlags::SHRINK));
        assert!(!sealed(SealFlags::empty()));
        assert!(!sealed(SealFlags::SHRINK));
        assert!(!sealed(SealFlags::SEAL | SealFlags::WRITE));
        assert!(!sealed(SealFlags::SEAL | SealFlags::FUTURE_WRITE));
    }
}
