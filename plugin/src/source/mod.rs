//! Owns what a caller can put behind a guest range, and with which protection.
//! Never maps anything.

pub(crate) mod descriptor;
pub(crate) mod expected;
pub(crate) mod host_memory;
pub(crate) mod policy;
pub(crate) mod prefault;
pub(crate) mod stable;

use std::fmt;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use expected::Expected;
use policy::DescriptorPolicy;
use prefault::Prefault;

/// What the guest may do with a mapping.
///
/// Memory that the guest may write, the VMM may write too. A guest write to a read-only mapping
/// ends `KVM_RUN` with `EFAULT` under the backend `fixed`, and with `KVM_EXIT_MMIO` under
/// `memslot`, whose slot is read-only as well (Linux: `arch/x86/kvm/mmu/mmu.c`, 6.1 to 6.18).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum Protection {
    /// The guest reads.
    ReadOnly,
    /// The guest reads and writes.
    ReadWrite,
}

impl Protection {
    /// Whether the guest may write.
    #[must_use]
    pub fn is_writable(self) -> bool {
        self == Self::ReadWrite
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ReadOnly => "read-only",
            Self::ReadWrite => "read-write",
        }
    }
}

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What gets mapped: a descriptor with an offset, host memory without a descriptor, or
/// anonymous memory. How much of it is the length of the range that it is mapped to.
///
/// A source borrows its descriptor for the call only: the kernel's mapping keeps the file alive,
/// so the descriptor may be closed when the call has returned.
#[derive(Clone, Copy, Debug)]
pub struct Source<'fd> {
    pub(crate) memory: Memory<'fd>,
    pub(crate) label: u64,
    pub(crate) prefault: Prefault,
    pub(crate) policy: DescriptorPolicy,
    /// What a record says that it is.
    pub(crate) expected: Option<Expected>,
    pub(crate) collapse: bool,
}

/// The three kinds of source.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Memory<'fd> {
    Descriptor { fd: BorrowedFd<'fd>, offset: u64 },
    Host { address: usize },
    Anonymous,
}

impl<'fd> Source<'fd> {
    /// The bytes of `fd` from `offset` on, in bytes. The offset must be a multiple of 4 KiB, or of
    /// the descriptor's huge page size where it has one.
    ///
    /// Accepted are memfds and other files on tmpfs, hugetlb files, regular files and dma-bufs;
    /// size, type, access mode and seals are checked against each request.
    ///
    /// A memfd whose seals can change no more (`F_SEAL_SEAL`) and do not forbid writing takes the
    /// shortest path, one system call. Any other descriptor is mapped elsewhere first and then
    /// moved into place, because its owner could make the kernel fail half-way. So seal what the
    /// VMM makes itself; `F_SEAL_SHRINK` also keeps a mapping from losing its pages.
    ///
    /// ```
    /// use std::os::fd::AsFd;
    /// use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
    /// use vm_remap::Source;
    ///
    /// let blob = memfd_create("blob", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    /// ftruncate(&blob, 2 << 20)?;
    /// fcntl_add_seals(&blob, SealFlags::SHRINK | SealFlags::SEAL)?;
    /// let source = Source::descriptor(blob.as_fd(), 0);
    /// # let _ = source;
    /// # Ok::<(), rustix::io::Errno>(())
    /// ```
    #[must_use]
    pub fn descriptor(fd: BorrowedFd<'fd>, offset: u64) -> Self {
        Self::new(Memory::Descriptor { fd, offset })
    }

    /// Fresh zeroed memory that nobody else has. It lives as long as its mapping; what an unmap
    /// or a replace covers of it is freed.
    ///
    /// It is shared anonymous memory, so that a batch that fails half-way can put it back.
    #[must_use]
    pub fn anonymous() -> Self {
        Self::new(Memory::Anonymous)
    }

    /// Host memory of this process that has no descriptor, from `address` on.
    ///
    /// A shared mapping is duplicated with `mremap`, so that both see the same bytes. Private,
    /// hugetlb and PFNMAP memory cannot be duplicated (Linux: `mm/mremap.c`): the backend `fixed`
    /// refuses it before anything changes, unless the window may fall back to a memslot of its
    /// own that lies directly over it.
    ///
    /// # Safety
    /// From `address` on, as many bytes as the range has must be mapped in this process, in one
    /// mapping, and stay so until an unmap, a replace or a close that covers them has returned
    /// `Ok`; for ever, where the window is dropped instead of closed, or closing it fails. A
    /// [`PreparedBatch`](crate::PreparedBatch) that maps them needs them from its making on, for as
    /// long as it lives, whatever is unmapped meanwhile. The guest may read them, and write them if the protection says so, at any time: no Rust
    /// reference may point there, and nothing may rest on their value.
    #[expect(unsafe_code, reason = "only the caller knows who else uses the memory")]
    #[must_use]
    pub unsafe fn host_memory(address: NonNull<u8>) -> Source<'static> {
        Source::new(Memory::Host {
            address: address.addr().get(),
        })
    }

    /// Attaches a number of the caller's own that the window keeps with the mapping, reports in
    /// [`lookup`](crate::Window::lookup) and writes into the
    /// [`LayoutRecord`](crate::LayoutRecord): a blob or resource id, say. 0 if not set.
    #[must_use]
    pub fn label(mut self, label: u64) -> Self {
        self.label = label;
        self
    }

    /// Whether the pages are there before the guest looks; [`Prefault::None`] if not set.
    ///
    /// [`Counters::prefaulted`](crate::Counters::prefaulted) and
    /// [`prefault_fallbacks`](crate::Counters::prefault_fallbacks) count what came of it.
    #[must_use]
    pub fn prefault(mut self, prefault: Prefault) -> Self {
        self.prefault = prefault;
        self
    }

    /// What is asked of the descriptor beyond that it can be mapped; [`DescriptorPolicy::own`] if
    /// not set. For one that came from outside, set [`DescriptorPolicy::peer`]. Memory without a
    /// descriptor is the VMM's own, and no policy judges it.
    #[must_use]
    pub fn policy(mut self, policy: DescriptorPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Whether the file's 4 KiB pages are made 2 MiB ones before the mapping is put in place
    /// (`MADV_COLLAPSE`, Linux 6.1): one fault of the guest for each 2 MiB instead of 512, now and
    /// whenever the file is mapped again. Off if not set.
    ///
    /// It is for memory that lives long: all pages are brought in and copied, in the call and outside
    /// the window's lock. It takes a memfd or anonymous memory, at least 2 MiB, and a range and an
    /// offset that are congruent modulo 2 MiB; see
    /// [`Window::preferred_alignment`](crate::Window::preferred_alignment). What cannot be made huge
    /// is mapped as it is: [`Counters::collapsed`](crate::Counters::collapsed) and
    /// [`collapse_failures`](crate::Counters::collapse_failures) count both. A sealed memfd gives up
    /// its one-call path for it.
    #[must_use]
    pub fn collapse(mut self, collapse: bool) -> Self {
        self.collapse = collapse;
        self
    }

    fn new(memory: Memory<'fd>) -> Self {
        Self {
            memory,
            label: 0,
            prefault: Prefault::None,
            policy: DescriptorPolicy::own(),
            expected: None,
            collapse: false,
        }
    }
}
