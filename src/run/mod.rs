//! A small reference VMM: what it is started with, and how that is written.

pub mod flags;
pub mod launch;
