//! Owns the arguments of `vm-remap doctor`. Never judges a finding.

use std::path::Path;
use std::process::ExitCode;

use crate::doctor::{Style, examine};

/// Exit codes: 0 usable, 1 usable with warnings, 2 not usable.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit codes: 0 usable, 1 usable with warnings, 2 not usable.")]
pub(super) struct Arguments {
    /// Write JSON instead of a table.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let examination = examine(Path::new("/"));
    let text = if arguments.json {
        format!("{}\n", examination.to_json()?)
    } else {
        examination.to_table(Style::for_stdout())
    };
    super::write(text.as_bytes())?;
    Ok(ExitCode::from(examination.verdict.exit_code()))
}
