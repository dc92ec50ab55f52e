//! Owns the result of `vm-remap bench --scale` and what follows from it. Never measures.
//!
//! Every figure is an `Option`: `None` (JSON `null`) means "not measured", never zero. The JSON
//! keys are a public contract.

use std::collections::BTreeMap;

use anyhow::Context as _;
use serde::Serialize;

use super::limits::limits;
use super::many::{Many, Role};
use super::threads::{Ground, Grounds, Rates};
use super::{COUNTS, Options, THREADS};
use crate::bench::tally::median;
use crate::report::{Aim, Bound, Host, Quantiles};

/// All that one run found out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Where it was measured.
    pub host: Host,
    /// What was asked for.
    pub settings: Settings,
    /// By rival.
    pub backends: BTreeMap<&'static str, Backend>,
    /// Why the larger counts were not measured, where the host has no room for them.
    pub refused: Option<String>,
    /// By what the threads share, and by the number of threads.
    pub threads: BTreeMap<&'static str, BTreeMap<usize, Throughput>>,
    /// What keeps threads from adding up on this host, as far as the figures show it.
    pub limits: Vec<String>,
    /// The project's aims, judged by this report.
    pub aims: Vec<Aim>,
    /// False when the run was interrupted before its last round.
    pub complete: bool,
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// Rounds in which the rivals took turns.
    pub rounds: u32,
    /// True for a short run: good for a first look, too short to judge by.
    pub quick: bool,
    /// How many mappings lived in the window.
    pub counts: Vec<u64>,
    /// Size of each of them, in bytes; a hole as large lies behind each.
    pub mapping_bytes: u64,
}

/// The figures of one rival.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Backend {
    /// By the number of mappings in the window.
    pub calls: BTreeMap<u64, Calls>,
    /// What the process allocated for each mapping, in bytes.
    pub bytes_per_mapping: Option<f64>,
}

/// What calls took, somewhere among the mappings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Calls {
    /// A hole becomes a mapping.
    pub map_us: Option<Quantiles>,
    /// A mapping becomes a hole.
    pub unmap_us: Option<Quantiles>,
    /// What lies at a guest address; `plain` keeps no account of that.
    pub lookup_us: Option<Quantiles>,
}

/// What several threads got done together, maps and unmaps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Throughput {
    /// Calls per second, the median of the rounds.
    pub calls_per_s: f64,
    /// Times the calls of one thread in the same round, the median.
    pub gain: Option<f64>,
    /// How many rounds.
    pub n: u64,
}

impl Report {
    pub(super) fn new(
        host: Host,
        options: Options,
        rivals: &[Many],
        grounds: &Grounds,
        refused: Option<String>,
        complete: bool,
    ) -> Self {
        let backends = rivals
            .iter()
            .map(|many| (many.role().name(), backend(many)));
        let settings = Settings {
            rounds: options.rounds,
            quick: options.quick,
            counts: options.counts().to_vec(),
            mapping_bytes: crate::guest::PAGE,
        };
        let threads = throughput(grounds.rates());
        let mut report = Self {
            limits: limits(&threads, host.cpus),
            host,
            settings,
            backends: backends.collect(),
            refused,
            threads,
            aims: Vec::new(),
            complete,
        };
        report.aims = report.judge();
        report
    }

    fn judge(&self) -> Vec<Aim> {
        let fixed = self.backends.get(Role::Fixed.name());
        let times = |pick: fn(&Calls) -> Option<Quantiles>| {
            let [few, .., many] = COUNTS;
            let p50 = |count| Some(pick(fixed?.calls.get(&count)?)?.p50);
            Some(p50(many)? / p50(few).filter(|few| *few > 0.0)?)
        };
        let flat = |name, pick| Aim::judged(name, Bound::AtMost(2.0), times(pick));
        vec![
            flat("map among 30 000, fixed (times among 10)", |calls| {
                calls.map_us
            }),
            flat("unmap among 30 000, fixed (times among 10)", |calls| {
                calls.unmap_us
            }),
            flat("lookup among 30 000, fixed (times among 10)", |calls| {
                calls.lookup_us
            }),
            Aim::judged(
                "user memory of a mapping, fixed (bytes)",
                Bound::AtMost(256.0),
                fixed.and_then(|fixed| fixed.bytes_per_mapping),
            ),
        ]
    }

    /// The report as indented JSON, for programs.
    ///
    /// # Errors
    /// When the serializer refuses a value, which no value of these types should cause.
    pub fn json(&self) -> anyhow::Result<String> {
        serde_json::to_string_pretty(self).context("cannot write the report as JSON")
    }
}

fn backend(many: &Many) -> Backend {
    let calls = COUNTS.into_iter().filter_map(|count| {
        let took = many.took(count)?;
        let calls = Calls {
            map_us: Quantiles::of(&took.map),
            unmap_us: Quantiles::of(&took.unmap),
            lookup_us: Quantiles::of(&took.lookup),
        };
        Some((count, calls))
    });
    Backend {
        calls: calls.collect(),
        bytes_per_mapping: many.bytes_per_mapping(),
    }
}

fn throughput(rates: &Rates) -> BTreeMap<&'static str, BTreeMap<usize, Throughput>> {
    let of = |ground: Ground, threads: usize| {
        let rates_of = |threads| rates.get(&(ground, threads)).map_or(&[][..], Vec::as_slice);
        let (all, one) = (rates_of(threads), rates_of(1));
        let gains = all.iter().zip(one).map(|(all, one)| all / one);
        let gains: Vec<f64> = gains.filter(|gain| gain.is_finite()).collect();
        Some((
            threads,
            Throughput {
                calls_per_s: median(all)?,
                gain: median(&gains),
                n: all.len() as u64,
            },
        ))
    };
    let by_threads = |ground| {
        THREADS
            .into_iter()
            .filter_map(|threads| of(ground, threads))
            .collect()
    };
    Ground::ALL
        .into_iter()
        .map(|ground| (ground.name(), by_threads(ground)))
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::report::KvmFacts;

    fn quantiles(p50: f64) -> Option<Quantiles> {
        Some(Quantiles {
            p50,
            p99: p50 * 2.0,
            max: p50 * 9.0,
            n: 10,
        })
    }

    fn calls(p50: f64) -> Calls {
        Calls {
            map_us: quantiles(p50),
            unmap_us: quantiles(p50 / 2.0),
            lookup_us: quantiles(p50 / 90.0),
        }
    }

    fn rates(gains: [(Ground, f64); 4]) -> Rates {
        let mut rates = Rates::new();
        for (ground, gain) in gains {
            rates.insert((ground, 1), vec![1000.0, 2000.0, 900.0]);
            rates.insert(
                (ground, 2),
                vec![1000.0 * gain, 2000.0 * gain, 900.0 * gain],
            );
        }
        rates
    }

    /// 30 000 mappings make a map 1.5 times as long; two threads gain nothing under `mmap_lock`.
    pub(in crate::scale) fn report() -> Report {
        let host = Host {
            cpus: 2,
            ..Host::read(KvmFacts {
                module: "kvm_amd".into(),
                tdp_mmu: Some(true),
                zap: "the calling task".into(),
                slot_zap_all_quirk: true,
                nr_memslots: 32764,
            })
        };
        let options = Options {
            rounds: 3,
            quick: false,
        };
        let fixed = Backend {
            calls: BTreeMap::from([
                (10, calls(20.0)),
                (1_000, calls(22.0)),
                (30_000, calls(30.0)),
            ]),
            bytes_per_mapping: Some(171.5),
        };
        let threads = throughput(&rates([
            (Ground::OneWindow, 0.6),
            (Ground::OwnWindows, 0.95),
            (Ground::Bare, 1.0),
            (Ground::NoLock, 1.9),
        ]));
        let mut report = Report {
            limits: limits(&threads, host.cpus),
            host,
            settings: Settings {
                rounds: options.rounds,
                quick: options.quick,
                counts: COUNTS.to_vec(),
                mapping_bytes: 4096,
            },
            backends: BTreeMap::from([("fixed", fixed), ("plain", Backend::default())]),
            refused: None,
            threads,
            aims: Vec::new(),
            complete: true,
        };
        report.aims = report.judge();
        report
    }

    #[test]
    fn gains_are_compared_within_rounds() {
        let report = report();
        let two = report.threads["own-windows"][&2];
        assert_eq!((two.calls_per_s, two.n), (950.0, 3));
        assert!((two.gain.unwrap() - 0.95).abs() < 0.001);
        assert!(!report.threads["own-windows"].contains_key(&4));
    }

    #[test]
    fn aims_compare_the_largest_count_with_the_smallest() {
        let aims = report().aims;
        let found: Vec<_> = aims
            .iter()
            .map(|aim| (aim.measured.unwrap(), aim.met))
            .collect();
        assert!((found[0].0 - 1.5).abs() < 0.01, "{found:?}");
        assert!(found.iter().all(|(_, met)| *met == Some(true)), "{found:?}");
        let mut without = report();
        without.backends.clear();
        assert!(without.judge().iter().all(|aim| aim.met.is_none()));
    }

    #[test]
    fn json_has_the_contract_keys() {
        let json: serde_json::Value = serde_json::from_str(&report().json().unwrap()).unwrap();
        let calls = &json["backends"]["fixed"]["calls"]["30000"];
        assert_eq!(calls["map_us"]["p50"], 30.0);
        assert_eq!(calls["lookup_us"]["n"], 10);
        assert!(json["backends"]["plain"]["bytes_per_mapping"].is_null());
        assert_eq!(json["threads"]["bare"]["2"]["n"], 3);
        assert!(json["refused"].is_null());
    }
}
