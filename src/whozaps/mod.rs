//! Owns `vm-remap bench --who-zaps`: which tasks on which CPUs do KVM's zap work for three
//! operations on a populated guest, and whether the caller's own CPU and priority held for it.
//! Never judges a host and never prints: it returns what it saw.
//!
//! The kernel counts for the whole machine: other virtual machines that zap meanwhile are counted
//! too.

mod hist;
mod jitter;
mod measure;
mod result;
#[cfg(test)]
mod sample;
mod stage;
mod table;
mod tracefs;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context as _, anyhow};

pub use self::result::{Caller, Jitter, Operation, Phase, TaskShare, WhoZaps};

/// Measures; `None` if `stop` was set before the end. What was set up in the kernel for it is
/// taken back in any case.
///
/// # Errors
/// Without root and tracefs, unless this host's KVM has no TDP MMU to trace; where no guest can
/// be made. The text says what to do.
pub fn run(stop: &Arc<AtomicBool>) -> anyhow::Result<Option<WhoZaps>> {
    let stop = Arc::clone(stop);
    // A thread of its own, so that the caller's keeps its CPUs and its priority; its name is what
    // it is known by in the trace, where thread numbers are the host's, not those of a container.
    let name = format!("caller-{}", std::process::id());
    std::thread::Builder::new()
        .name(name.clone())
        .spawn(move || measure::measure(&name, &stop))
        .context("cannot start the thread that measures")?
        .join()
        .map_err(|_| anyhow!("cannot measure: the measuring thread panicked"))?
}
