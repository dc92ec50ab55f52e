//! Owns what is fuzzed: each target takes bytes, makes calls of them, and panics where a promise of
//! the library is broken. Never chooses the bytes: a fuzzer does, or a file that once broke
//! something.
//!
//! `tests/fuzz/run` builds the programs for libFuzzer, on stable Rust, and keeps what it finds.
//! Built without, the same programs run the files named on their command line.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    reason = "a target computes with small figures of its own, and fails where it cannot go on"
)]

mod devices;
mod dirty;
mod eyes;
mod figures;
mod files;
mod held;
mod memories;
mod model;
pub mod operations;
#[path = "../../../plugin/tests/common/recorder.rs"]
#[expect(
    dead_code,
    unreachable_pub,
    reason = "shared with the tests of the library"
)]
mod recorder;
pub mod records;
pub mod requests;
pub mod specs;

use std::path::Path;

/// A target: it panics where a promise is broken.
pub type Target = fn(&[u8]);

/// Every target, by name.
pub const TARGETS: [(&str, Target); 4] = [
    ("operations", operations::run),
    ("records", records::run),
    ("requests", requests::run),
    ("specs", specs::run),
];

/// Runs the files named on the command line through a target, to see again what one of them broke.
pub fn reproduce(target: Target) {
    for name in std::env::args_os().skip(1) {
        let bytes = std::fs::read(Path::new(&name)).unwrap();
        target(&bytes);
    }
}
