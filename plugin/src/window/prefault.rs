//! Owns when a mapping's pages are brought in, and the counting of what came of it: the host's
//! pages before the change, the guest's translations after it. Never fails a change that is made.

use std::os::fd::BorrowedFd;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::Window;
use super::counters::count;
use super::prepare::Placement;
use super::shared::Shared;
use crate::arena::Populate;
use crate::error::Error;
use crate::range::PageRange;
use crate::source::Protection;
use crate::source::prefault::Prefault;

/// What has come of a prefault when the change is ready to be made; the worse, the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Filled {
    /// None was asked for.
    NotAsked,
    /// All that was asked for.
    Fully,
    /// Less than that.
    Partly,
    /// The guest's translations come when the memory is in place.
    Later,
}

/// Makes the pages of a tmpfs file that lacks some, which costs less in one go than in the faults
/// that find them missing. Whatever is refused here, the populating after it finds out and reports;
/// a file that has shrunk does not grow.
pub(super) fn allocate(fd: BorrowedFd<'_>, offset: u64, len: u64) {
    if let Err(errno) = fallocate(fd, FallocateFlags::KEEP_SIZE, offset, len) {
        log::debug!("cannot make the pages of a file ahead: {errno}");
    }
}

impl Shared {
    /// Whether the host's pages are brought in before the mapping is put in place.
    pub(super) fn fills_host(&self, wanted: Prefault) -> bool {
        match wanted {
            Prefault::None => false,
            Prefault::HostRead | Prefault::HostWrite => true,
            Prefault::Guest => !self.guest_prefault,
        }
    }

    /// Brings in what can be brought in now.
    pub(super) fn fill(
        &self,
        range: PageRange,
        placement: &Placement<'_>,
        wanted: Prefault,
        protection: Protection,
    ) -> Result<Filled, Error> {
        let (how, enough) = match wanted {
            Prefault::None => return Ok(Filled::NotAsked),
            Prefault::Guest if self.guest_prefault => return Ok(Filled::Later),
            Prefault::Guest => (Populate::Read, Filled::Partly),
            Prefault::HostWrite if protection.is_writable() => (Populate::Write, Filled::Fully),
            Prefault::HostRead | Prefault::HostWrite => (Populate::Read, Filled::Fully),
        };
        let Placement::Staged(staged) = placement else {
            // The memory is the caller's, and it is not in the arena.
            return Ok(Filled::Partly);
        };
        match staged.populate(how) {
            Ok(()) => Ok(enough),
            // The kernel does not do it for this memory. The guest's faults still can.
            Err(Errno::INVAL | Errno::NOSYS) => Ok(Filled::Partly),
            Err(errno) => Err(Error::Prefault {
                range,
                source: errno.into(),
            }),
        }
    }
}

impl Window {
    /// Fills the guest's translations where that was asked for, now that the memory is in place.
    ///
    /// Outside the lock: should another thread change the range meanwhile, what it put there is
    /// filled, or the hypervisor finds nothing to fill.
    pub(super) fn finish_prefault(&self, filled: &[(PageRange, Filled)]) {
        let tally = &self.shared.tally;
        for &(range, filled) in filled {
            let done = match filled {
                Filled::NotAsked => continue,
                Filled::Fully => true,
                Filled::Partly => false,
                Filled::Later => self.prefault_guest(range),
            };
            count(if done {
                &tally.prefaulted
            } else {
                &tally.prefault_fallbacks
            });
        }
    }

    fn prefault_guest(&self, range: PageRange) -> bool {
        let Some(guest) = self.base().checked_add(range.start()) else {
            return false;
        };
        let filled = self.shared.provider.prefault(guest, range.len());
        if let Err(error) = &filled {
            log::warn!("cannot fill the guest's translations of {range}: {error}");
        }
        filled.is_ok()
    }
}
