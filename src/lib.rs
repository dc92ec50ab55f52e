//! The command vm-remap as a library, so that tests can reach its parts.

pub mod doctor;
pub mod guest;
pub mod report;
