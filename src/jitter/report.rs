//! Owns the result of `vm-remap bench --jitter`. Never measures.
//!
//! Every figure is an `Option`: `None` (JSON `null`) means "not measured", never zero. The JSON
//! keys are a public contract.

use std::collections::BTreeMap;

use anyhow::Context as _;
use serde::Serialize;

use super::{Beside, ROLES};
use crate::bench::Options;
use crate::bench::contender::Role;
use crate::realtime::timer::{Counted, PERIOD};
use crate::report::{Aim, Bound, Host};

/// All that one run found out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Where it was measured.
    pub host: Host,
    /// What was asked for, and how the timers ran.
    pub settings: Settings,
    /// The guest works and nothing is mapped.
    pub idle: Option<Wakeups>,
    /// The guest works and a rival churns; one that this host does not offer is `null`.
    pub backends: BTreeMap<&'static str, Option<Wakeups>>,
    /// The project's aims, judged by this report.
    pub aims: Vec<Aim>,
    /// False when the run was interrupted before its last round.
    pub complete: bool,
}

/// What was asked for, and how the timers ran.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Settings {
    /// Size of the blob that is mapped and unmapped, in bytes.
    pub blob_bytes: u64,
    /// Map + unmap pairs asked for per second.
    pub rate_per_s: u32,
    /// Memory the guest walked meanwhile, in bytes.
    pub working_set_bytes: u64,
    /// Number of vCPUs that walked it.
    pub vcpus: u32,
    /// How long each phase lasted, over all rounds, in seconds.
    pub duration_s: f64,
    /// Rounds in which the phases took turns.
    pub rounds: u32,
    /// True for a short run: good for a first look, too short to judge by.
    pub quick: bool,
    /// How often a timer wants to be woken, in microseconds.
    pub period_us: u64,
    /// The CPUs that a timer was pinned to, one each.
    pub cpus: Vec<usize>,
    /// What raised the timers' priority.
    pub priority: String,
}

/// How late the timers of all CPUs woke up, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Wakeups {
    /// Half of them by at most this much.
    pub p50_us: f64,
    /// 999 of 1000 by at most this much.
    pub p999_us: f64,
    /// The latest of all.
    pub max_us: f64,
    /// How many.
    pub n: u64,
    /// Those later than one period.
    pub missed: u64,
    /// The same figures as multiples of the idle phase's.
    pub times_idle: Option<TimesIdle>,
}

/// Figures as multiples of the idle phase's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TimesIdle {
    /// Of [`Wakeups::p50_us`].
    pub p50: f64,
    /// Of [`Wakeups::p999_us`].
    pub p999: f64,
    /// Of [`Wakeups::max_us`].
    pub max: f64,
}

impl Wakeups {
    fn of(counted: &Counted, idle: Option<&Self>) -> Option<Self> {
        if counted.late.is_empty() {
            return None;
        }
        let micros = |nanoseconds: u64| nanoseconds as f64 / 1000.0;
        let (p50_us, p999_us, max_us) = (
            micros(counted.late.value_at_quantile(0.5)),
            micros(counted.late.value_at_quantile(0.999)),
            micros(counted.late.max()),
        );
        let times = |idle: &Self| {
            let whole = [idle.p50_us, idle.p999_us, idle.max_us];
            whole.iter().all(|us| *us > 0.0).then(|| TimesIdle {
                p50: p50_us / idle.p50_us,
                p999: p999_us / idle.p999_us,
                max: max_us / idle.max_us,
            })
        };
        Some(Self {
            p50_us,
            p999_us,
            max_us,
            n: counted.late.len(),
            missed: counted.missed,
            times_idle: idle.and_then(times),
        })
    }
}

impl Report {
    pub(super) fn new(
        host: Host,
        options: &Options,
        cpus: Vec<usize>,
        phases: &[Beside],
        complete: bool,
    ) -> Self {
        let of = |role| phases.iter().find(|phase| phase.role == role);
        let idle = of(None).and_then(|phase| Wakeups::of(&phase.counted, None));
        let backend = |role: Role| {
            let phase = of(Some(role));
            let wakeups = phase.and_then(|phase| Wakeups::of(&phase.counted, idle.as_ref()));
            (role.name(), wakeups)
        };
        let priority = phases.iter().map(|phase| phase.counted.priority.as_str());
        let settings = Settings {
            blob_bytes: options.blob,
            rate_per_s: options.rate,
            working_set_bytes: options.working_set,
            vcpus: u32::try_from(options.vcpus).unwrap_or(u32::MAX),
            duration_s: options.duration.as_secs_f64(),
            rounds: options.rounds,
            quick: options.quick,
            period_us: u64::try_from(PERIOD.as_micros()).unwrap_or(u64::MAX),
            cpus,
            priority: priority.max().unwrap_or_default().to_owned(),
        };
        let backends: BTreeMap<_, _> = ROLES.into_iter().map(backend).collect();
        let fixed = backends.get(Role::Fixed.name()).copied().flatten();
        let aim = Aim::judged(
            "99.9th percentile of late wake-ups, fixed (times idle)",
            Bound::AtMost(1.2),
            fixed.and_then(|fixed| Some(fixed.times_idle?.p999)),
        );
        Self {
            host,
            settings,
            idle,
            backends,
            aims: vec![aim],
            complete,
        }
    }

    /// The phases with their names, idle first.
    pub(super) fn phases(&self) -> Vec<(&'static str, Option<Wakeups>)> {
        let of = |role: Role| {
            let name = role.name();
            (name, self.backends.get(name).copied().flatten())
        };
        std::iter::once(("idle", self.idle))
            .chain(ROLES.into_iter().map(of))
            .collect()
    }

    /// The report as indented JSON, for programs.
    ///
    /// # Errors
    /// When the serializer refuses a value, which no value of these types should cause.
    pub fn json(&self) -> anyhow::Result<String> {
        serde_json::to_string_pretty(self).context("cannot write the report as JSON")
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::report::KvmFacts;

    fn beside(role: Option<Role>, micros: impl IntoIterator<Item = u32>) -> Beside {
        let mut counted = Counted::nothing().unwrap();
        for micros in micros {
            let late = Duration::from_micros(micros.into());
            counted
                .late
                .record(late.as_nanos().try_into().unwrap())
                .unwrap();
        }
        counted.missed = 1;
        counted.priority = "SCHED_FIFO 2".to_owned();
        Beside { role, counted }
    }

    /// `fixed` is a little later than idle, `memslot` a lot, and the host has no precise zap.
    pub(in crate::jitter) fn report() -> Report {
        let host = Host::read(KvmFacts {
            module: "kvm_amd".into(),
            tdp_mmu: Some(true),
            zap: "the calling task".into(),
            slot_zap_all_quirk: false,
            nr_memslots: 32764,
        });
        let options = Options {
            blob: 2 << 20,
            rate: 700,
            working_set: 64 << 20,
            vcpus: 1,
            duration: Duration::from_secs(20),
            rounds: 10,
            quick: false,
        };
        let phases = [
            beside(None, 1..=1000),
            beside(Some(Role::Memslot), (40..=40_000).step_by(40)),
            beside(Some(Role::Plain), 1..=1000),
            beside(Some(Role::Fixed), 101..=1100),
        ];
        Report::new(host, &options, vec![0, 1], &phases, true)
    }

    #[test]
    fn figures_are_told_in_multiples_of_idle() {
        let report = report();
        let near = |found: f64, wanted: f64| {
            assert!((found / wanted - 1.0).abs() < 0.01, "{found} for {wanted}");
        };
        let memslot = report.backends["memslot"].unwrap();
        near(memslot.p50_us, 20_000.0);
        near(memslot.times_idle.unwrap().p999, 40.0);
        near(report.aims[0].measured.unwrap(), 1.1);
        assert_eq!(report.aims[0].met, Some(true));
        assert_eq!(report.backends["memslot-precise"], None);
    }

    #[test]
    fn json_has_the_contract_keys() {
        let json: serde_json::Value = serde_json::from_str(&report().json().unwrap()).unwrap();
        assert!(json["backends"]["memslot-precise"].is_null());
        assert!(json["idle"]["times_idle"].is_null());
        assert_eq!(json["idle"]["n"], 1000);
        assert_eq!(json["settings"]["cpus"][1], 1);
        assert_eq!(json["settings"]["period_us"], 1000);
        assert!(json["backends"]["fixed"]["times_idle"]["max"].is_f64());
    }
}
