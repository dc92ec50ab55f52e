//! Owns what `vm-remap bench --who-zaps` writes where, and how Ctrl-C ends it. Never traces.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::bench::INTERRUPTED;
use crate::whozaps;

/// No second Ctrl-C ends this one hard: what was set up in the kernel has to be taken back.
pub(super) fn run(json: Option<&Path>) -> anyhow::Result<ExitCode> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let Some(result) = whozaps::run(&stop)? else {
        return Ok(ExitCode::from(INTERRUPTED));
    };
    super::deliver(json, || result.text(), || result.json())?;
    Ok(ExitCode::SUCCESS)
}
