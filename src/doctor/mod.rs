//! Owns `vm-remap doctor`'s face: what this host does when memslots go, and
//! whether windows work here. Never changes the host, never prints.
//!
//! One examination reads a host ([`examine`]), judges what it read, and is
//! rendered as a table for people ([`Examination::to_table`]) or as JSON for
//! programs ([`Examination::to_json`]).

mod findings;
mod kvm;
mod probe;
mod render;

use std::path::Path;

use serde::Serialize;
use vm_remap::host::{Host, ZapReport};

pub use self::findings::{Finding, Status};
pub use self::render::Style;

use self::probe::Probe;

/// Whether windows can be used on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// They can.
    Usable,
    /// They can, and something should be mended.
    Warnings,
    /// They can not.
    Unusable,
}

impl Verdict {
    fn of(findings: &[Finding]) -> Self {
        match findings.iter().map(|finding| finding.status).max() {
            Some(Status::Bad) => Self::Unusable,
            Some(Status::Warning) => Self::Warnings,
            Some(Status::Note | Status::Ok) | None => Self::Usable,
        }
    }

    /// The command's exit code: 0, 1 or 2.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Usable => 0,
            Self::Warnings => 1,
            Self::Unusable => 2,
        }
    }

    /// The verdict in words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Usable => "usable",
            Self::Warnings => "usable, with warnings",
            Self::Unusable => "not usable",
        }
    }
}

/// What was found on one host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Examination {
    /// Whether windows can be used.
    pub verdict: Verdict,
    /// Who tears down a VM's roots when a memslot goes.
    pub zap: ZapReport,
    /// Everything found, in reading order.
    pub findings: Vec<Finding>,
}

/// Examines the host whose `proc`, `sys` and `dev` stand in `root`: `/` for
/// this one.
///
/// Opens KVM's device and creates one empty VM, which it drops.
#[must_use]
pub fn examine(root: &Path) -> Examination {
    Examination::of(&Probe::read(&Host::below(root)))
}

/// The KVM modules of this host that drive a kind of CPU, loaded or built in.
#[must_use]
pub fn kvm_modules(host: &Host) -> Vec<String> {
    let vendors = probe::device::Module::vendors(host);
    vendors.into_iter().map(|module| module.name).collect()
}

impl Examination {
    fn of(probe: &Probe) -> Self {
        let findings = findings::judge(probe);
        Self {
            verdict: Verdict::of(&findings),
            zap: probe.zap.clone(),
            findings,
        }
    }

    /// The finding with this name.
    #[must_use]
    pub fn finding(&self, id: &str) -> Option<&Finding> {
        self.findings.iter().find(|finding| finding.id == id)
    }

    /// The examination for people; ends in a line break.
    #[must_use]
    pub fn to_table(&self, style: Style) -> String {
        render::table(self, style)
    }

    /// The examination for programs: one object with `verdict`, `zap` and
    /// `findings`.
    ///
    /// # Errors
    ///
    /// None that a host can cause; the serialiser's type demands one.
    pub fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self)
    }
}

#[cfg(test)]
mod tests;
