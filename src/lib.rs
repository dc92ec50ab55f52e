//! The command vm-remap as a library, so that tests can reach its parts.

pub mod batch;
pub mod bench;
pub mod cli;
pub mod doctor;
pub mod guest;
pub mod jitter;
pub mod ready;
mod realtime;
pub mod replay;
pub mod report;
pub mod run;
pub mod scale;
pub mod trace;
pub mod whozaps;
