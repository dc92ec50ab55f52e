//! Owns `vm-remap bench --ready`: how long it takes from a map call until the guest has touched
//! every page of the blob, for several kinds of memory and ways to map it. Never prints.

mod blob;
pub(crate) mod pin;
mod pool;
mod report;
mod rival;
mod text;

use std::sync::atomic::{AtomicBool, Ordering};

use self::blob::{Kind, Supply};
use self::pin::Pinned;
use self::pool::Pool;
pub use self::report::{Cell, Kinds, Report, Settings, Touches};
use self::report::{Key, Tally};
use self::rival::{Role, Stages};
use crate::bench::{WINDOW_BASE, describe};
use crate::guest::{BLOCK, GpaRange, Touch};

const WINDOW: GpaRange = GpaRange {
    base: WINDOW_BASE,
    len: 256 << 20,
};
/// Sizes of blobs with the samples of each in a turn; a short run leaves the last one out.
const SIZES: [(u64, u32); 3] = [(64 << 10, 16), (2 << 20, 8), (32 << 20, 2)];
const TOUCHES: [Touch; 2] = [Touch::Read, Touch::Write];

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Rounds in which the rivals take turns, above 0.
    pub rounds: u32,
    /// Whether this is a short run.
    pub quick: bool,
}

impl Options {
    fn sizes(self) -> &'static [(u64, u32)] {
        match (self.quick, &SIZES) {
            (true, [short @ .., _]) => short,
            (_, all) => all,
        }
    }
}

/// How many turns a run has; after each, progress is told.
#[must_use]
pub fn turns(options: Options) -> u64 {
    let kinds = Kind::ALL.len().saturating_mul(options.sizes().len());
    u64::from(options.rounds).saturating_mul(kinds as u64)
}

/// Measures. Stops soon after `stop` is set, with what there is until then.
///
/// # Errors
/// Where no guest can be made, with what the host lacks; where a rival's own calls fail.
pub fn run(
    options: Options,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(&str),
) -> anyhow::Result<Report> {
    let _pinned = Pinned::here();
    let stages = Stages::new(WINDOW)?;
    let blocks = |(len, _): &(u64, u32)| len.checked_div(BLOCK).unwrap_or(0);
    let _pool = Pool::with(options.sizes().iter().map(blocks).sum());
    let mut supplies = Vec::new();
    for kind in Kind::ALL {
        for &(len, samples) in options.sizes() {
            supplies.push((
                kind,
                Supply::new(kind, len, &|fd| stages.collapse(fd, len))?,
                samples,
            ));
        }
    }
    let mut tally = Tally::default();
    'rounds: for round in 0..options.rounds as usize {
        for (kind, supply, samples) in &supplies {
            if let Some(supply) = supply {
                turn(&stages, supply, *samples, round, stop, &mut tally)?;
            }
            if stop.load(Ordering::Relaxed) {
                break 'rounds;
            }
            progress(kind.name());
        }
    }
    Ok(Report::new(
        describe(stages.any_guest()),
        options,
        &tally,
        |role| stages.offers(role),
        !stop.load(Ordering::Relaxed),
    ))
}

/// All rivals with one supply of blobs; another one begins in each round.
fn turn(
    stages: &Stages,
    supply: &Supply,
    samples: u32,
    round: usize,
    stop: &AtomicBool,
    tally: &mut Tally,
) -> anyhow::Result<()> {
    for touch in TOUCHES {
        for index in 0..Role::ALL.len() {
            let index = index.wrapping_add(round).checked_rem(Role::ALL.len());
            let role = index.and_then(|index| Role::ALL.get(index).copied());
            let Some(role) = role.filter(|role| stages.offers(*role)) else {
                continue;
            };
            for _ in 0..samples {
                if stop.load(Ordering::Relaxed) {
                    return Ok(());
                }
                let key = Key {
                    role,
                    kind: supply.kind,
                    len: supply.len,
                    touch,
                };
                tally.add(key, stages.sample(role, supply, touch)?);
            }
        }
    }
    Ok(())
}
