//! Owns `vm-remap bench --trace`: a trace is replayed against each way of remapping while a guest
//! works. Never prints.

mod report;
mod rival;
mod text;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, ensure};
use vm_remap::{BackendKind, Zap};

pub use self::report::{Backend, Report, Settings};
use self::rival::{Rival, Role, Supply};
use crate::bench::mapper::Mapper;
use crate::bench::{WINDOW_BASE, describe};
use crate::guest::{BLOCK, GpaRange, Guest, GuestConfig};
use crate::trace::{Placed, Trace, place};

/// What a guest has beside its working set: code, tables and counters.
const GUEST_OVERHEAD: u64 = 16 << 20;
/// How much of the trace a short run replays, in microseconds.
const QUICK_US: u64 = 1_000_000;

/// How to replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Memory that the guest walks meanwhile, in bytes; a multiple of 4 KiB.
    pub working_set: u64,
    /// How many vCPUs walk it.
    pub vcpus: usize,
    /// How often each rival replays the trace, above 0.
    pub rounds: u32,
    /// Whether this is a short run: the first second of the trace.
    pub quick: bool,
}

/// How many turns a run has; after each, progress is told.
#[must_use]
pub fn turns(options: &Options) -> u64 {
    u64::from(options.rounds).saturating_mul(Role::ALL.len() as u64)
}

/// Replays. Stops soon after `stop` is set, with what there is until then.
///
/// # Errors
/// Where the mappings of the trace overlap or find no room; where no guest can be made, with what
/// the host lacks; where a rival's own calls fail.
pub fn run(
    mut trace: Trace,
    options: &Options,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(&str),
) -> anyhow::Result<Report> {
    if options.quick {
        trace.steps.retain(|step| step.at_us <= QUICK_US);
    }
    ensure!(
        !trace.steps.is_empty(),
        "cannot replay the trace: there is no operation in it"
    );
    let window = GpaRange {
        base: WINDOW_BASE,
        len: trace
            .window
            .checked_next_multiple_of(BLOCK)
            .unwrap_or(trace.window),
    };
    let mut rivals = Vec::new();
    for role in Role::ALL {
        let guest = Arc::new(guest(options, window)?);
        if let Some(mapper) = mapper(role, &guest, window)? {
            rivals.push(Rival::new(role, mapper, guest, options.working_set)?);
        }
    }
    let alignment = |len| rivals.iter().find_map(|rival| rival.alignment(len));
    let steps = place(&trace, |len| alignment(len).unwrap_or(BLOCK))?;
    let mut supply = Supply::of(&trace)?;
    take_turns(&mut rivals, &steps, &mut supply, options, stop, progress)?;
    let first = rivals
        .first()
        .context("cannot describe the host: no rival could be set up")?;
    let host = describe(first.guest());
    let complete = !stop.load(Ordering::Relaxed);
    Ok(Report::new(host, options, &trace, &rivals, complete))
}

fn take_turns(
    rivals: &mut [Rival],
    steps: &[Placed],
    supply: &mut Supply,
    options: &Options,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(&str),
) -> anyhow::Result<()> {
    for round in 0..options.rounds as usize {
        for turn in 0..rivals.len() {
            // Another one begins in each round, so that none always follows the same.
            let index = turn.wrapping_add(round).checked_rem(rivals.len());
            let Some(rival) = index.and_then(|index| rivals.get_mut(index)) else {
                continue;
            };
            rival.take_turn(steps, supply, stop)?;
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            progress(rival.role().name());
        }
    }
    Ok(())
}

fn guest(options: &Options, window: GpaRange) -> anyhow::Result<Guest> {
    let ram_len = options
        .working_set
        .checked_add(GUEST_OVERHEAD)
        .and_then(|len| len.checked_next_multiple_of(BLOCK))
        .context("cannot make a guest: the working set is too large; pass a smaller one")?;
    Ok(Guest::open(&GuestConfig {
        ram_len,
        vcpus: options.vcpus,
        window: Some(window),
    })?)
}

/// `None` where the host does not offer what the rival stands for.
fn mapper(role: Role, guest: &Guest, window: GpaRange) -> anyhow::Result<Option<Mapper>> {
    let opened = |backend, zap| Mapper::window_of_many(guest, window, backend, zap);
    match role {
        Role::Memslot => opened(BackendKind::Memslot, Zap::All),
        Role::Precise => opened(BackendKind::Memslot, Zap::Precise),
        Role::Plain => Mapper::plain(guest, window).map(Some),
        Role::Fixed => opened(BackendKind::Fixed, Zap::All),
    }
}
