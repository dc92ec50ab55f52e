//! Owns the result of `vm-remap bench --batch`: the samples, and the figures that stand for them.
//! Never measures.
//!
//! Every figure is an `Option`: `None` (JSON `null`) means "not measured", never zero. The JSON
//! keys are a public contract.

use std::collections::BTreeMap;

use anyhow::Context as _;
use serde::Serialize;

use super::files::Files;
use super::stage::{Sample, Took};
use super::{EACH, Options, SIZES};
use crate::report::{Aim, Bound, Host, Quantiles};

/// How many changes the aims are judged by.
const JUDGED: u64 = 256;

/// All that one run found out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Where it was measured.
    pub host: Host,
    /// What was asked for.
    pub settings: Settings,
    /// By what the changes put in place, and by how many of them there are.
    pub files: BTreeMap<&'static str, Sizes>,
    /// The project's aims, judged by this report.
    pub aims: Vec<Aim>,
    /// False when the run was interrupted before its last round.
    pub complete: bool,
}

/// The figures by the number of changes.
pub type Sizes = BTreeMap<u64, Operations>;

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// Rounds in which the two ways took turns.
    pub rounds: u32,
    /// True for a short run: good for a first look, too short to judge by.
    pub quick: bool,
    /// What one change covers, in bytes; they lie side by side.
    pub change_bytes: u64,
}

/// The three operations, each on pages that the guest has touched, but for maps into holes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Operations {
    /// Holes become mappings.
    pub map: Cell,
    /// All of them are replaced.
    pub replace: Cell,
    /// All of them become holes.
    pub unmap: Cell,
}

/// The same changes in the two ways.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Cell {
    /// One call each.
    pub single: Way,
    /// One batch of them all.
    pub batch: Way,
    /// Median CPU time of the batch, divided by that of the single calls.
    pub share: Option<f64>,
}

/// The figures of one way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Way {
    /// Time for all of the changes. On a busy host the longer of two also waits longer for a CPU.
    pub all_us: Option<Quantiles>,
    /// CPU time of the calling thread for all of them: what they take where nobody is in the way.
    pub cpu_us: Option<Quantiles>,
    /// TLB flushes that KVM was asked for (`remote_tlb_flush_requests`), the median.
    pub flushes: Option<u64>,
}

/// What a sample is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) files: Files,
    pub(super) count: u64,
    pub(super) batch: bool,
}

/// All samples so far.
#[derive(Debug, Default)]
pub(super) struct Tally(BTreeMap<Key, Vec<Sample>>);

impl Tally {
    pub(super) fn add(&mut self, key: Key, sample: Sample) {
        self.0.entry(key).or_default().push(sample);
    }

    fn way(&self, key: Key, of: fn(&Sample) -> Took) -> Way {
        let samples = self.0.get(&key).map_or(&[][..], Vec::as_slice);
        let mut flushes: Vec<u64> = samples.iter().filter_map(|one| of(one).flushes).collect();
        flushes.sort_unstable();
        Way {
            all_us: Quantiles::of_times(samples.iter().map(|one| of(one).time)),
            cpu_us: Quantiles::of_times(samples.iter().map(|one| of(one).cpu)),
            flushes: flushes.get(flushes.len() / 2).copied(),
        }
    }

    fn cell(&self, files: Files, count: u64, of: fn(&Sample) -> Took) -> Cell {
        let way = |batch| {
            let key = Key {
                files,
                count,
                batch,
            };
            self.way(key, of)
        };
        let (single, batch) = (way(false), way(true));
        let medians = single.cpu_us.zip(batch.cpu_us);
        let share = medians.filter(|(single, _)| single.p50 > 0.0);
        Cell {
            single,
            batch,
            share: share.map(|(single, batch)| batch.p50 / single.p50),
        }
    }
}

impl Report {
    pub(super) fn new(host: Host, options: Options, tally: &Tally, complete: bool) -> Self {
        let operations = |files, count| Operations {
            map: tally.cell(files, count, |[map, ..]| *map),
            replace: tally.cell(files, count, |[_, replace, _]| *replace),
            unmap: tally.cell(files, count, |[.., unmap]| *unmap),
        };
        let sizes = |files: Files| -> Sizes {
            let counts = SIZES.iter().map(|(count, _)| *count);
            counts
                .map(|count| (count, operations(files, count)))
                .collect()
        };
        let files = Files::ALL.map(|files| (files.name(), sizes(files)));
        let mut report = Self {
            host,
            settings: Settings {
                rounds: options.rounds,
                quick: options.quick,
                change_bytes: EACH,
            },
            files: files.into_iter().collect(),
            aims: Vec::new(),
            complete,
        };
        report.aims = report.judge();
        report
    }

    pub(super) fn operations(&self, files: Files, count: u64) -> Option<&Operations> {
        self.files.get(files.name())?.get(&count)
    }

    fn judge(&self) -> Vec<Aim> {
        let of = |files| self.operations(files, JUDGED);
        let share = |cell: Option<Cell>| cell.and_then(|cell| cell.share);
        let worst = |files| {
            let all = of(files)?;
            let [map, replace, unmap] = [all.map, all.replace, all.unmap].map(|cell| cell.share);
            Some(map?.max(replace?).max(unmap?))
        };
        let unmap = share(of(Files::Many).map(|all| all.unmap));
        let flushes = of(Files::One).and_then(|all| {
            let [map, replace, unmap] =
                [all.map, all.replace, all.unmap].map(|cell| cell.batch.flushes);
            Some(map?.max(replace?).max(unmap?) as f64)
        });
        vec![
            Aim::judged(
                "256 in one file, the worst of map, replace and unmap (times single calls)",
                Bound::AtMost(0.3),
                worst(Files::One),
            ),
            Aim::judged(
                "256 in one file of a peer, the worst of the three (times single calls)",
                Bound::AtMost(0.3),
                worst(Files::OneOfAPeer),
            ),
            Aim::judged(
                "256 unmaps of as many files (times single calls)",
                Bound::AtMost(0.3),
                unmap,
            ),
            Aim::judged(
                "256 maps of as many files into holes (times single calls)",
                Bound::AtMost(0.3),
                share(of(Files::Many).map(|all| all.map)),
            ),
            Aim::judged(
                "256 replaces of as many files (times single calls)",
                Bound::AtMost(0.3),
                share(of(Files::Many).map(|all| all.replace)),
            ),
            Aim::judged(
                "flushes of a batch of 256 in one file",
                Bound::AtMost(1.0),
                flushes,
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

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::report::KvmFacts;

    /// A batch of 256 takes a fifth of the single calls, and one flush.
    pub(in crate::batch) fn report() -> Report {
        let host = Host::read(KvmFacts {
            module: "kvm_amd".into(),
            tdp_mmu: Some(true),
            zap: "the calling task".into(),
            slot_zap_all_quirk: true,
            nr_memslots: 32764,
        });
        let mut tally = Tally::default();
        for (batch, us, flushes) in [(false, 1000, 256), (true, 200, 1)] {
            let took = Took {
                time: Duration::from_micros(us),
                cpu: Duration::from_micros(us),
                flushes: Some(flushes),
            };
            let key = Key {
                files: Files::One,
                count: 256,
                batch,
            };
            tally.add(key, [took; 3]);
        }
        let options = Options {
            rounds: 1,
            quick: true,
        };
        Report::new(host, options, &tally, true)
    }

    #[test]
    fn aims_take_the_worst_operation_and_nothing_that_was_not_measured() {
        let aims = report().aims;
        assert!((aims[0].measured.unwrap() - 0.2).abs() < 0.01);
        assert_eq!(aims[0].met, Some(true));
        assert_eq!(aims[1].measured, None);
        assert_eq!(aims[5].measured, Some(1.0));
    }

    #[test]
    fn json_has_a_place_for_every_figure() {
        let json: serde_json::Value = serde_json::from_str(&report().json().unwrap()).unwrap();
        let files = json["files"].as_object().unwrap();
        assert_eq!(files.len(), 4);
        let cell = &files["one-file"]["256"]["replace"];
        assert_eq!(cell["single"]["flushes"], 256);
        assert!((cell["batch"]["cpu_us"]["p50"].as_f64().unwrap() - 200.0).abs() < 1.0);
        assert!(files["many-files"]["1"]["map"]["share"].is_null());
    }
}
