//! Owns the tests of the decorators: over a recorded VM, and over KVM's with a tiny guest. Never
//! needs root; what needs `/dev/kvm` is skipped without it.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "tests compute with small figures of their own"
)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(unreachable_pub, reason = "a test binary exports nothing")]

mod guest;
mod memory;
mod ops;
mod recorder;
mod script;

mod dirty;
mod faults;
mod live;
mod passing;
mod regions;
mod runs;
