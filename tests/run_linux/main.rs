//! Proves that `vm-remap run` runs what it says: a stock kernel to its end, kernels of a few
//! instructions to each other end, and nothing where the host cannot.

#![expect(
    clippy::unwrap_used,
    reason = "clippy takes a test's helpers for production code"
)]

mod program;
mod refusals;
mod stock;
mod support;
mod terminal;
mod tiny;
mod window;
