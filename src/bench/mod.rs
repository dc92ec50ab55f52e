//! Owns `vm-remap bench`: real guests on real KVM, each with another way of remapping, taking
//! turns in short rounds. Never judges and never prints: it returns a report.

pub(crate) mod blob;
pub(crate) mod contender;
pub(crate) mod mapper;
pub(crate) mod pace;
mod plain;
pub(crate) mod tally;
pub(crate) mod walk;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use kvm_bindings::{KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_SLOT_ZAP_ALL};
use kvm_ioctls::Kvm;
use vm_remap::host::{Host as Survey, TdpMmu, ZapMode, ZapReport};
use vm_remap::{BackendKind, Zap};

use self::contender::{Contender, Role};
use self::mapper::Mapper;
use crate::doctor;
use crate::guest::{BLOCK, GpaRange, Guest, GuestConfig};
use crate::report::{Backends, Fixed, Host, KvmFacts, Report, Settings};

/// Where the window of each guest lies.
pub(crate) const WINDOW_BASE: u64 = 4 << 30;
/// The least a window has, so that a blob is a part of it.
const WINDOW_LEN: u64 = 256 << 20;
/// What a guest has beside its working set: code, tables and counters.
const GUEST_OVERHEAD: u64 = 16 << 20;

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Size of the blob that is mapped and unmapped, in bytes; a multiple of 4 KiB.
    pub blob: u64,
    /// Map + unmap pairs per second, above 0.
    pub rate: u32,
    /// Memory that the guest walks meanwhile, in bytes; a multiple of 4 KiB.
    pub working_set: u64,
    /// How many vCPUs walk it.
    pub vcpus: usize,
    /// How long each rival churns, over all rounds.
    pub duration: Duration,
    /// Rounds in which the rivals take turns, above 0.
    pub rounds: u32,
    /// Whether this is a short run.
    pub quick: bool,
}

/// Told after each turn; the total number of turns is [`turns`].
pub type Progress<'a> = &'a mut dyn FnMut(&str);

/// How many turns a run has.
#[must_use]
pub fn turns(options: &Options) -> u64 {
    u64::from(options.rounds).saturating_mul(ROLES.len() as u64)
}

/// The rivals, in the order of their turns.
const ROLES: [Role; 6] = [
    Role::Memslot,
    Role::Precise,
    Role::Plain,
    Role::Fixed,
    Role::Peer,
    Role::Bare,
];

/// Measures. Stops soon after `stop` is set, with what there is until then.
///
/// # Errors
/// Where no guest can be made, with what the host lacks; where a rival's own calls fail.
pub fn run(options: &Options, stop: &AtomicBool, progress: Progress<'_>) -> anyhow::Result<Report> {
    let mut contenders = contenders(options, &ROLES)?;
    let slice = Slices::of(options);
    'rounds: for round in 0..options.rounds as usize {
        for turn in 0..contenders.len() {
            // Another one begins in each round, so that none always follows the same.
            let index = turn
                .wrapping_add(round)
                .checked_rem(contenders.len())
                .unwrap_or(turn);
            let Some(contender) = contenders.get_mut(index) else {
                continue;
            };
            contender.take_turn(&slice, stop)?;
            if stop.load(Ordering::Relaxed) {
                break 'rounds;
            }
            progress(contender.role().name());
        }
    }
    let backends = backends(&contenders);
    let first = contenders.first();
    let first = first.context("cannot describe the host: no rival could be set up")?;
    let host = describe(first.guest());
    let complete = !stop.load(Ordering::Relaxed);
    Ok(Report {
        host,
        settings: settings(options),
        backends,
        complete,
    })
}

/// How long the parts of a turn last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slices {
    pub(crate) churn: Duration,
    idle: Duration,
    replace: Duration,
    gap: Duration,
    /// Half the time from one map to the next.
    step: Duration,
}

impl Slices {
    pub(crate) fn of(options: &Options) -> Self {
        let churn = options
            .duration
            .checked_div(options.rounds)
            .unwrap_or(options.duration);
        let part = |of: u32| churn.checked_div(of).unwrap_or(churn);
        let per_second = options.rate.saturating_mul(2);
        let second = Duration::from_secs(1);
        let step = second.checked_div(per_second).unwrap_or(second);
        Self {
            churn,
            idle: part(2),
            replace: part(3),
            gap: part(3),
            step,
        }
    }
}

/// Those of the rivals that the host offers, each with its guest.
pub(crate) fn contenders(options: &Options, roles: &[Role]) -> anyhow::Result<Vec<Contender>> {
    let shared = Arc::new(guest(options)?);
    let mut contenders = Vec::new();
    for &role in roles {
        let guest = match role {
            // The floor and the peer's descriptor run beside the guest of `fixed`.
            Role::Fixed | Role::Peer | Role::Bare => Arc::clone(&shared),
            Role::Memslot | Role::Precise | Role::Plain => Arc::new(guest(options)?),
        };
        let window = window(options);
        let mapper: Option<Mapper> = match role {
            Role::Memslot => Mapper::window(&guest, window, BackendKind::Memslot, Zap::All)?,
            Role::Precise => Mapper::window(&guest, window, BackendKind::Memslot, Zap::Precise)?,
            Role::Fixed => Mapper::window(&guest, window, BackendKind::Fixed, Zap::All)?,
            Role::Peer => Mapper::window(&guest, above(window), BackendKind::Fixed, Zap::All)?,
            Role::Plain => Some(Mapper::plain(&guest, window)?),
            Role::Bare => Some(Mapper::bare(window)?),
        };
        if let Some(mapper) = mapper {
            contenders.push(Contender::new(role, guest, mapper, options)?);
        }
    }
    Ok(contenders)
}

fn guest(options: &Options) -> anyhow::Result<Guest> {
    let ram_len = options
        .working_set
        .checked_add(GUEST_OVERHEAD)
        .and_then(|len| len.checked_next_multiple_of(BLOCK))
        .context("cannot make a guest: the working set is too large; pass a smaller one")?;
    let window = Some(window(options));
    Ok(Guest::open(&GuestConfig {
        ram_len,
        vcpus: options.vcpus,
        window,
    })?)
}

fn window(options: &Options) -> GpaRange {
    let len = options.blob.max(WINDOW_LEN);
    GpaRange {
        base: WINDOW_BASE,
        len: len.checked_next_multiple_of(BLOCK).unwrap_or(len),
    }
}

/// A second window of the same VM, which the guest does not look at.
fn above(window: GpaRange) -> GpaRange {
    GpaRange {
        base: window.end(),
        len: window.len,
    }
}

fn settings(options: &Options) -> Settings {
    Settings {
        blob_bytes: options.blob,
        rate_per_s: options.rate,
        working_set_bytes: options.working_set,
        vcpus: u32::try_from(options.vcpus).unwrap_or(u32::MAX),
        duration_s: options.duration.as_secs_f64(),
        rounds: options.rounds,
        quick: options.quick,
    }
}

fn backends(contenders: &[Contender]) -> Backends {
    let of = |role| contenders.iter().find(|contender| contender.role() == role);
    let rival = |role| of(role).map(Contender::rival);
    Backends {
        memslot: rival(Role::Memslot),
        memslot_precise: rival(Role::Precise),
        plain: rival(Role::Plain).unwrap_or_default(),
        fixed: Fixed {
            rival: rival(Role::Fixed).unwrap_or_default(),
            peer: of(Role::Peer).map(Contender::latencies).unwrap_or_default(),
        },
        bare: of(Role::Bare).map(Contender::latencies).unwrap_or_default(),
    }
}

pub(crate) fn describe(guest: &Guest) -> Host {
    let survey = Survey::default();
    let tdp_mmu = match survey.tdp_mmu().state {
        TdpMmu::On => Some(true),
        TdpMmu::Off => Some(false),
        TdpMmu::Unknown => None,
    };
    let zap = match ZapReport::of_this_host().mode {
        ZapMode::Synchronous => "the calling task",
        ZapMode::Worker => "workers on any CPU",
        ZapMode::Unknown => "unknown",
    };
    Host::read(KvmFacts {
        module: doctor::kvm_modules(&survey).join(", "),
        tdp_mmu,
        zap: zap.to_owned(),
        slot_zap_all_quirk: offers_precise_zap(guest.kvm()),
        nr_memslots: guest.kvm().get_nr_memslots() as u64,
    })
}

fn offers_precise_zap(kvm: &Kvm) -> bool {
    let quirks = kvm.check_extension_raw(KVM_CAP_DISABLE_QUIRKS2.into());
    u32::try_from(quirks).is_ok_and(|quirks| quirks & KVM_X86_QUIRK_SLOT_ZAP_ALL != 0)
}
