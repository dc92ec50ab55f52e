//! Owns the tests of the VMM's own access: pins, and what reaches a window through vm-memory. Real
//! mappings and real descriptors, a recorded hypervisor. Never needs `/dev/kvm` or root.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "tests compute with small figures of their own"
)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(unreachable_pub, reason = "a test binary exports nothing")]

#[expect(dead_code, reason = "these tests make no slot call fail")]
#[path = "../common/recorder.rs"]
mod recorder;
mod support;

mod changes;
mod collection;
mod pin;
mod queue;
mod region;
