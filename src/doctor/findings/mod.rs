//! Owns the judgement: facts in, findings out. Never reads a file, never
//! asks the kernel, never prints.

mod device;
mod limits;
mod memory;
mod slots;

use serde::Serialize;

use super::kvm::KvmState;
use super::probe::Probe;

/// How a finding bears on the use of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Worth knowing; nothing is wrong.
    Note,
    /// Works, and costs something that can be mended.
    Warning,
    /// Windows do not work here.
    Bad,
}

impl Status {
    /// The word that stands for it in tables and in JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Bad => "bad",
        }
    }
}

/// One thing found on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// A stable name, in kebab-case.
    pub id: String,
    /// What is there.
    pub value: String,
    /// How that bears on the use of this host.
    pub status: Status,
    /// Why it matters.
    pub meaning: String,
    /// What to do; empty where there is nothing to do.
    pub action: String,
}

/// A finding that lacks its judgement.
#[derive(Debug)]
struct About {
    id: String,
    value: String,
}

fn about(id: impl Into<String>, value: impl Into<String>) -> About {
    let (id, value) = (id.into(), value.into());
    About { id, value }
}

impl About {
    fn judged(self, status: Status, meaning: &str, action: &str) -> Finding {
        Finding {
            id: self.id,
            value: self.value,
            status,
            meaning: meaning.to_owned(),
            action: action.to_owned(),
        }
    }

    fn ok(self, meaning: &str) -> Finding {
        self.judged(Status::Ok, meaning, "")
    }

    fn note(self, meaning: &str, action: &str) -> Finding {
        self.judged(Status::Note, meaning, action)
    }

    fn warning(self, meaning: &str, action: &str) -> Finding {
        self.judged(Status::Warning, meaning, action)
    }

    fn bad(self, meaning: &str, action: &str) -> Finding {
        self.judged(Status::Bad, meaning, action)
    }
}

/// Judges everything, in the order a reader wants it: may KVM be used, what
/// does it do with memslots, how much memory and how fast, what bounds it.
pub(super) fn judge(probe: &Probe) -> Vec<Finding> {
    let mut findings = vec![kernel(probe), device::file(probe), device::module(probe)];
    if let KvmState::Open(facts) = &probe.kvm {
        findings.extend(device::interface(facts));
        // A device that is not KVM's has no capabilities to judge.
        if device::speaks_kvm(facts) {
            findings.extend(slots::capabilities(facts));
        }
    }
    findings.push(slots::tdp_mmu(probe));
    findings.push(slots::who_zaps(&probe.zap));
    findings.push(memory::map_count(probe.map_count));
    findings.push(memory::thp(probe.thp.as_deref()));
    findings.push(memory::thp_shmem(probe.thp_shmem.as_deref()));
    findings.extend(memory::hugetlb(&probe.pools));
    findings.push(limits::open_files(probe.open_files));
    findings.push(limits::locked_memory(
        probe.locked_memory,
        probe.passthrough,
    ));
    findings.push(limits::userfaultfd(probe.userfaultfd, probe.user.may_trace));
    findings.push(limits::cgroup_memory(probe.cgroup_limit));
    findings
}

fn kernel(probe: &Probe) -> Finding {
    let meaning = "For the record. Fixes are backported, so the findings below look at what the \
                   kernel has and not at this number.";
    match &probe.kernel {
        Some(release) => about("kernel", release).ok(meaning),
        None => about("kernel", "unknown")
            .note(meaning, "Mount /proc; without it little can be found out."),
    }
}
