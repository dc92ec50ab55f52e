//! Owns the first half of a change: the source is checked and, where its owner could make the
//! kernel fail half-way, mapped elsewhere. Never touches the arena, the layout or a slot, so that
//! whatever fails here has changed nothing.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;

use super::batch::Change;
use super::prefault::Filled;
use super::shared::Shared;
use crate::arena::{Site, Staged};
use crate::error::Error;
use crate::layout::{Mapping, Origin};
use crate::range::{PAGE_SIZE, PageRange};
use crate::source::descriptor::{Descriptor, DescriptorKind, access_refused};
use crate::source::host_memory;
use crate::source::{Memory, Protection, Source};

/// A change that is ready to be made.
#[derive(Debug)]
pub(super) struct Prepared<'fd> {
    pub(super) range: PageRange,
    /// Whether the range must be a hole.
    pub(super) into_hole: bool,
    /// What the layout will say, `None` for a hole.
    pub(super) mapping: Option<Mapping>,
    pub(super) placement: Placement<'fd>,
    /// What has come of its prefault so far.
    pub(super) filled: Filled,
}

/// What the arena gets.
#[derive(Debug)]
pub(super) enum Placement<'fd> {
    /// A hole: the range is unmapped, or memory elsewhere gets a slot of its own.
    Hole,
    /// A mapping that was made elsewhere.
    Staged(Staged),
    /// A mapping that is made in place.
    Direct {
        fd: BorrowedFd<'fd>,
        offset: u64,
        protection: Protection,
    },
}

impl Shared {
    pub(super) fn prepare<'fd>(&self, change: &Change<'fd>) -> Result<Prepared<'fd>, Error> {
        let range = change.range();
        if !self.geometry.window.covers(range) {
            return Err(Error::OutsideWindow {
                range,
                window: self.geometry.window.len(),
            });
        }
        let (source, protection, into_hole) = match *change {
            Change::Unmap { .. } => {
                let placement = Placement::Hole;
                return Ok(Prepared {
                    range,
                    into_hole: false,
                    mapping: None,
                    placement,
                    filled: Filled::NotAsked,
                });
            }
            Change::Map {
                source, protection, ..
            } => (source, protection, true),
            Change::Replace {
                source, protection, ..
            } => (source, protection, false),
        };
        let (placement, origin, keep) = self.stage(range, &source, protection)?;
        let filled = self.fill(range, &placement, source.prefault, protection)?;
        let mapping = Some(Mapping {
            range,
            protection,
            origin,
            label: source.label,
            keep,
        });
        Ok(Prepared {
            range,
            into_hole,
            mapping,
            placement,
            filled,
        })
    }

    fn stage<'fd>(
        &self,
        range: PageRange,
        source: &Source<'fd>,
        protection: Protection,
    ) -> Result<(Placement<'fd>, Origin, Kept), Error> {
        let failed = |errno: Errno| Error::Stage {
            range,
            source: errno.into(),
        };
        let fills_host = self.fills_host(source.prefault);
        let site = if fills_host {
            Site::CongruentWith(self.arena.address(range.start()))
        } else {
            Site::Anywhere
        };
        match source.memory {
            Memory::Anonymous => {
                let staged = Staged::anonymous(range.len(), protection, site).map_err(failed)?;
                Ok((Placement::Staged(staged), Origin::Anonymous, None))
            }
            Memory::Host { address } => {
                let (placement, origin) = self.stage_host_memory(range, address, protection)?;
                Ok((placement, origin, None))
            }
            Memory::Descriptor { fd, offset } => {
                let found = Descriptor::inspect(fd, range)?;
                source.policy.judge(&found, range)?;
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
                // Pages can only come in before the mapping does where it is made elsewhere.
                if found.cannot_fail_halfway() && !fills_host {
                    let direct = Placement::Direct {
                        fd,
                        offset,
                        protection,
                    };
                    return Ok((direct, origin, None));
                }
                let staged = Staged::descriptor(range.len(), fd, offset, protection, site);
                let staged = staged.map_err(|errno| {
                    let access = (errno == Errno::ACCESS)
                        .then(|| access_refused(fd, range, protection))
                        .flatten();
                    access.unwrap_or_else(|| failed(errno))
                })?;
                let keep = keep(kind, fd).map_err(failed)?;
                Ok((Placement::Staged(staged), origin, keep))
            }
        }
    }

    /// Host memory is duplicated; what cannot be gets a slot of its own, if that is allowed.
    fn stage_host_memory<'fd>(
        &self,
        range: PageRange,
        address: usize,
        protection: Protection,
    ) -> Result<(Placement<'fd>, Origin), Error> {
        let at = address as u64;
        if !at.is_multiple_of(PAGE_SIZE) {
            return Err(Error::SourceOffset { range, offset: at });
        }
        let in_place = || {
            (
                Placement::Hole,
                Origin::HostMemory {
                    address: at,
                    in_place: true,
                },
            )
        };
        let refuse = |reason, source| Error::HostMemory {
            range,
            address: at,
            reason,
            source,
        };
        if self.backend.host_memory_in_place() {
            return Ok(in_place());
        }
        let obstacle = host_memory::obstacle(at, range.len())
            .map_err(|source| refuse("its mapping cannot be looked up", Some(source)))?;
        let refused = match obstacle {
            Some(reason) => refuse(reason, None),
            None => {
                // An address of this process and a length within its mapping fit a usize.
                let len = usize::try_from(range.len()).unwrap_or(usize::MAX);
                let duplicated = Staged::duplicate(address, len);
                match duplicated {
                    Ok(staged) => {
                        // The duplicate has the protection of the original.
                        staged.protect(protection).map_err(|errno| {
                            refuse("it does not allow the protection", Some(errno.into()))
                        })?;
                        let origin = Origin::HostMemory {
                            address: at,
                            in_place: false,
                        };
                        return Ok((Placement::Staged(staged), origin));
                    }
                    Err(errno) => refuse("the kernel does not duplicate it", Some(errno.into())),
                }
            }
        };
        if !self.fallback {
            return Err(refused);
        }
        Ok(in_place())
    }
}

/// A descriptor that has to be kept with its mapping.
type Kept = Option<Arc<OwnedFd>>;

/// The kernel duplicates no hugetlb and no PFNMAP mapping, so a batch that fails maps them again.
fn keep(kind: DescriptorKind, fd: BorrowedFd<'_>) -> rustix::io::Result<Kept> {
    match kind {
        DescriptorKind::Hugetlb { .. } | DescriptorKind::DmaBuf => {
            Ok(Some(Arc::new(rustix::io::fcntl_dupfd_cloexec(fd, 0)?)))
        }
        DescriptorKind::Shmem | DescriptorKind::RegularFile => Ok(None),
    }
}
