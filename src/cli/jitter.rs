//! Owns the running of `vm-remap bench --jitter`: its progress bar and where its results go.
//! Never measures.

use std::path::Path;
use std::process::ExitCode;

use super::bench::{exit_code, progress_bar, stopped_by_signals, typed};
use crate::bench::Options;
use crate::jitter::{run as measure, turns};

/// Measures, and writes the table, or the JSON where `json` is `-`, and the page and the picture.
pub(super) fn run(
    options: &Options,
    json: Option<&Path>,
    html: Option<&Path>,
    svg: Option<&Path>,
) -> anyhow::Result<ExitCode> {
    let stop = stopped_by_signals()?;
    let bar = progress_bar(turns(options));
    let measured = measure(options, &stop, &mut |phase| {
        bar.set_message(phase.to_owned());
        bar.inc(1);
    });
    bar.finish_and_clear();
    let report = measured?;
    super::deliver(json, || report.text(), || report.json())?;
    if let Some(path) = html {
        super::save(path, &report.html(&typed())?)?;
    }
    if let Some(path) = svg {
        super::save(path, &report.svg()?)?;
    }
    Ok(exit_code(report.complete))
}
