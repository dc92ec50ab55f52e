//! Owns the result of `vm-remap bench --trace`. Never measures.
//!
//! Every figure is an `Option`: `None` (JSON `null`) means "not measured", never zero. The JSON
//! keys are a public contract.

use std::collections::BTreeMap;

use anyhow::Context as _;
use serde::Serialize;

use super::Options;
use super::rival::{Rival, Role, Took};
use crate::bench::tally::median;
use crate::report::{Aim, Bound, Host, Latencies, Quantiles};
use crate::trace::Trace;

/// All that one run found out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Where it was measured.
    pub host: Host,
    /// What was replayed, and how.
    pub settings: Settings,
    /// By rival; one that this host does not offer is `null`.
    pub backends: BTreeMap<&'static str, Option<Backend>>,
    /// The project's aims, judged by this report.
    pub aims: Vec<Aim>,
    /// False when the run was interrupted before its last round.
    pub complete: bool,
}

/// What was replayed, and how.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Settings {
    /// Operations of the trace.
    pub operations: u64,
    /// When the last of them is due, in seconds.
    pub duration_s: f64,
    /// Size of the window, in bytes.
    pub window_bytes: u64,
    /// Memory the guest walked meanwhile, in bytes.
    pub working_set_bytes: u64,
    /// Number of vCPUs that walked it.
    pub vcpus: u32,
    /// How often each rival replayed the trace.
    pub rounds: u32,
    /// True for a short run, of the first second of the trace.
    pub quick: bool,
}

/// The figures of one rival.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Backend {
    /// What the caller of the operations sees.
    #[serde(flatten)]
    pub latencies: Latencies,
    /// How much later than in the trace the operations began.
    pub late_us: Option<Quantiles>,
    /// Guest work per second of vCPU-thread CPU time while the trace ran, as a share of the same
    /// undisturbed: the median of the rounds.
    pub work_kept: Option<f64>,
}

impl Backend {
    fn of(took: &Took) -> Self {
        Self {
            latencies: Latencies {
                map_us: Quantiles::of(&took.map),
                replace_us: Quantiles::of(&took.replace),
                unmap_us: Quantiles::of(&took.unmap),
            },
            late_us: Quantiles::of(&took.late),
            work_kept: median(&took.kept),
        }
    }
}

impl Report {
    pub(super) fn new(
        host: Host,
        options: &Options,
        trace: &Trace,
        rivals: &[Rival],
        complete: bool,
    ) -> Self {
        let backend = |role: Role| {
            let rival = rivals.iter().find(|rival| rival.role() == role);
            (role.name(), rival.map(|rival| Backend::of(&rival.took)))
        };
        let settings = Settings {
            operations: trace.steps.len() as u64,
            duration_s: trace.duration_us() as f64 / 1e6,
            window_bytes: trace.window,
            working_set_bytes: options.working_set,
            vcpus: u32::try_from(options.vcpus).unwrap_or(u32::MAX),
            rounds: options.rounds,
            quick: options.quick,
        };
        let mut report = Self {
            host,
            settings,
            backends: Role::ALL.into_iter().map(backend).collect(),
            aims: Vec::new(),
            complete,
        };
        report.aims = report.judge();
        report
    }

    fn judge(&self) -> Vec<Aim> {
        let fixed = self.backends.get(Role::Fixed.name()).copied().flatten();
        vec![Aim::judged(
            "guest work kept while the trace runs, fixed (share)",
            Bound::AtLeast(0.98),
            fixed.and_then(|fixed| fixed.work_kept),
        )]
    }

    /// The report as indented JSON, for programs.
    ///
    /// # Errors
    /// When the serializer refuses a value, which no value of these types should cause.
    pub fn json(&self) -> anyhow::Result<String> {
        serde_json::to_string_pretty(self).context("cannot write the report as JSON")
    }
}
