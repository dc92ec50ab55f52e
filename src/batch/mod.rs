//! Owns `vm-remap bench --batch`: what many changes side by side cost in one batch, against the same
//! changes one by one. Never prints.

mod files;
mod report;
mod stage;
mod text;

use std::sync::atomic::{AtomicBool, Ordering};

use self::files::Files;
pub use self::report::{Cell, Operations, Report, Settings, Sizes, Way};
use self::report::{Key, Tally};
use self::stage::Stage;
use crate::bench::describe;
use crate::ready::pin::Pinned;

/// What one change covers, in bytes.
const EACH: u64 = 64 << 10;
/// Changes at once, with the samples of each in a turn.
const SIZES: [(u64, u32); 3] = [(1, 32), (16, 8), (256, 2)];

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Rounds in which the two ways take turns, above 0.
    pub rounds: u32,
    /// Whether this is a short run.
    pub quick: bool,
}

/// How many turns a run has; after each, progress is told.
#[must_use]
pub fn turns(options: Options) -> u64 {
    let kinds = Files::ALL.len().saturating_mul(SIZES.len());
    u64::from(options.rounds).saturating_mul(kinds as u64)
}

/// Measures. Stops soon after `stop` is set, with what there is until then.
///
/// # Errors
/// Where no guest can be made, with what the host lacks; where a change fails.
pub fn run(
    options: Options,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(&str),
) -> anyhow::Result<Report> {
    let _pinned = Pinned::here();
    let most = SIZES.iter().map(|(count, _)| *count).max().unwrap_or(1);
    let stage = Stage::new(most)?;
    let mut tally = Tally::default();
    'rounds: for round in 0..options.rounds {
        for files in Files::ALL {
            for (count, samples) in SIZES {
                let supply = files.supply(count)?;
                for sample in 0..samples.saturating_mul(2) {
                    if stop.load(Ordering::Relaxed) {
                        break 'rounds;
                    }
                    // Each turn begins with the other way.
                    let batch = (sample ^ round) & 1 == 0;
                    let key = Key {
                        files,
                        count,
                        batch,
                    };
                    tally.add(key, stage.sample(&supply, count, batch)?);
                }
                progress(files.name());
            }
        }
    }
    Ok(Report::new(
        describe(stage.guest()),
        options,
        &tally,
        !stop.load(Ordering::Relaxed),
    ))
}
