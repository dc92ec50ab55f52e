//! Owns the running of `vm-remap bench --trace`: where the trace comes from, the progress bar, and
//! where the results go. Never measures.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;

use super::bench::{exit_code, progress_bar, stopped_by_signals};
use crate::replay::{Options, run as measure, turns};
use crate::trace::Trace;

/// Replays, and writes the table, or the JSON where `json` is `-`.
pub(super) fn run(from: &Path, options: &Options, json: Option<&Path>) -> anyhow::Result<ExitCode> {
    let trace = if from == Path::new("-") {
        Trace::read(std::io::stdin().lock())?
    } else {
        let name = from.display();
        let file = File::open(from).with_context(|| format!("cannot open the trace {name}"))?;
        Trace::read(BufReader::new(file)).with_context(|| format!("{name}"))?
    };
    let stop = stopped_by_signals()?;
    let bar = progress_bar(turns(options));
    let measured = measure(trace, options, &stop, &mut |rival| {
        bar.set_message(rival.to_owned());
        bar.inc(1);
    });
    bar.finish_and_clear();
    let report = measured?;
    super::deliver(json, || report.text(), || report.json())?;
    Ok(exit_code(report.complete))
}
