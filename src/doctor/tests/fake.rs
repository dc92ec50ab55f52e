//! Owns fake hosts: a tree of files with KVM's answers filled in, and what
//! must hold for each examination. Never asks the host the tests run on.

use std::fs;

use serde_json::Value;
use tempfile::TempDir;
use vm_remap::host::Host;

use crate::doctor::kvm::{KvmFacts, KvmState};
use crate::doctor::probe::Probe;
use crate::doctor::probe::device::Node;
use crate::doctor::{Examination, Finding, Status, Style, examine};

pub(super) const SYNC: &str = "0 T kvm_tdp_mmu_zap_invalidated_roots\t[kvm]\n";
pub(super) const WORKER: &str = "0 T kvm_tdp_mmu_zap_invalidated_roots\t[kvm]\n\
                      0 t tdp_mmu_zap_root_work\t[kvm]\n";
/// What Linux 6.1 answers.
pub(super) const FACTS_6_1: KvmFacts = KvmFacts {
    api_version: 12,
    vm_error: None,
    user_memory: 1,
    sync_mmu: 1,
    memslots: 32764,
    quirks: 0x7f,
    memory_fault_info: 0,
    pre_fault_memory: 0,
};
/// What Linux 6.12 answers.
pub(super) const FACTS_6_12: KvmFacts = KvmFacts {
    quirks: 0x7ff,
    memory_fault_info: 1,
    pre_fault_memory: 1,
    ..FACTS_6_1
};

/// A host with a TDP MMU and nothing to complain about.
pub(super) struct FakeHost {
    dir: TempDir,
}

impl FakeHost {
    pub(super) fn new(symbols: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let host = Self { dir };
        let thp = "sys/kernel/mm/transparent_hugepage";
        let pool = "sys/kernel/mm/hugepages/hugepages-2048kB";
        for (path, text) in [
            ("proc/sys/kernel/osrelease", "6.12.1\n"),
            ("proc/kallsyms", symbols),
            ("proc/cpuinfo", "processor : 0\nflags : fpu svm\n"),
            ("proc/sys/vm/max_map_count", "65530\n"),
            ("proc/sys/vm/unprivileged_userfaultfd", "1\n"),
            ("proc/self/maps", "one\ntwo\nthree\nfour\n"),
            (
                "proc/self/status",
                "Uid: 7 1000 7 7\nGid: 7 100 7 7\nGroups: 27\n",
            ),
            (
                "proc/self/limits",
                "Max open files  65536  65536 files\nMax locked memory unlimited unlimited bytes\n",
            ),
            ("proc/self/cgroup", "0::/vm.slice/one\n"),
            ("etc/group", "root:x:0:\nkvm:x:104:\n"),
            ("sys/module/kvm/parameters/tdp_mmu", "Y\n"),
            ("sys/module/kvm_amd/parameters/npt", "1\n"),
            ("sys/module/kvm_amd/initstate", "live\n"),
        ] {
            host.put(path, text);
        }
        host.put(&format!("{thp}/enabled"), "always [madvise] never\n");
        host.put(&format!("{thp}/shmem_enabled"), "always [advise] never\n");
        host.put(&format!("{pool}/nr_hugepages"), "8\n");
        host.put(&format!("{pool}/free_hugepages"), "5\n");
        host.put(&format!("{pool}/resv_hugepages"), "2\n");
        host
    }

    pub(super) fn put(&self, path: &str, text: &str) {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(super) fn remove(&self, path: &str) {
        let path = self.dir.path().join(path);
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap();
        } else {
            fs::remove_file(path).unwrap();
        }
    }

    fn probe(&self) -> Probe {
        Probe::read(&Host::below(self.dir.path()))
    }

    pub(super) fn with(&self, facts: KvmFacts) -> Examination {
        let mut probe = self.probe();
        probe.kvm = KvmState::Open(facts);
        Examination::of(&probe)
    }

    pub(super) fn refused(&self, errno: i32, mode: u32, gid: u32) -> Examination {
        let mut probe = self.probe();
        probe.kvm = KvmState::Closed(errno);
        probe.node = Some(Node {
            is_device: true,
            mode,
            uid: 0,
            gid,
            group: (gid == 104).then(|| "kvm".into()),
        });
        Examination::of(&probe)
    }

    pub(super) fn examine(&self) -> Examination {
        examine(self.dir.path())
    }
}

#[track_caller]
pub(super) fn found<'e>(examination: &'e Examination, id: &str) -> &'e Finding {
    examination
        .finding(id)
        .unwrap_or_else(|| panic!("no finding {id}"))
}

/// What holds for each examination, whatever the host.
#[track_caller]
pub(super) fn check(examination: &Examination) {
    for finding in &examination.findings {
        let id = &finding.id;
        assert!(!finding.value.is_empty(), "{id} has no value");
        assert!(finding.meaning.ends_with('.'), "{id} has no meaning");
        let kebab = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        assert!(id.chars().all(kebab), "{id} is not kebab-case");
        if finding.status >= Status::Warning {
            assert!(!finding.action.is_empty(), "{id} leaves its reader alone");
        }
        if finding.status == Status::Ok {
            assert!(finding.action.is_empty(), "{id} asks for work in vain");
        }
        let same = examination.findings.iter().filter(|other| other.id == *id);
        assert_eq!(same.count(), 1, "{id} is there twice");
    }
    let json: Value = serde_json::from_str(&examination.to_json().unwrap()).unwrap();
    let findings = json["findings"].as_array().unwrap();
    assert_eq!(findings.len(), examination.findings.len());
    let worst = match json["verdict"].as_str().unwrap() {
        "usable" => 0,
        "warnings" => 1,
        "unusable" => 2,
        other => panic!("verdict {other}"),
    };
    assert_eq!(worst, examination.verdict.exit_code());
    for width in [80, 100, 119, 120, 160, 200] {
        check_table(examination, width);
    }
}

/// Lines keep to the width, and columns begin where their headings do.
#[track_caller]
fn check_table(examination: &Examination, width: u16) {
    let colour = false;
    let table = examination.to_table(Style { width, colour });
    for line in table.lines() {
        assert!(
            line.chars().count() <= usize::from(width),
            "{width}: {line}"
        );
    }
    let header = table.lines().find(|line| line.contains("status")).unwrap();
    let column = header.find("check").unwrap();
    for finding in &examination.findings {
        let row = table
            .lines()
            .find(|line| {
                line.get(column..)
                    .is_some_and(|l| l.starts_with(&finding.id))
            })
            .unwrap_or_else(|| panic!("{width}: no row for {}", finding.id));
        assert_eq!(row[..column].trim(), finding.status.word());
        for path in finding.action.split(' ').filter(|w| w.starts_with("/sys")) {
            let path = path.trim_end_matches(';');
            assert!(table.contains(path), "{width}: {path} is cut in two");
        }
    }
}
