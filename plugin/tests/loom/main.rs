//! Owns the proof of the waiting between pins and changes: a model checker (loom) tries every
//! order in which the threads can meet. It drives the library's own file, with loom's locks in
//! place of the standard ones. Never maps anything.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "tests compute with small figures of their own"
)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(unreachable_pub, reason = "a test binary exports nothing")]

mod range {
    pub use vm_remap::PageRange;
}
mod sync;

#[path = "../../src/window/pins.rs"]
mod pins;

mod orders;
