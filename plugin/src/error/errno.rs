//! Owns what follows from an error: the number that tells it to others, and the state that it left
//! behind. Never makes an error.

use std::io;

use rustix::io::Errno;

use super::{Error, StateAfter};

impl Error {
    /// The error number that tells a peer or a guest the same thing, always positive.
    #[must_use]
    pub fn errno(&self) -> i32 {
        let own = |source: &io::Error, default: Errno| {
            source
                .raw_os_error()
                .unwrap_or_else(|| default.raw_os_error())
        };
        let code = match self {
            Self::Occupied { .. } | Self::NotEmpty { .. } => Errno::EXIST,
            Self::DescriptorKind { .. } => Errno::NODEV,
            Self::PastEnd { .. } => Errno::OVERFLOW,
            Self::DescriptorAccess { .. } => Errno::ACCESS,
            Self::Sealed { .. } | Self::PolicyKind { .. } | Self::PolicySeals { .. } => Errno::PERM,
            Self::MapCount { .. } | Self::CopyLimit { .. } => Errno::NOMEM,
            Self::SlotNumbers { .. } | Self::NoScratchPage => Errno::NOSPC,
            Self::WorkerZaps { .. }
            | Self::PreciseZap
            | Self::DirtyLogUnsupported
            | Self::NotDirect { .. } => Errno::OPNOTSUPP,
            Self::DirtyLogOn => Errno::BUSY,
            Self::DirtyLogOff => Errno::NOENT,
            Self::Poisoned => Errno::IO,
            Self::Pinned { .. } => Errno::BUSY,
            Self::NotMapped { .. } => Errno::FAULT,
            Self::ReadOnly { .. } => Errno::ACCESS,
            Self::Inspect { source, .. }
            | Self::Stage { source, .. }
            | Self::Prefault { source, .. }
            | Self::Place { source, .. }
            | Self::Reserve { source, .. }
            | Self::Slot { source, .. }
            | Self::Dma { source, .. }
            | Self::Access { source, .. }
            | Self::PreciseZapRefused { source }
            | Self::DirtyLogSwitch { source, .. }
            | Self::DirtyLogFetch { source, .. }
            | Self::Resolve { source, .. } => return own(source, Errno::IO),
            Self::BadRange { .. }
            | Self::BadGuestAddress { .. }
            | Self::BadSegmentSize { .. }
            | Self::UnknownBackend { .. }
            | Self::OutsideWindow { .. }
            | Self::SourceOffset { .. }
            | Self::HugePageAlignment { .. }
            | Self::HugePageCut { .. }
            | Self::HostMemory { .. }
            | Self::OtherWindow
            | Self::OutsidePin { .. }
            | Self::Record { .. }
            | Self::RecordedSource { .. } => Errno::INVAL,
        };
        code.raw_os_error()
    }

    /// The same failure, known to have left `state` behind.
    pub(crate) fn with_state(self, state: StateAfter) -> Self {
        match self {
            Self::Place { range, source, .. } => Self::Place {
                range,
                state,
                source,
            },
            Self::Slot {
                verb,
                number,
                guest,
                len,
                source,
                ..
            } => Self::Slot {
                verb,
                number,
                guest,
                len,
                state,
                source,
            },
            Self::Dma {
                verb,
                guest,
                len,
                source,
                ..
            } => Self::Dma {
                verb,
                guest,
                len,
                state,
                source,
            },
            _ if state == StateAfter::Poisoned => Self::Poisoned,
            other => other,
        }
    }

    /// What the failure left behind in the range that the call was about.
    #[must_use]
    pub fn state_after(&self) -> StateAfter {
        match self {
            Self::Place { state, .. } | Self::Slot { state, .. } | Self::Dma { state, .. } => {
                *state
            }
            Self::Poisoned => StateAfter::Poisoned,
            _ => StateAfter::Unchanged,
        }
    }
}
