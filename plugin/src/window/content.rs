//! Owns what a source is found to be: its content, as far as that is known before it is mapped, and
//! what the layout will say of it. Never puts anything in place; host memory alone is duplicated
//! here, since only the kernel knows whether it can be.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::io::Errno;

use super::prepare::stage_failed;
use super::shared::Shared;
use crate::arena::Staged;
use crate::error::Error;
use crate::layout::{Mapping, Origin};
use crate::range::{HUGE_2M, PAGE_SIZE, PageRange};
use crate::source::descriptor::{Descriptor, DescriptorKind};
use crate::source::policy::DescriptorPolicy;
use crate::source::{Memory, Protection, Source, host_memory, stable};

/// What the arena gets for a source, as far as it is known before it is mapped.
#[derive(Debug)]
pub(super) enum Content<'fd> {
    Hole,
    Anonymous,
    /// A second mapping of host memory.
    Duplicate {
        address: usize,
        staged: Option<Staged>,
    },
    Descriptor {
        fd: BorrowedFd<'fd>,
        offset: u64,
        kind: DescriptorKind,
        /// Device and inode.
        file: (u64, u64),
        direct: bool,
        /// Whether the file lacks pages.
        sparse: bool,
    },
}

/// The descriptor that was asked last: a batch often has many changes of one.
pub(super) type Last = Option<(RawFd, Descriptor, Kept)>;

/// A descriptor that has to be kept with its mapping.
pub(super) type Kept = Option<Arc<OwnedFd>>;

impl Shared {
    /// What the arena gets, and what the layout will say of it.
    pub(super) fn content<'fd>(
        &self,
        range: PageRange,
        source: &Source<'fd>,
        protection: Protection,
        last: &mut Last,
    ) -> Result<(Content<'fd>, Mapping), Error> {
        let mapping = |origin, keep, stable, huge| Mapping {
            range,
            protection,
            origin,
            label: source.label,
            huge,
            keep,
            stable,
        };
        match source.memory {
            Memory::Anonymous => Ok((
                Content::Anonymous,
                mapping(Origin::Anonymous, None, true, false),
            )),
            Memory::Host { address } => {
                let (content, origin) = self.host_memory(range, address, protection)?;
                Ok((content, mapping(origin, None, false, false)))
            }
            Memory::Descriptor { fd, offset } => {
                let (found, keep) = inspect(fd, range, source.policy, last)?;
                source.policy.judge(&found, range)?;
                if let Some(expected) = source.expected {
                    expected.judge(&found, offset, range)?;
                }
                found.admit(range, offset, protection, self.arena.address(range.start()))?;
                let Descriptor {
                    kind,
                    device,
                    inode,
                    ..
                } = found;
                let origin = Origin::Descriptor {
                    kind,
                    device,
                    inode,
                    offset,
                };
                let content = Content::Descriptor {
                    fd,
                    offset,
                    kind,
                    file: (device, inode),
                    // Pages can only come in before the mapping does where it is made elsewhere.
                    direct: found.cannot_fail_halfway()
                        && !source.collapse
                        && !self.fills_host(source.prefault),
                    sparse: found.sparse,
                };
                let (stable, huge) = (stable::is_stable(&found), found.block >= HUGE_2M);
                Ok((content, mapping(origin, keep, stable, huge)))
            }
        }
    }

    /// Host memory is duplicated; what cannot be gets a slot of its own, if that is allowed.
    fn host_memory<'fd>(
        &self,
        range: PageRange,
        address: usize,
        protection: Protection,
    ) -> Result<(Content<'fd>, Origin), Error> {
        let at = address as u64;
        if !at.is_multiple_of(PAGE_SIZE) {
            return Err(Error::SourceOffset { range, offset: at });
        }
        let origin = |in_place| Origin::HostMemory {
            address: at,
            in_place,
        };
        let refuse = |reason, source| Error::HostMemory {
            range,
            address: at,
            reason,
            source,
        };
        if self.backend.host_memory_in_place() {
            return Ok((Content::Hole, origin(true)));
        }
        let obstacle = host_memory::obstacle(at, range.len())
            .map_err(|source| refuse("its mapping cannot be looked up", Some(source)))?;
        let refused = match obstacle {
            Some(reason) => refuse(reason, None),
            None => match duplicate(range, address, protection) {
                Ok(staged) => {
                    let staged = Some(staged);
                    let content = Content::Duplicate { address, staged };
                    return Ok((content, origin(false)));
                }
                Err(Refusal::Protection(errno)) => {
                    let reason = "it does not allow the protection";
                    return Err(refuse(reason, Some(errno.into())));
                }
                Err(Refusal::Duplicate(errno)) => {
                    refuse("the kernel does not duplicate it", Some(errno.into()))
                }
            },
        };
        if !self.fallback {
            return Err(refused);
        }
        Ok((Content::Hole, origin(true)))
    }
}

/// What the kernel says of `fd`; asked once for changes of one descriptor that follow each other.
fn inspect(
    fd: BorrowedFd<'_>,
    range: PageRange,
    policy: DescriptorPolicy,
    last: &mut Last,
) -> Result<(Descriptor, Kept), Error> {
    match last {
        Some((raw, found, kept)) if *raw == fd.as_raw_fd() => Ok((*found, kept.clone())),
        _ => {
            let found = Descriptor::inspect(fd, range, policy)?;
            let kept = keep(found.kind, fd).map_err(|errno| stage_failed(range, errno))?;
            *last = Some((fd.as_raw_fd(), found, kept.clone()));
            Ok((found, kept))
        }
    }
}

/// Why host memory was not duplicated.
pub(super) enum Refusal {
    Duplicate(Errno),
    Protection(Errno),
}

pub(super) fn duplicate(
    range: PageRange,
    address: usize,
    protection: Protection,
) -> Result<Staged, Refusal> {
    // An address of this process and a length within its mapping fit a usize.
    let len = usize::try_from(range.len()).unwrap_or(usize::MAX);
    let staged = Staged::duplicate(address, len).map_err(Refusal::Duplicate)?;
    // The duplicate has the protection of the original.
    staged.protect(protection).map_err(Refusal::Protection)?;
    Ok(staged)
}

/// The kernel duplicates no hugetlb and no PFNMAP mapping, so a batch that fails maps them again.
fn keep(kind: DescriptorKind, fd: BorrowedFd<'_>) -> rustix::io::Result<Kept> {
    match kind {
        DescriptorKind::Hugetlb { .. } | DescriptorKind::DmaBuf => {
            Ok(Some(Arc::new(rustix::io::fcntl_dupfd_cloexec(fd, 0)?)))
        }
        DescriptorKind::Shmem | DescriptorKind::RegularFile => Ok(None),
    }
}
