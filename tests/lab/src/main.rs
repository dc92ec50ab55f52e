//! The lab: boots Debian kernels on an emulated machine that has a TDP MMU,
//! and runs the project's tests there. See `tests/lab/README.md`.
//!
//! Owns the command line and the exit status.
#![forbid(unsafe_code)]

mod binaries;
mod channel;
mod guest;
mod initramfs;
mod lab;
mod machine;
mod modules;
mod packages;
mod profile;
mod progress;
mod results;
mod tally;

use std::io::{Write, stdout};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use crate::lab::{Lab, Outcome};
use crate::profile::Profile;
use crate::tally::Tally;

/// Everything passed, something failed, the lab could not do its work.
const PASSED: u8 = 0;
const FAILED: u8 = 1;
const COULD_NOT_RUN: u8 = 2;

/// Runs the project's tests, or COMMAND, on emulated machines with a TDP MMU
#[derive(Debug, Parser)]
#[command(name = "tests/lab/run")]
struct Args {
    /// A profile of tests/lab/profiles; may be given again. Without it: all
    /// that are marked as default, or 6.12 if there is a COMMAND
    #[arg(long = "kernel", value_name = "PROFILE")]
    kernels: Vec<String>,
    /// What to run in the machine instead of the tests
    #[arg(last = true)]
    command: Vec<String>,
}

fn main() -> ExitCode {
    let status = run(Args::parse()).unwrap_or_else(|error| {
        progress::line(&format!("{error:#}"));
        COULD_NOT_RUN
    });
    ExitCode::from(status)
}

fn run(args: Args) -> Result<u8> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"));
    let profiles = profiles(source, &args)?;
    let has_command = !args.command.is_empty();
    let mut lab = Lab::prepare(source, args.command)?;
    let (mut total, mut worst) = (Tally::default(), PASSED);
    for profile in &profiles {
        let status = match lab.run(profile) {
            Ok(outcome) => {
                let status = exit_status(&outcome, has_command);
                total.count(outcome.tally);
                status
            }
            Err(error) => {
                progress::line(&format!("{}: {error:#}", profile.name));
                COULD_NOT_RUN
            }
        };
        worst = worst.max(status);
    }
    if lab.retries > 0 {
        progress::line(&format!(
            "the emulation failed and was tried once more: {} times",
            lab.retries
        ));
    }
    if !has_command {
        writeln!(stdout().lock(), "{total}").context("cannot write to standard output")?;
    }
    Ok(worst)
}

fn profiles(source: &Path, args: &Args) -> Result<Vec<Profile>> {
    let names = if !args.kernels.is_empty() {
        args.kernels.clone()
    } else if !args.command.is_empty() {
        vec!["6.12".to_owned()]
    } else {
        profile::names(source)?
    };
    let mut profiles = Vec::new();
    for name in names {
        let profile = profile::read(source, &name)?;
        if profile.default || !args.kernels.is_empty() || !args.command.is_empty() {
            profiles.push(profile);
        }
    }
    Ok(profiles)
}

/// A command's own status is passed on.
fn exit_status(outcome: &Outcome, has_command: bool) -> u8 {
    if has_command {
        let status = outcome.status.unwrap_or(i32::from(FAILED));
        return u8::try_from(status).unwrap_or(FAILED);
    }
    if outcome.tally.failed > 0 {
        FAILED
    } else {
        PASSED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_all_kernels_and_the_newest_for_a_command() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR"));
        let names = |line: &[&str]| -> Vec<String> {
            let args = Args::try_parse_from(line).unwrap();
            let profiles = profiles(source, &args).unwrap();
            profiles.into_iter().map(|profile| profile.name).collect()
        };
        assert_eq!(names(&["run"]), ["6.1", "6.12", "cured", "dma", "worker"]);
        assert_eq!(names(&["run", "--", "sh"]), ["6.12"]);
        let line = ["run", "--kernel", "worker", "--kernel", "6.1", "--", "sh"];
        assert_eq!(names(&line), ["worker", "6.1"]);
    }

    #[test]
    fn command_status_is_passed_on() {
        let status = |status, failed| {
            let tally = Tally {
                failed,
                ..Tally::default()
            };
            (
                exit_status(
                    &Outcome {
                        tally: tally.clone(),
                        status,
                    },
                    true,
                ),
                exit_status(&Outcome { tally, status }, false),
            )
        };
        assert_eq!(status(Some(42), 1), (42, FAILED));
        assert_eq!(status(Some(0), 0), (0, PASSED));
        assert_eq!(status(None, 1), (FAILED, FAILED));
    }
}
