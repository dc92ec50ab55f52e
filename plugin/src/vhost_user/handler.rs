//! Owns what a request for shared memory does to the windows of its device. Never reads a socket,
//! and never believes a figure.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, PoisonError};

use vhost::vhost_user::message::{VhostUserMMap, VhostUserSharedMsg};
use vhost::vhost_user::{HandlerResult, VhostUserFrontendReqHandler};

use super::book::{Book, Found, Met};
use super::borrowed::borrow;
use super::closer::Threads;
use super::quota::{ShmemLimits, Usage};
use super::refusal::Refusal;
use super::request::{MapRequest, UnmapRequest};
use super::tally::{ShmemCounters, count};
use crate::range::PageRange;
use crate::source::Source;
use crate::source::descriptor::{Descriptor, DescriptorKind};
use crate::source::policy::DescriptorPolicy;
use crate::source::prefault::Prefault;
use crate::sync::{Mutex, MutexGuard};
use crate::window::Window;

/// What happens to a map over a live mapping of the very same range. Any other map over what is
/// mapped is refused with `EEXIST`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Overlap {
    /// It is refused with `EEXIST`, as the vhost-user specification has it.
    #[default]
    Refuse,
    /// It replaces the mapping, atomically for the guest where the backend of the window is
    /// [`Fixed`](crate::BackendKind::Fixed). A virtio-fs device with DAX needs it: Linux sets a
    /// range up once more to make it writable.
    ReplaceSame,
}

/// Serves the requests of a vhost-user backend that are none of shared memory: nothing, each is
/// refused with `ENOSYS`.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoOtherRequests;

impl VhostUserFrontendReqHandler for NoOtherRequests {}

/// Maps and unmaps what a vhost-user backend asks for, over one window for each of its shared memory
/// regions. It passes every other request on to a handler of the VMM's.
///
/// The content of the windows belongs to the handler: nobody else may map into them, and
/// [`reset`](Self::reset) makes all of them a hole.
///
/// **Ordering.** When a call returns, the new memory is visible to every vCPU and the old out of
/// reach; the answer goes out after that.
///
/// **Threads.** Requests and resets of one device are served one at a time, on any thread.
///
/// | request | answer |
/// | --- | --- |
/// | region without a window | `ENXIO` |
/// | offset or length that is no multiple of 4 KiB, wraps around or reaches past the region; a length of 0; a flag other than bit 0 | `EINVAL` |
/// | map past the end of the descriptor | `EOVERFLOW` |
/// | writable map of a descriptor that is open for reading | `EACCES` |
/// | descriptor that the policy keeps out | `EPERM` |
/// | map over what is mapped | `EEXIST`; see [`Overlap`] |
/// | unmap of some whole mappings, with holes between or around them | done |
/// | unmap of the whole region | done, also where nothing is mapped |
/// | unmap of another range where nothing is mapped | `ENOENT` |
/// | unmap that cuts a mapping | `EINVAL` |
/// | map beyond the quota | `EDQUOT` |
/// | change of memory that is pinned for longer than the window waits | `EBUSY` |
///
/// Every other failure has the number that [`Error::errno`](crate::Error::errno) gives.
#[derive(Debug)]
pub struct ShmemHandler<I = NoOtherRequests> {
    pub(super) windows: BTreeMap<u8, Arc<Window>>,
    limits: ShmemLimits,
    policy: DescriptorPolicy,
    prefault: Prefault,
    overlap: Overlap,
    inner: I,
    books: Mutex<Books>,
    closers: Threads,
}

/// What the device has, and what came of its requests.
#[derive(Debug, Default)]
pub(super) struct Books {
    pub(super) by_region: BTreeMap<u8, Book>,
    pub(super) usage: Usage,
    pub(super) counters: ShmemCounters,
    last: Option<Refusal>,
}

impl ShmemHandler {
    /// A handler for the regions of one device, by id, each with its window. The size of a region is
    /// the length of its window.
    ///
    /// Descriptors are judged by [`DescriptorPolicy::peer`], there is no prefault, and limits are
    /// [`ShmemLimits::default`], unless set otherwise.
    #[must_use]
    pub fn new(windows: impl IntoIterator<Item = (u8, Arc<Window>)>) -> Self {
        Self {
            windows: windows.into_iter().collect(),
            limits: ShmemLimits::default(),
            policy: DescriptorPolicy::peer(),
            prefault: Prefault::None,
            overlap: Overlap::default(),
            inner: NoOtherRequests,
            books: Mutex::default(),
            closers: Threads::default(),
        }
    }
}

impl<I> ShmemHandler<I> {
    /// How much the device may have.
    #[must_use]
    pub fn limits(mut self, limits: ShmemLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Which descriptors of the backend are let in.
    #[must_use]
    pub fn policy(mut self, policy: DescriptorPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Whether pages are brought in before the answer goes out. The VMM's thread does that, and
    /// waits for as long as it takes.
    #[must_use]
    pub fn prefault(mut self, prefault: Prefault) -> Self {
        self.prefault = prefault;
        self
    }

    /// What a map over the very same range does.
    #[must_use]
    pub fn overlap(mut self, overlap: Overlap) -> Self {
        self.overlap = overlap;
        self
    }

    /// Who serves the other requests: changes of the configuration, shared objects.
    #[must_use]
    pub fn inner<J: VhostUserFrontendReqHandler>(self, inner: J) -> ShmemHandler<J> {
        ShmemHandler {
            windows: self.windows,
            limits: self.limits,
            policy: self.policy,
            prefault: self.prefault,
            overlap: self.overlap,
            inner,
            books: self.books,
            closers: self.closers,
        }
    }

    /// What the device has asked for, and what it has.
    #[must_use]
    pub fn counters(&self) -> ShmemCounters {
        let books = self.books();
        books.counters.with(&books.usage)
    }

    /// Why the last request was refused, if it was and nobody has asked yet. The backend has got
    /// nothing but its number.
    #[must_use]
    pub fn take_refusal(&self) -> Option<Refusal> {
        self.books().last.take()
    }

    pub(super) fn requests_per_wake(&self) -> usize {
        self.limits.requests_per_wake
    }

    pub(super) fn closers(&self) -> &Threads {
        &self.closers
    }

    pub(super) fn books(&self) -> MutexGuard<'_, Books> {
        // The books follow each call once it is over. Where one panicked, its window is poisoned.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a message that never became a request.
    pub(super) fn note(&self, refusal: &Refusal) {
        log::debug!("{refusal}");
        self.books().counters.refuse(refusal);
    }

    fn size_of(&self, region: u8) -> Option<u64> {
        self.windows.get(&region).map(|window| window.len())
    }

    fn window(&self, region: u8) -> Result<&Window, Refusal> {
        let window = self.windows.get(&region);
        window
            .map(Arc::as_ref)
            .ok_or(Refusal::UnknownRegion { region })
    }

    fn map(
        &self,
        books: &mut Books,
        message: &VhostUserMMap,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<(), Refusal> {
        let request = MapRequest::check(message, |region| self.size_of(region))?;
        let MapRequest { region, range, .. } = request;
        let (window, fd) = (self.window(region)?, fd.ok_or(NO_DESCRIPTOR)?);
        let book = books.by_region.entry(region).or_default();
        if book.reset_pending {
            return Err(Refusal::ResetPending { region });
        }
        let replaces = match book.meets(range) {
            Met::Nothing => false,
            Met::Same(_) if self.overlap == Overlap::ReplaceSame => true,
            Met::Same(occupied) | Met::Other(occupied) => {
                return Err(Refusal::Occupied {
                    region,
                    range,
                    occupied,
                });
            }
        };
        let failed = |source| Refusal::Window { region, source };
        if !replaces {
            books.usage.admit(&self.limits, range.len())?;
        }
        if let Err(full) = books.usage.admit_descriptor(&self.limits)
            && keeps_descriptor(
                Descriptor::inspect(fd, range, self.policy)
                    .map_err(failed)?
                    .kind,
            )
        {
            return Err(full);
        }
        let source = Source::descriptor(fd, request.offset)
            .policy(self.policy)
            .prefault(self.prefault);
        let made = if replaces {
            window.replace(range, &source, request.protection)
        } else {
            window.map(range, &source, request.protection)
        };
        match made {
            Ok(()) => {
                book.add(range, keeps(window, range), &mut books.usage);
                count(&mut books.counters.maps);
                let counter = &mut books.counters.replaces;
                *counter = counter.saturating_add(u64::from(replaces));
                Ok(())
            }
            Err(error) => {
                book.settle(range, error.state_after(), &mut books.usage);
                Err(failed(error))
            }
        }
    }

    fn unmap(&self, books: &mut Books, message: &VhostUserMMap) -> Result<(), Refusal> {
        let request = UnmapRequest::check(message, |region| self.size_of(region))?;
        let UnmapRequest { region, range, .. } = request;
        let window = self.window(region)?;
        let book = books.by_region.entry(region).or_default();
        match book.finds(range) {
            Found::Part(mapping) => {
                return Err(Refusal::Cut {
                    region,
                    range,
                    mapping,
                });
            }
            Found::Whole(0) if !request.whole => {
                return Err(Refusal::NothingMapped { region, range });
            }
            Found::Whole(0) => {}
            Found::Whole(_) => {
                if let Err(source) = window.unmap(range) {
                    book.settle(range, source.state_after(), &mut books.usage);
                    return Err(Refusal::Window { region, source });
                }
                book.take(range, &mut books.usage);
            }
        }
        count(&mut books.counters.unmaps);
        Ok(())
    }

    /// Serves one request under the lock, and tells the backend what came of it.
    fn serve(&self, request: impl FnOnce(&mut Books) -> Result<(), Refusal>) -> HandlerResult<u64> {
        let mut books = self.books();
        books.last = None;
        let Err(refusal) = request(&mut books) else {
            return Ok(0);
        };
        log::debug!("{refusal}");
        let errno = refusal.errno();
        books.counters.refuse(&refusal);
        books.last = Some(refusal);
        Err(io::Error::from_raw_os_error(errno))
    }

    fn forget_refusal(&self) -> &I {
        self.books().last = None;
        &self.inner
    }
}

const NO_DESCRIPTOR: Refusal = Refusal::Message {
    request: 9,
    reason: "its descriptor is none",
};

fn keeps_descriptor(kind: DescriptorKind) -> bool {
    matches!(
        kind,
        DescriptorKind::DmaBuf | DescriptorKind::Hugetlb { .. }
    )
}

/// Whether the mapping that was just made at `range` keeps its descriptor.
fn keeps(window: &Window, range: PageRange) -> bool {
    let made = window.mapping_at(range.start());
    made.is_some_and(|mapping| mapping.keep.is_some())
}

impl<I: VhostUserFrontendReqHandler> VhostUserFrontendReqHandler for ShmemHandler<I> {
    fn handle_config_change(&self) -> HandlerResult<u64> {
        self.forget_refusal().handle_config_change()
    }

    fn shared_object_add(&self, uuid: &VhostUserSharedMsg) -> HandlerResult<u64> {
        self.forget_refusal().shared_object_add(uuid)
    }

    fn shared_object_remove(&self, uuid: &VhostUserSharedMsg) -> HandlerResult<u64> {
        self.forget_refusal().shared_object_remove(uuid)
    }

    fn shared_object_lookup(
        &self,
        uuid: &VhostUserSharedMsg,
        fd: &dyn AsRawFd,
    ) -> HandlerResult<u64> {
        self.forget_refusal().shared_object_lookup(uuid, fd)
    }

    fn shmem_map(&self, request: &VhostUserMMap, fd: &dyn AsRawFd) -> HandlerResult<u64> {
        self.serve(|books| self.map(books, request, borrow(fd)))
    }

    fn shmem_unmap(&self, request: &VhostUserMMap) -> HandlerResult<u64> {
        self.serve(|books| self.unmap(books, request))
    }
}
