//! Owns the command line: what can be typed, what is written where, and the exit codes. Never
//! measures and never examines anything itself.

mod batch;
mod bench;
mod doctor;
mod jitter;
mod ready;
mod replay;
mod run;
mod scale;
mod trace;
mod who_zaps;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory, Parser, Subcommand};

use crate::run::flags::{RunArgs, explain};

/// Change what host memory stands behind a guest's, and see what that costs on this host.
#[derive(Debug, Parser)]
#[command(
    name = "vm-remap",
    version,
    propagate_version = true,
    max_term_width = 100
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Examine this host: does remapping work here, who zaps, what is missing, what to do.
    Doctor(doctor::Arguments),
    /// Measure remapping under a real guest: memslots, `MAP_FIXED` and this library side by side.
    Bench(bench::Arguments),
    // What it says of itself is what its arguments say.
    Run(Box<RunArgs>),
    /// Share a directory with a guest: virtio-fs with a DAX window, over vhost-user.
    #[command(
        override_usage = "vm-remap fs [OPTIONS] --source <DIR> --socket <PATH>\n       \
                                vm-remap fs [OPTIONS] --source <DIR> --fd <N>"
    )]
    Fs(vm_remap_fs::Options),
    /// Make up a trace of a client of a window, for `bench --trace`.
    Trace(trace::Arguments),
    /// Print shell completions.
    Completions {
        /// For which shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page, in roff.
    Man,
}

/// Runs the command with the arguments of this process.
///
/// Exit codes: those of each subcommand's `--help`; 2 for arguments that make no sense.
#[must_use]
pub fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    let words: Vec<_> = std::env::args_os().collect();
    let parsed = Arguments::try_parse_from(&words)
        .unwrap_or_else(|error| explain(error, &words, Arguments::command()).exit());
    let done = match parsed.command {
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Run(arguments) => run::run(*arguments),
        Command::Fs(options) => vm_remap_fs::serve(&options)
            .map(|()| ExitCode::SUCCESS)
            .map_err(anyhow::Error::from),
        Command::Trace(arguments) => trace::run(&arguments),
        Command::Completions { shell } => write(&completions(shell)).map(|()| ExitCode::SUCCESS),
        Command::Man => manual()
            .and_then(|page| write(&page))
            .map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        // There is nobody left to tell when the standard error is closed.
        writeln!(std::io::stderr(), "vm-remap: {error:#}").unwrap_or_default();
        ExitCode::from(1)
    })
}

/// Writes to the standard output. A reader that has gone away is no error.
fn write(bytes: &[u8]) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

/// Writes a result: as JSON to the standard output where `json` is `-`, else as text, and as JSON to
/// the file that `json` names.
fn deliver(
    json: Option<&Path>,
    text: impl FnOnce() -> String,
    as_json: impl FnOnce() -> anyhow::Result<String>,
) -> anyhow::Result<()> {
    if json == Some(Path::new("-")) {
        return write(format!("{}\n", as_json()?).as_bytes());
    }
    write(text().as_bytes())?;
    json.map_or(Ok(()), |path| save(path, &format!("{}\n", as_json()?)))
}

fn save(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn completions(shell: clap_complete::Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "vm-remap", &mut script);
    script
}

/// The pages of the command and of each subcommand, one after the other.
fn manual() -> anyhow::Result<Vec<u8>> {
    let mut page = Vec::new();
    let mut command = Arguments::command();
    command.build();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    for subcommand in command.get_subcommands().filter(|s| s.get_name() != "help") {
        clap_mangen::Man::new(subcommand.clone()).render(&mut page)?;
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn manual_and_completions_know_every_option() {
        let page = String::from_utf8(manual().unwrap()).unwrap();
        let script = String::from_utf8(completions(clap_complete::Shell::Bash)).unwrap();
        for option in [
            "json",
            "html",
            "svg",
            "quick",
            "ready",
            "scale",
            "trace",
            "jitter",
            "rate",
            "seconds",
            "blob",
            "working\\-set",
        ] {
            assert!(page.contains(option), "{option} is not in the manual page");
            let option = option.replace('\\', "");
            assert!(
                script.contains(&option),
                "{option} is not in the completions"
            );
        }
    }
}
