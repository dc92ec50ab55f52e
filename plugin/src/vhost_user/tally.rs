//! Owns the counters of a device's shared memory. Never decides what is counted.

use super::quota::Usage;
use super::refusal::Refusal;
use crate::error::Error;

/// What a device has asked for since its handler was made, and what it has now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ShmemCounters {
    /// Maps that were made, those over the very same range among them.
    pub maps: u64,
    /// Maps that replaced a mapping of the very same range.
    pub replaces: u64,
    /// Unmaps that were made, also of nothing.
    pub unmaps: u64,
    /// Resets that returned every window to a hole.
    pub resets: u64,
    /// Resets that left something behind.
    pub failed_resets: u64,
    /// Requests refused for their figures: unknown regions and flags, ranges that are unaligned,
    /// wrap around or reach past their region, and messages that are none.
    pub refused_figures: u64,
    /// Maps over what is mapped, unmaps of nothing or of a part.
    pub refused_overlaps: u64,
    /// Maps beyond the quota.
    pub refused_quota: u64,
    /// Maps of a descriptor that the policy keeps out, or that does not fit what was asked.
    pub refused_descriptors: u64,
    /// Changes of memory that was pinned, and maps while a reset was pending.
    pub refused_busy: u64,
    /// What the VMM, its kernel or its hypervisor failed at.
    pub failures: u64,
    /// Mappings there are now.
    pub mappings: u64,
    /// Bytes that they cover.
    pub bytes: u64,
    /// Mappings there are now that keep a descriptor.
    pub descriptors: u64,
}

impl ShmemCounters {
    pub(super) fn refuse(&mut self, refusal: &Refusal) {
        let counter = match refusal {
            Refusal::UnknownRegion { .. }
            | Refusal::Flags { .. }
            | Refusal::Range(_)
            | Refusal::FileOffset { .. }
            | Refusal::OutsideRegion { .. }
            | Refusal::Message { .. }
            | Refusal::UnknownRequest { .. } => &mut self.refused_figures,
            Refusal::Occupied { .. } | Refusal::Cut { .. } | Refusal::NothingMapped { .. } => {
                &mut self.refused_overlaps
            }
            Refusal::Quota { .. } => &mut self.refused_quota,
            Refusal::ResetPending { .. } => &mut self.refused_busy,
            Refusal::Other(_) | Refusal::DescriptorLost { .. } => &mut self.failures,
            Refusal::Window { source, .. } => match source {
                Error::Pinned { .. } => &mut self.refused_busy,
                Error::Occupied { .. } => &mut self.refused_overlaps,
                Error::DescriptorKind { .. }
                | Error::DescriptorAccess { .. }
                | Error::Inspect { .. }
                | Error::PastEnd { .. }
                | Error::Sealed { .. }
                | Error::PolicyKind { .. }
                | Error::PolicySeals { .. }
                | Error::SourceOffset { .. }
                | Error::HugePageAlignment { .. }
                | Error::HugePageCut { .. }
                | Error::Prefault { .. } => &mut self.refused_descriptors,
                _ => &mut self.failures,
            },
        };
        *counter = counter.saturating_add(1);
    }

    pub(super) fn with(self, usage: &Usage) -> Self {
        Self {
            mappings: usage.mappings,
            bytes: usage.bytes,
            descriptors: usage.descriptors,
            ..self
        }
    }
}

/// Adds one.
pub(super) fn count(counter: &mut u64) {
    *counter = counter.saturating_add(1);
}
