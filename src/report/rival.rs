//! Owns the figures of each rival. Never judges them and never rounds them.

use super::Quantiles;
use serde::Serialize;

/// The rivals of one run, by their JSON names.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Backends {
    /// Delete + create of the memslot; `None` when it was not run.
    pub memslot: Option<Rival>,
    /// The same with precise slot zapping; `None` where the host's KVM does
    /// not offer it.
    #[serde(rename = "memslot-precise")]
    pub memslot_precise: Option<Rival>,
    /// Reserve + `MAP_FIXED`, as peers do it.
    pub plain: Rival,
    /// vm-remap.
    pub fixed: Fixed,
    /// The same system calls with no memslot over the range: the floor.
    pub bare: Latencies,
}

/// What the caller of the three operations sees; `None` when not measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Latencies {
    /// A hole becomes a mapping.
    pub map_us: Option<Quantiles>,
    /// A mapping becomes another one.
    pub replace_us: Option<Quantiles>,
    /// A mapping becomes a hole.
    pub unmap_us: Option<Quantiles>,
}

/// The figures of a rival that works under a running guest; `None` when a
/// phase was not reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Rival {
    /// What the caller of the operations sees.
    #[serde(flatten)]
    pub latencies: Latencies,
    /// Guest passes per second of vCPU-thread CPU time during churn, as a
    /// share of the same undisturbed (1.0 = nothing lost).
    pub work_kept: Option<f64>,
    /// Guest faults outside the remapped range, per operation.
    pub collateral_faults_per_op: Option<f64>,
    /// Times a vCPU left the guest because it met the range while it changed.
    pub gap_exits: Option<u64>,
    /// How many replaces a vCPU spinning on the page watched.
    pub gap_replaces: Option<u64>,
    /// Reads of the old bytes after the call had returned.
    pub gap_stale_reads: Option<u64>,
    /// `KVM_SET_USER_MEMORY_REGION` calls per operation in steady state.
    pub slot_calls_per_op: Option<f64>,
}

/// The figures of vm-remap: the main ones for memory the VMM owns, and the
/// latencies once more for a descriptor that came from a peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Fixed {
    /// Memory the VMM owns.
    #[serde(flatten)]
    pub rival: Rival,
    /// A peer's descriptor, which is placed elsewhere first.
    pub peer: Latencies,
}

impl Latencies {
    /// Median of map plus median of unmap in microseconds: one round trip.
    #[must_use]
    pub fn round_trip_us(&self) -> Option<f64> {
        Some(self.map_us?.p50 + self.unmap_us?.p50)
    }

    /// The number of calls behind each figure.
    pub(super) fn calls(&self) -> impl Iterator<Item = u64> {
        [self.map_us, self.replace_us, self.unmap_us]
            .into_iter()
            .flatten()
            .map(|quantiles| quantiles.n)
    }
}
