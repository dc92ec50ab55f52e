//! Owns the proof that a window keeps its promises to a real guest: on this host's KVM, a vCPU in
//! ring 3 reads and writes what the window puts before it. Never asserts on time: counts and
//! bytes only, so that it holds under emulation as well.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "tests compute with small figures of their own"
)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[expect(unreachable_pub, reason = "shared with the tests of the library")]
#[path = "../../plugin/tests/common/alone.rs"]
mod alone;
#[expect(
    dead_code,
    reason = "slots without a window are for the guest's own tests"
)]
#[path = "../guest_support/mod.rs"]
mod guest_support;
#[expect(unreachable_pub, reason = "shared with the tests of the library")]
#[path = "../../plugin/tests/common/handover.rs"]
mod handover;
#[path = "../../plugin/tests/common/small_file_system.rs"]
#[expect(unreachable_pub, reason = "shared with the tests of the library")]
mod small_file_system;
mod support;

mod access;
mod bytes;
mod collapse;
mod dirty;
mod failure;
mod fault;
mod fault_absent;
mod fault_holes;
mod fault_poison;
mod fault_races;
mod fault_signals;
mod flushes;
mod full_file_system;
mod gap;
mod host_memory;
mod hugetlb;
mod lifecycle;
mod prefault;
mod snapshot;
mod threads;
mod translations;
mod vhost_user;
