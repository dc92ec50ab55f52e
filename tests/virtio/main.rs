//! Owns the proofs of virtio devices that daemons work for: a driver on one side, a real vhost-user
//! daemon on the other, the transport and the frontend between them. Never needs KVM.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "the tests compute with small figures of their own"
)]
#![expect(unreachable_pub, reason = "a test binary exports nothing")]

mod daemon;
mod driver;
#[path = "../../plugin/tests/common/recorder.rs"]
#[expect(dead_code, reason = "other tests ask it for more")]
mod recorder;

mod config;
mod hostile;
mod lifecycle;
mod refusals;
mod shared_memory;
