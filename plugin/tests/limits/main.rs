//! Owns the tests of windows whose kernel really runs out of something: address space, areas,
//! memory of a control group, room of a file system. Never believes an error without a look at the
//! memory.
//!
//! Limits of a process are set in a process of its own, limits of the machine in the lab only.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "tests compute with small figures of their own"
)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(unreachable_pub, reason = "a test binary exports nothing")]

#[path = "../common/alone.rs"]
mod alone;
#[path = "../faults/eyes.rs"]
#[expect(dead_code, reason = "this test uses less of it than the others")]
mod eyes;
#[path = "../common/recorder.rs"]
#[expect(dead_code, reason = "this test uses less of it than the others")]
mod recorder;
#[path = "../common/small_file_system.rs"]
mod small_file_system;
mod support;

mod address_space;
mod areas;
mod control_group;
mod full_file_system;
