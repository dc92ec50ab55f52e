//! Owns the tests of the shared memory of vhost-user devices. The backend's side is made of the
//! crates `vhost` and `vhost-user-backend`; only what no honest backend sends is written to the
//! socket by hand. Real mappings and real descriptors, a recorded hypervisor. Never needs
//! `/dev/kvm` or root.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "tests compute with small figures of their own"
)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(unreachable_pub, reason = "a test binary exports nothing")]

#[path = "../common/alone.rs"]
mod alone;
mod raw;
#[expect(dead_code, reason = "these tests make no slot call fail")]
#[path = "../common/recorder.rs"]
mod recorder;
#[path = "../common/stuck_file.rs"]
mod stuck_file;
mod support;

mod closing;
mod daemon;
mod hostile;
mod quota;
mod requests;
mod resets;
mod streams;
mod subscriber;
