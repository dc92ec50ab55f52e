//! Owns the running of `vm-remap bench --batch`: its progress bar and where its results go.
//! Never measures.

use std::path::Path;
use std::process::ExitCode;

use super::bench::{exit_code, progress_bar, stopped_by_signals};
use crate::batch::{Options, run as measure, turns};

/// Measures, and writes the table, or the JSON where `json` is `-`.
pub(super) fn run(options: Options, json: Option<&Path>) -> anyhow::Result<ExitCode> {
    let stop = stopped_by_signals()?;
    let bar = progress_bar(turns(options));
    let measured = measure(options, &stop, &mut |files| {
        bar.set_message(files.to_owned());
        bar.inc(1);
    });
    bar.finish_and_clear();
    let report = measured?;
    super::deliver(json, || report.text(), || report.json())?;
    Ok(exit_code(report.complete))
}
