//! Owns why a request of a backend was refused, and the number that tells it so. Never decides.

use std::io;

use rustix::io::Errno;

use crate::error::Error;
use crate::range::{PAGE_SIZE, PageRange};

/// Why a request of a vhost-user backend was refused. Nothing has changed, but where it is
/// [`Refusal::Window`] with an error that says otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// A region that the device has not announced, or that the VMM gave no window for.
    #[error("cannot find the shared memory region {region}: the device has no window for it")]
    UnknownRegion {
        /// The region asked for.
        region: u8,
    },
    /// Flags that the protocol does not have.
    #[error("cannot map with the flags {flags:#x}: only bit 0, for writing, is known")]
    Flags {
        /// The flags asked for.
        flags: u64,
    },
    /// A range that is empty, is not made of whole pages or wraps around.
    #[error("cannot use the range of the request")]
    Range(#[source] Error),
    /// An offset in the descriptor that is no multiple of the page size, or wraps around.
    #[error(
        "cannot map {len:#x} bytes from offset {offset:#x}: it must be a multiple of \
         {PAGE_SIZE:#x}, and the end below 2^63"
    )]
    FileOffset {
        /// The offset asked for, in bytes.
        offset: u64,
        /// The length asked for, in bytes.
        len: u64,
    },
    /// A range that ends past its region.
    #[error("cannot use {range}: the region {region} has {size:#x} bytes")]
    OutsideRegion {
        /// The region asked for.
        region: u8,
        /// The range asked for.
        range: PageRange,
        /// The region's size, in bytes.
        size: u64,
    },
    /// A map over something that is mapped already.
    #[error("cannot map {range} of region {region}: {occupied} is mapped already; unmap it first")]
    Occupied {
        /// The region asked for.
        region: u8,
        /// The range asked for.
        range: PageRange,
        /// The first mapping in the way.
        occupied: PageRange,
    },
    /// An unmap of a part of a mapping.
    #[error("cannot unmap {range} of region {region}: it cuts {mapping}; unmap whole mappings")]
    Cut {
        /// The region asked for.
        region: u8,
        /// The range asked for.
        range: PageRange,
        /// The first mapping that would be cut.
        mapping: PageRange,
    },
    /// An unmap of a range in which nothing is mapped.
    #[error("cannot unmap {range} of region {region}: nothing is mapped there")]
    NothingMapped {
        /// The region asked for.
        region: u8,
        /// The range asked for.
        range: PageRange,
    },
    /// More than the device may have, see [`ShmemLimits`](super::ShmemLimits).
    #[error(
        "cannot map {asked:#x} more: the device has {used:#x} {what} of {limit:#x}; unmap some, or \
         raise the limit"
    )]
    Quota {
        /// `mappings`, `bytes` or `descriptors`.
        what: &'static str,
        /// How many were asked for.
        asked: u64,
        /// How many the device has.
        used: u64,
        /// How many it may have.
        limit: u64,
    },
    /// A map in a region that a reset could not empty.
    #[error(
        "cannot map anything in region {region}: what was there before the device's reset is not \
         gone yet; reset the handler again"
    )]
    ResetPending {
        /// The region asked for.
        region: u8,
    },
    /// A message that is none: too few or too many descriptors, or a body that does not fit.
    #[error("cannot take message {request}: {reason}")]
    Message {
        /// The number of the request.
        request: u32,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A descriptor that the VMM had no number free for (`RLIMIT_NOFILE`).
    #[error(
        "cannot take message {request}: the process has no number free for its descriptor; raise \
         RLIMIT_NOFILE, or give the device less"
    )]
    DescriptorLost {
        /// The number of the request.
        request: u32,
    },
    /// A request that nobody here knows, or that needs what was not negotiated.
    #[error("cannot serve request {request}: it is not known")]
    UnknownRequest {
        /// The number of the request.
        request: u32,
    },
    /// A request that is none of shared memory, and that the VMM's own handler refused.
    #[error("cannot serve the request: the VMM's handler refused it")]
    Other(#[source] io::Error),
    /// The window refused the change, or failed.
    #[error("cannot change region {region}")]
    Window {
        /// The region asked for.
        region: u8,
        /// What the window said.
        #[source]
        source: Error,
    },
}

impl Refusal {
    /// The error number that the backend gets, always positive.
    #[must_use]
    pub fn errno(&self) -> i32 {
        let code = match self {
            Self::UnknownRegion { .. } => Errno::NXIO,
            Self::Occupied { .. } => Errno::EXIST,
            Self::NothingMapped { .. } => Errno::NOENT,
            Self::Quota { .. } => Errno::DQUOT,
            Self::ResetPending { .. } => Errno::BUSY,
            Self::UnknownRequest { .. } => Errno::NOSYS,
            Self::DescriptorLost { .. } => Errno::MFILE,
            Self::Flags { .. }
            | Self::Range(_)
            | Self::FileOffset { .. }
            | Self::OutsideRegion { .. }
            | Self::Cut { .. }
            | Self::Message { .. } => Errno::INVAL,
            Self::Window { source, .. } => return source.errno(),
            Self::Other(source) => {
                let own = source.raw_os_error().filter(|errno| *errno > 0);
                return own.unwrap_or_else(|| Errno::INVAL.raw_os_error());
            }
        };
        code.raw_os_error()
    }
}
