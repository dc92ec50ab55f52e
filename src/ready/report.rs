//! Owns the result of `vm-remap bench --ready`: the samples, and the figures that stand for them.
//! Never measures.
//!
//! Every figure is an `Option`: `None` (JSON `null`) means "not measured", never zero. The JSON
//! keys are a public contract.

use std::collections::BTreeMap;

use anyhow::Context as _;
use serde::Serialize;
use vm_remap::Prefault;

use super::blob::Kind;
use super::rival::{Role, Sample};
use super::{Options, SIZES};
use crate::guest::Touch;
use crate::report::{Aim, Bound, Host, Quantiles};

/// The size of the blobs that the aims are judged by.
const JUDGED: u64 = 2 << 20;

/// All that one run found out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Where it was measured.
    pub host: Host,
    /// What was asked for.
    pub settings: Settings,
    /// By rival, kind of memory and size of the blob in bytes. A rival, or a kind, that this host
    /// does not offer is `null`.
    pub backends: BTreeMap<&'static str, Option<Kinds>>,
    /// The project's aims, judged by this report.
    pub aims: Vec<Aim>,
    /// False when the run was interrupted before its last round.
    pub complete: bool,
}

/// The figures of a rival, by kind of memory.
pub type Kinds = BTreeMap<&'static str, Option<BTreeMap<u64, Touches>>>;

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// Rounds in which the rivals took turns.
    pub rounds: u32,
    /// True for a short run: good for a first look, too short to judge by.
    pub quick: bool,
    /// Sizes of the blobs, in bytes.
    pub blob_bytes: Vec<u64>,
}

/// A blob whose pages the guest reads, and one whose pages it writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Touches {
    /// One load in each page.
    pub read: Cell,
    /// One store in each page.
    pub write: Cell,
}

/// The figures of one rival for one blob and one kind of touch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Cell {
    /// From the call to `map` until the guest has touched every page.
    pub ready_us: Option<Quantiles>,
    /// The guest's second touch of every page: the floor.
    pub warm_us: Option<Quantiles>,
    /// Guest faults from the call to the last touch (KVM's `pf_taken`), the median.
    pub faults: Option<u64>,
}

/// What a sample is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) role: Role,
    pub(super) kind: Kind,
    pub(super) len: u64,
    pub(super) touch: Touch,
}

/// All samples so far.
#[derive(Debug, Default)]
pub(super) struct Tally(Vec<(Key, Vec<Sample>)>);

impl Tally {
    pub(super) fn add(&mut self, key: Key, sample: Sample) {
        match self.0.iter_mut().find(|(known, _)| *known == key) {
            Some((_, samples)) => samples.push(sample),
            None => self.0.push((key, vec![sample])),
        }
    }

    fn cell(&self, key: Key) -> Cell {
        let found = self.0.iter().find(|(known, _)| *known == key);
        let samples = found.map_or(&[][..], |(_, samples)| samples.as_slice());
        let mut faults: Vec<u64> = samples.iter().filter_map(|sample| sample.faults).collect();
        faults.sort_unstable();
        Cell {
            ready_us: Quantiles::of_times(samples.iter().map(|sample| sample.ready)),
            warm_us: Quantiles::of_times(samples.iter().map(|sample| sample.warm)),
            faults: faults.get(faults.len() / 2).copied(),
        }
    }
}

impl Report {
    pub(super) fn new(
        host: Host,
        options: Options,
        tally: &Tally,
        offers: impl Fn(Role) -> bool,
        complete: bool,
    ) -> Self {
        let kinds = |role| -> Kinds {
            let of = |kind: Kind| {
                let measured = |&(len, _): &(u64, u32)| {
                    let cell = |touch| {
                        tally.cell(Key {
                            role,
                            kind,
                            len,
                            touch,
                        })
                    };
                    let touches = Touches {
                        read: cell(Touch::Read),
                        write: cell(Touch::Write),
                    };
                    (touches != Touches::default()).then_some((len, touches))
                };
                let sizes: BTreeMap<u64, Touches> = SIZES.iter().filter_map(measured).collect();
                (kind.name(), (!sizes.is_empty()).then_some(sizes))
            };
            Kind::ALL.into_iter().map(of).collect()
        };
        let backends = Role::ALL
            .into_iter()
            .map(|role| (role.name(), offers(role).then(|| kinds(role))))
            .collect();
        let settings = Settings {
            rounds: options.rounds,
            quick: options.quick,
            blob_bytes: options.sizes().iter().map(|(len, _)| *len).collect(),
        };
        let mut report = Self {
            host,
            settings,
            backends,
            aims: Vec::new(),
            complete,
        };
        report.aims = report.judge();
        report
    }

    /// The figures of one rival for one kind and size; `None` where there are none.
    pub(super) fn touches(&self, role: Role, kind: Kind, len: u64) -> Option<&Touches> {
        let kinds = self.backends.get(role.name())?.as_ref()?;
        kinds.get(kind.name())?.as_ref()?.get(&len)
    }

    fn judge(&self) -> Vec<Aim> {
        let best = |kind, floor: &dyn Fn(Role, Touch) -> Option<f64>| {
            let ways = [
                Prefault::None,
                Prefault::HostRead,
                Prefault::HostWrite,
                Prefault::Guest,
            ];
            let worse_touch = |way| {
                let role = Role::Fixed(way);
                let times = |touch| Some(self.ready(role, kind, touch)? / floor(role, touch)?);
                Some(times(Touch::Read)?.max(times(Touch::Write)?))
            };
            ways.into_iter()
                .filter_map(worse_touch)
                .min_by(f64::total_cmp)
        };
        let plain = |kind| best(kind, &|_, touch| self.ready(Role::Plain, kind, touch));
        let warm = |kind| best(kind, &|role, touch| self.warm(role, kind, touch));
        vec![
            Aim::judged(
                "2 MiB of 4 KiB pages that are there, fixed's best way (times plain)",
                Bound::AtMost(0.5),
                plain(Kind::Warm),
            ),
            Aim::judged(
                "2 MiB of 4 KiB pages that are not there yet, fixed's best way (times plain)",
                Bound::AtMost(0.5),
                plain(Kind::Cold),
            ),
            Aim::judged(
                "a memfd's 2 MiB page, fixed's best way (times its warm walk)",
                Bound::AtMost(1.3),
                warm(Kind::ShmemHuge),
            ),
            Aim::judged(
                "a hugetlb page of 2 MiB, fixed's best way (times its warm walk)",
                Bound::AtMost(1.3),
                warm(Kind::Hugetlb),
            ),
        ]
    }

    fn cell(&self, role: Role, kind: Kind, touch: Touch) -> Option<&Cell> {
        let touches = self.touches(role, kind, JUDGED)?;
        Some(match touch {
            Touch::Read => &touches.read,
            Touch::Write => &touches.write,
        })
    }

    fn ready(&self, role: Role, kind: Kind, touch: Touch) -> Option<f64> {
        Some(self.cell(role, kind, touch)?.ready_us?.p50)
    }

    fn warm(&self, role: Role, kind: Kind, touch: Touch) -> Option<f64> {
        let warm = self.cell(role, kind, touch)?.warm_us?.p50;
        (warm > 0.0).then_some(warm)
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

    fn sample(ready: u64, warm: u64) -> Sample {
        Sample {
            ready: Duration::from_micros(ready),
            warm: Duration::from_micros(warm),
            faults: Some(512),
        }
    }

    /// `fixed` takes 40 µs where `plain` takes 100, and the walk takes 30.
    pub(in crate::ready) fn report(complete: bool) -> Report {
        let host = Host::read(KvmFacts {
            module: "kvm_amd".into(),
            tdp_mmu: Some(true),
            zap: "the calling task".into(),
            slot_zap_all_quirk: true,
            nr_memslots: 32764,
        });
        let mut tally = Tally::default();
        for (role, ready) in [(Role::Plain, 100), (Role::Fixed(Prefault::HostRead), 40)] {
            for kind in [Kind::Warm, Kind::ShmemHuge] {
                for touch in [Touch::Read, Touch::Write] {
                    let key = Key {
                        role,
                        kind,
                        len: JUDGED,
                        touch,
                    };
                    tally.add(key, sample(ready, 30));
                }
            }
        }
        let options = Options {
            rounds: 1,
            quick: true,
        };
        let offers = |role| role != Role::Fixed(Prefault::Guest);
        Report::new(host, options, &tally, offers, complete)
    }

    #[test]
    fn aims_take_the_best_way_and_the_worse_touch() {
        let aims = report(true).aims;
        let of = |index: usize| (aims[index].measured, aims[index].met);
        let near = |found: Option<f64>, wanted: f64| {
            assert!(
                found.is_some_and(|found| (found - wanted).abs() < 0.01),
                "{found:?}"
            );
        };
        near(of(0).0, 0.4);
        assert_eq!(of(0).1, Some(true));
        assert_eq!(of(1), (None, None));
        near(of(2).0, 1.333);
        assert_eq!(of(2).1, Some(false));
        assert_eq!(of(3), (None, None));
    }

    #[test]
    fn json_has_a_place_for_every_rival_and_kind() {
        let json: serde_json::Value = serde_json::from_str(&report(true).json().unwrap()).unwrap();
        let backends = json["backends"].as_object().unwrap();
        assert_eq!(backends.len(), 6);
        assert!(backends["fixed-guest"].is_null());
        assert_eq!(backends["plain"].as_object().unwrap().len(), 4);
        assert!(backends["plain"]["hugetlb-2m"].is_null());
        let cell = &backends["plain"]["memfd-warm"]["2097152"]["read"];
        assert_eq!(
            (cell["faults"].as_u64(), cell["ready_us"]["n"].as_u64()),
            (Some(512), Some(1))
        );
        assert!((cell["ready_us"]["p50"].as_f64().unwrap() - 100.0).abs() < 0.1);
    }
}
