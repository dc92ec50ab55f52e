//! Owns the tests of windows over real memory: real mappings and real descriptors, a recorded
//! hypervisor. Never needs `/dev/kvm` or root.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "tests compute with small figures of their own"
)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(unreachable_pub, reason = "a test binary exports nothing")]

#[path = "../common/handover.rs"]
mod handover;
#[path = "../common/recorder.rs"]
mod recorder;
mod support;

mod batch;
mod dirty;
mod errors;
#[cfg(feature = "fault")]
mod fault;
mod gap;
mod host_memory;
mod huge;
mod map;
mod merge;
mod policy;
mod prefault;
mod prepared;
mod record;
mod slots;
mod snapshot;
