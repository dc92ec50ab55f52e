//! Owns the command line of the device. Never plays itself.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use std::io::Write;
use vm_remap_peer::peer::{Options, run};
use vm_remap_peer::sizes::pages;

/// A vhost-user device (an entropy source) that maps and unmaps memory in its shared-memory region,
/// while `vm-remap-bar` in the guest looks at it. Exits with 0 if all that the guest saw was right.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Where to listen; what lies there is replaced.
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// The size of the region.
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = pages)]
    region: u64,
    /// How many steps of the script to make.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    changes: u64,
    /// The size of the largest mapping.
    #[arg(long, value_name = "SIZE", default_value = "2M", value_parser = pages)]
    block: u64,
    /// What the script is made from: the same number makes the same one.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Seconds that the VMM or the guest may take for an answer.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    patience: u64,
    /// Seconds that the guest may take to start the device, and then its program.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    boot: u64,
}

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    match start(Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            log::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: Arguments) -> Result<bool> {
    let options = Options {
        socket: arguments.socket,
        region: arguments.region,
        block: arguments.block,
        changes: arguments.changes,
        seed: arguments.seed,
        patience: Duration::from_secs(arguments.patience),
        boot: Duration::from_secs(arguments.boot),
    };
    let tally = run(&options, |tally| {
        let mut out = std::io::stdout();
        if let Err(error) = write!(out, "{tally}").and_then(|()| out.flush()) {
            log::error!("cannot write the sum: {error}");
        }
    })?;
    Ok(tally.is_right())
}
