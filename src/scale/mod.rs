//! Owns `vm-remap bench --scale`: what a call costs while few and while many mappings live in one
//! window, and how many calls several threads make. No vCPU runs meanwhile. Never prints.

mod limits;
mod many;
mod memory;
mod report;
mod text;
mod threads;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vm_remap::host::max_map_count;

use self::many::{Many, Role};
pub use self::report::{Backend, Calls, Report, Settings, Throughput};
use self::threads::{Ground, Grounds};
use crate::bench::describe;

/// How many mappings live in the window.
const COUNTS: [u64; 3] = [10, 1_000, 30_000];
/// How many threads call at once.
const THREADS: [usize; 3] = [1, 2, 4];

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Rounds in which the rivals take turns, above 0.
    pub rounds: u32,
    /// Whether this is a short run, which leaves the largest count out.
    pub quick: bool,
}

impl Options {
    fn counts(self) -> &'static [u64] {
        match (self.quick, &COUNTS) {
            (true, [short @ .., _]) => short,
            (_, all) => all,
        }
    }

    /// Pairs of an unmap and a map, and lookups, in a turn.
    fn samples(self) -> u32 {
        if self.quick { 200 } else { 2_000 }
    }

    /// How long threads call in a turn.
    fn slice(self) -> Duration {
        Duration::from_millis(if self.quick { 50 } else { 300 })
    }
}

/// How many turns a run has; after each, progress is told.
#[must_use]
pub fn turns(options: Options) -> u64 {
    let many = Role::ALL.len().saturating_mul(options.counts().len());
    let threads = Ground::ALL.len().saturating_mul(THREADS.len());
    u64::from(options.rounds).saturating_mul(many.saturating_add(threads) as u64)
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
    let mut rivals = Role::ALL
        .into_iter()
        .map(|role| Many::new(role, options))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut grounds = Grounds::new(&THREADS)?;
    let (counts, refused) = affordable(options.counts(), max_map_count().ok());
    for round in 0..options.rounds as usize {
        for turn in 0..rivals.len() {
            // Another one begins in each round, so that none always follows the same.
            let index = turn.wrapping_add(round).checked_rem(rivals.len());
            if let Some(rival) = index.and_then(|index| rivals.get_mut(index)) {
                rival.take_turn(counts, stop, progress)?;
            }
        }
        grounds.take_turns(&THREADS, options.slice(), stop, progress)?;
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
    let host = describe(grounds.guest());
    let complete = !stop.load(Ordering::Relaxed);
    Ok(Report::new(
        host, options, &rivals, &grounds, refused, complete,
    ))
}

/// The counts that the host has room for, and why the others are not measured. A mapping by itself
/// costs two memory areas, its own and the hole after it.
fn affordable(counts: &'static [u64], limit: Option<usize>) -> (&'static [u64], Option<String>) {
    // What the library keeps free, and what the process has beside its windows.
    let room = |limit: u64| {
        limit
            .saturating_sub((limit / 64).max(64))
            .saturating_sub(512)
            / 2
    };
    let Some(limit) = limit else {
        return (counts, None);
    };
    let most = room(limit as u64);
    let fit = counts.iter().take_while(|count| **count <= most).count();
    let (fit, rest) = counts.split_at_checked(fit).unwrap_or((counts, &[]));
    let refused = rest.last().map(|count| {
        let areas = count.saturating_mul(2);
        format!(
            "{count} mappings with holes between them need {areas} memory areas and some to spare; \
             this host allows a process {limit}: raise it with `sysctl vm.max_map_count=262144`"
        )
    });
    (fit, refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_limit_has_room_for_every_count() {
        assert_eq!(affordable(&COUNTS, Some(65530)), (&COUNTS[..], None));
        assert_eq!(affordable(&COUNTS, None), (&COUNTS[..], None));
    }

    #[test]
    fn a_low_limit_leaves_counts_out_and_says_what_to_do() {
        let (counts, refused) = affordable(&COUNTS, Some(10_000));
        assert_eq!(counts, [10, 1_000]);
        let refused = refused.unwrap();
        assert!(refused.starts_with("30000 mappings"), "{refused}");
        assert!(refused.contains("10000: raise it"), "{refused}");
        assert!(affordable(&COUNTS, Some(0)).0.is_empty());
    }
}
