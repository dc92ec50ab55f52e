//! Owns what `vm-remap run` says when a guest has ended, and its exit codes. Never touches KVM.

use std::io::Write as _;
use std::process::ExitCode;

use clap::CommandFactory as _;
use clap::error::ErrorKind;

use crate::run::flags::RunArgs;

pub(super) fn run(arguments: RunArgs) -> anyhow::Result<ExitCode> {
    // What flags cannot be together is an error of the command line, like any other.
    let launch = arguments.launch().unwrap_or_else(|error| {
        let mut command = super::Arguments::command();
        command.build();
        let command = match command.find_subcommand_mut("run") {
            Some(run) => run,
            None => &mut command,
        };
        command.error(ErrorKind::ArgumentConflict, error).exit()
    });
    let end = crate::run::run(&launch)?;
    // There is nobody left to tell when the standard error is closed.
    writeln!(std::io::stderr(), "vm-remap: {end}").unwrap_or_default();
    Ok(ExitCode::from(end.exit_code()))
}
