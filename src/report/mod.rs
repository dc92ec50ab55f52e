//! Owns the result of `vm-remap bench` and the ways to show it: JSON for
//! programs, a text table, one HTML page, one picture. Never measures.
//!
//! Every figure is an `Option` because a run can be interrupted at any time:
//! `None` (JSON `null`) means "not measured", never zero. The JSON keys are a
//! public contract.

mod aim;
mod canvas;
mod charts;
mod host;
mod html;
pub(crate) mod lines;
pub(crate) mod page;
mod picture;
mod quantiles;
mod rival;
mod rows;
#[cfg(test)]
mod sample;
mod text;
pub(crate) mod units;
pub(crate) mod wakeups;

use anyhow::Context as _;
use serde::ser::SerializeStruct as _;
use serde::{Serialize, Serializer};

pub use aim::{Aim, Bound};
pub use host::{Host, KvmFacts};
pub use html::html;
pub use picture::svg;
pub use quantiles::Quantiles;
pub use rival::{Backends, Fixed, Latencies, Rival};
pub use text::text;

/// All that one run of the bench found out.
///
/// In JSON the judged [aims](Report::aims) are part of it, as `aims`.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Where it was measured.
    pub host: Host,
    /// What was asked for.
    pub settings: Settings,
    /// The rivals, side by side.
    pub backends: Backends,
    /// False when the run was interrupted before its last round.
    pub complete: bool,
}

/// What the bench was asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Settings {
    /// Size of the blob that is mapped and unmapped, in bytes.
    pub blob_bytes: u64,
    /// Map + unmap pairs asked for per second.
    pub rate_per_s: u32,
    /// Memory the guest walks meanwhile, in bytes.
    pub working_set_bytes: u64,
    /// Number of vCPUs that walk it.
    pub vcpus: u32,
    /// How long each rival churned, over all rounds, in seconds.
    pub duration_s: f64,
    /// Rounds in which the rivals took turns.
    pub rounds: u32,
    /// True for a short run: good for a first look, too short to judge by.
    pub quick: bool,
}

impl Report {
    /// The project's aims, judged by this report.
    #[must_use]
    pub fn aims(&self) -> Vec<Aim> {
        aim::judge(&self.backends)
    }

    /// The report as indented JSON, for programs.
    ///
    /// # Errors
    /// When the serializer refuses a value, which no value of these types
    /// should cause.
    pub fn json(&self) -> anyhow::Result<String> {
        serde_json::to_string_pretty(self).context("cannot write the report as JSON")
    }
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut report = serializer.serialize_struct("Report", 5)?;
        report.serialize_field("host", &self.host)?;
        report.serialize_field("settings", &self.settings)?;
        report.serialize_field("backends", &self.backends)?;
        report.serialize_field("aims", &self.aims())?;
        report.serialize_field("complete", &self.complete)?;
        report.end()
    }
}

#[cfg(test)]
mod tests {
    use super::sample;
    use serde_json::Value;

    fn json(report: &super::Report) -> Value {
        serde_json::from_str(&report.json().unwrap()).unwrap()
    }

    fn keys(value: &Value) -> Vec<&str> {
        let mut keys: Vec<&str> = value
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        keys.sort_unstable();
        keys
    }

    const RIVAL: [&str; 9] = [
        "collateral_faults_per_op",
        "gap_exits",
        "gap_replaces",
        "gap_stale_reads",
        "map_us",
        "replace_us",
        "slot_calls_per_op",
        "unmap_us",
        "work_kept",
    ];

    #[test]
    fn json_top_level_has_the_contract_keys() {
        let value = json(&sample::report());
        assert_eq!(
            keys(&value),
            ["aims", "backends", "complete", "host", "settings"]
        );
        assert_eq!(
            keys(&value["backends"]),
            ["bare", "fixed", "memslot", "memslot-precise", "plain"]
        );
        assert_eq!(value["complete"], true);
    }

    #[test]
    fn json_host_and_settings_have_the_contract_keys() {
        let value = json(&sample::report());
        assert_eq!(
            keys(&value["host"]),
            [
                "cpus",
                "kernel",
                "kvm_module",
                "machine",
                "memory_bytes",
                "nr_memslots",
                "page_sizes",
                "slot_zap_all_quirk",
                "tdp_mmu",
                "zap"
            ]
        );
        assert_eq!(
            keys(&value["settings"]),
            [
                "blob_bytes",
                "duration_s",
                "quick",
                "rate_per_s",
                "rounds",
                "vcpus",
                "working_set_bytes"
            ]
        );
    }

    #[test]
    fn json_rivals_have_the_contract_keys() {
        let value = json(&sample::report());
        for name in ["memslot", "memslot-precise", "plain"] {
            assert_eq!(keys(&value["backends"][name]), RIVAL, "{name}");
        }
        let mut fixed = RIVAL.to_vec();
        fixed.push("peer");
        fixed.sort_unstable();
        assert_eq!(keys(&value["backends"]["fixed"]), fixed);
        let latencies = ["map_us", "replace_us", "unmap_us"];
        assert_eq!(keys(&value["backends"]["fixed"]["peer"]), latencies);
        assert_eq!(
            keys(&value["backends"]["plain"]["map_us"]),
            ["max", "n", "p50", "p99"]
        );
    }

    #[test]
    fn json_bare_has_the_latencies_and_nothing_else() {
        let value = json(&sample::report());
        assert_eq!(
            keys(&value["backends"]["bare"]),
            ["map_us", "replace_us", "unmap_us"]
        );
    }

    #[test]
    fn json_precise_rival_is_null_where_the_host_lacks_it() {
        let mut report = sample::report();
        report.backends.memslot_precise = None;
        let value = json(&report);
        assert!(value["backends"]["memslot-precise"].is_null());
        assert_eq!(keys(&value["backends"]).len(), 5);
    }

    #[test]
    fn json_of_an_interrupted_run_has_nulls_and_every_key() {
        let value = json(&sample::interrupted());
        assert_eq!(value["complete"], false);
        assert_eq!(keys(&value["backends"]["fixed"]).len(), RIVAL.len() + 1);
        assert!(value["backends"]["fixed"]["map_us"].is_null());
        assert!(value["backends"]["fixed"]["gap_exits"].is_null());
        assert!(value["backends"]["fixed"]["peer"]["unmap_us"].is_null());
        assert!(value["backends"]["bare"]["map_us"].is_null());
    }

    #[test]
    fn json_aims_carry_name_measured_aim_and_met() {
        let value = json(&sample::interrupted());
        for aim in value["aims"].as_array().unwrap() {
            assert_eq!(keys(aim), ["aim", "measured", "met", "name"]);
            assert!(aim["met"].is_null() && aim["measured"].is_null(), "{aim}");
        }
        let value = json(&sample::report());
        assert_eq!(value["aims"][0]["met"], true);
        assert_eq!(value["aims"][0]["aim"]["at_least"], 0.98);
    }
}
