//! Owns the arguments of `vm-remap bench`, its progress bar and where its results go.
//! Never measures.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::bench::{self, Options};
use crate::{batch, ready, replay, report, scale};

/// What a shell gives a command that Ctrl-C ended.
pub(super) const INTERRUPTED: u8 = 130;
const PAGE: u64 = 4096;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Sizes take the suffixes K, M and G (binary).\n\nExit codes: 0 measured, 1 could \
                  not measure, 2 wrong options, 130 interrupted (what was measured is shown, but \
                  not of --who-zaps)."
)]
pub(super) struct Arguments {
    /// Size of the blob that is mapped and unmapped
    #[arg(long, value_name = "SIZE", default_value = "2M", value_parser = size)]
    blob: u64,
    /// Map + unmap pairs per second
    #[arg(long, value_name = "N", default_value_t = 700, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Memory that the guest walks meanwhile [default: 64M, with --quick 32M]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    working_set: Option<u64>,
    /// How many vCPUs walk it
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = vcpus)]
    vcpus: usize,
    /// Seconds that each rival churns, over all rounds [default: 5, with --quick 1]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=3600))]
    duration: Option<u32>,
    /// Rounds in which the rivals take turns [default: 10, with --quick 4; with --ready 10 and 3,
    /// with --batch 20 and 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// A short run, for a first look
    #[arg(long)]
    quick: bool,
    /// Measure something else: the time from a map until the guest has touched every page
    #[arg(long, conflicts_with_all = ["blob", "rate", "working_set", "vcpus", "duration", "html", "svg"])]
    ready: bool,
    /// Measure something else: many changes side by side in one batch, against one call each
    #[arg(long, conflicts_with_all = ["ready", "blob", "rate", "working_set", "vcpus", "duration", "html", "svg"])]
    batch: bool,
    /// Write the results as JSON to a file (- for the standard output, instead of the table)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the results as one self-contained page with charts
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the results as one picture
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Instead: which tasks on which CPUs do KVM's zap work. Needs root and tracefs, and counts for
    /// the whole machine: stop other virtual machines meanwhile
    #[arg(long, conflicts_with_all = [
        "ready", "batch",
        "blob", "rate", "working_set", "vcpus", "duration", "rounds", "quick", "html", "svg"
    ])]
    who_zaps: bool,
    /// Instead: calls among 10, 1 000 and 30 000 mappings of one window, and from several threads
    #[arg(long, conflicts_with_all = [
        "ready", "who_zaps",
        "blob", "rate", "working_set", "vcpus", "duration", "html", "svg"
    ])]
    scale: bool,
    /// Instead: replay a trace (- for the standard input) while a guest works. Each rival replays
    /// all of it in each round [default: 3 rounds, with --quick 1, of its first second]
    #[arg(long, value_name = "FILE", conflicts_with_all = [
        "ready", "who_zaps", "scale",
        "blob", "rate", "duration", "html", "svg"
    ])]
    trace: Option<PathBuf>,
    /// Instead: how late real-time timers wake up beside each rival. Needs the right to
    /// real-time priorities, which root has. Each rival churns for 20 seconds unless told
    /// otherwise, with --quick for 2
    #[arg(long, conflicts_with_all = ["ready", "who_zaps", "scale", "trace"])]
    jitter: bool,
}

impl Arguments {
    /// How many rounds: what was asked for, or what a quick or a whole run has.
    fn rounds_or(&self, quick: u32, whole: u32) -> u32 {
        self.rounds
            .unwrap_or(if self.quick { quick } else { whole })
    }

    fn ready(&self) -> ready::Options {
        ready::Options {
            rounds: self.rounds_or(3, 10),
            quick: self.quick,
        }
    }

    fn batch(&self) -> batch::Options {
        batch::Options {
            rounds: self.rounds_or(3, 20),
            quick: self.quick,
        }
    }

    fn scale(&self) -> scale::Options {
        scale::Options {
            rounds: self.rounds_or(1, 5),
            quick: self.quick,
        }
    }

    fn replay(&self) -> replay::Options {
        replay::Options {
            working_set: self.options().working_set,
            vcpus: self.vcpus,
            rounds: self.rounds_or(1, 3),
            quick: self.quick,
        }
    }

    fn jitter(&self) -> Options {
        let seconds = self.duration.unwrap_or(if self.quick { 2 } else { 20 });
        Options {
            duration: Duration::from_secs(seconds.into()),
            ..self.options()
        }
    }

    fn options(&self) -> Options {
        let (working_set, duration, rounds) = if self.quick {
            (32 << 20, 1, 4)
        } else {
            (64 << 20, 5, 10)
        };
        Options {
            blob: self.blob,
            rate: self.rate,
            working_set: self.working_set.unwrap_or(working_set),
            vcpus: self.vcpus,
            duration: Duration::from_secs(self.duration.unwrap_or(duration).into()),
            rounds: self.rounds.unwrap_or(rounds),
            quick: self.quick,
        }
    }
}

/// A size with a binary suffix, in whole pages and above 0.
fn size(text: &str) -> Result<u64, String> {
    let bytes = parse_size::Config::new()
        .with_binary()
        .parse_size(text)
        .map_err(|error| format!("{error}; write a size like 64K, 2M or 1G"))?;
    if bytes == 0 || bytes > 1 << 36 || !bytes.is_multiple_of(PAGE) {
        return Err(format!(
            "{bytes:#x} bytes must be a multiple of 4K, above 0 and at most 64G"
        ));
    }
    Ok(bytes)
}

fn vcpus(text: &str) -> Result<usize, String> {
    let most = crate::guest::MAX_VCPUS;
    match text.parse() {
        Ok(vcpus) if (1..=most).contains(&vcpus) => Ok(vcpus),
        _ => Err(format!("it must be a number from 1 to {most}")),
    }
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let json = arguments.json.as_deref();
    let (html, svg) = (arguments.html.as_deref(), arguments.svg.as_deref());
    if arguments.who_zaps {
        return super::who_zaps::run(json);
    }
    if arguments.ready {
        return super::ready::run(arguments.ready(), json);
    }
    if arguments.batch {
        return super::batch::run(arguments.batch(), json);
    }
    if arguments.scale {
        return super::scale::run(arguments.scale(), json);
    }
    if let Some(trace) = &arguments.trace {
        return super::replay::run(trace, &arguments.replay(), json);
    }
    if arguments.jitter {
        return super::jitter::run(&arguments.jitter(), json, html, svg);
    }
    compare(arguments)
}

/// The main job: all ways of remapping side by side.
fn compare(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let options = arguments.options();
    let stop = stopped_by_signals()?;
    let bar = progress_bar(bench::turns(&options));
    let measured = bench::run(&options, &stop, &mut |role| {
        bar.set_message(role.to_owned());
        bar.inc(1);
    });
    bar.finish_and_clear();
    let report = measured?;
    deliver(arguments, &report)?;
    Ok(exit_code(report.complete))
}

pub(super) fn exit_code(complete: bool) -> ExitCode {
    if complete {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(INTERRUPTED)
    }
}

/// A flag that Ctrl-C and SIGTERM set.
pub(super) fn stopped_by_signals() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // The second one ends the process, should the first not be heard.
        signal_hook::flag::register_conditional_shutdown(
            signal,
            INTERRUPTED.into(),
            Arc::clone(&stop),
        )?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}

pub(super) fn progress_bar(turns: u64) -> ProgressBar {
    let bar = ProgressBar::new(turns);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} turns, {eta} left  {msg}")
    {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn deliver(arguments: &Arguments, report: &report::Report) -> anyhow::Result<()> {
    let json = arguments.json.as_deref();
    super::deliver(json, || report::text(report), || report.json())?;
    if let Some(path) = &arguments.html {
        super::save(path, &report::html(report, &typed())?)?;
    }
    if let Some(path) = &arguments.svg {
        super::save(path, &report::svg(report)?)?;
    }
    Ok(())
}

/// What was typed, as a reader would type it.
pub(super) fn typed() -> String {
    let words: Vec<String> = std::env::args_os()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    named(&words)
}

/// The command line without the path of the program.
fn named(words: &[String]) -> String {
    let rest = words.get(1..).unwrap_or_default();
    std::iter::once("vm-remap")
        .chain(rest.iter().map(String::as_str))
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary_and_whole_pages() {
        assert_eq!(size("2M"), Ok(2 << 20));
        assert_eq!(size("64K"), Ok(64 << 10));
        assert_eq!(size("4096"), Ok(4096));
        for wrong in ["0", "100", "1T", "-1", "x", ""] {
            size(wrong).unwrap_err();
        }
    }

    #[test]
    fn vcpus_are_counted_from_one() {
        assert_eq!(vcpus("2"), Ok(2));
        for wrong in ["0", "65", "many"] {
            vcpus(wrong).unwrap_err();
        }
    }
}
