//! Owns the description of the machine a report was made on. Never opens
//! `/dev/kvm`: what KVM says is handed in.

use serde::Serialize;
use std::path::Path;

const UNKNOWN: &str = "unknown";

/// The machine, as far as it explains the figures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Host {
    /// Model name of the first CPU.
    pub machine: String,
    /// CPUs that are online.
    pub cpus: usize,
    /// Memory of the host, in bytes.
    pub memory_bytes: u64,
    /// Kernel release.
    pub kernel: String,
    /// The vendor module behind `/dev/kvm`.
    pub kvm_module: String,
    /// Whether KVM uses its TDP MMU; `None` when it does not say.
    pub tdp_mmu: Option<bool>,
    /// The base page size and those of the hugetlb pools, ascending, in bytes.
    pub page_sizes: Vec<u64>,
    /// Who zaps the page tables when a memslot is deleted, in words.
    pub zap: String,
    /// Whether `KVM_X86_QUIRK_SLOT_ZAP_ALL` can be disabled here.
    pub slot_zap_all_quirk: bool,
    /// How many memslots a VM can have.
    pub nr_memslots: u64,
}

/// The part of a [`Host`] that only KVM can tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvmFacts {
    /// See [`Host::kvm_module`].
    pub module: String,
    /// See [`Host::tdp_mmu`].
    pub tdp_mmu: Option<bool>,
    /// See [`Host::zap`].
    pub zap: String,
    /// See [`Host::slot_zap_all_quirk`].
    pub slot_zap_all_quirk: bool,
    /// See [`Host::nr_memslots`].
    pub nr_memslots: u64,
}

impl Host {
    /// Describes this machine. What cannot be read is `unknown` or 0: a host
    /// that hides its CPU name can still be measured.
    #[must_use]
    pub fn read(kvm: KvmFacts) -> Self {
        let memory = rustix::system::sysinfo();
        let kernel = rustix::system::uname();
        Self {
            machine: machine(Path::new("/proc/cpuinfo")),
            cpus: cpus(Path::new("/proc/cpuinfo")),
            memory_bytes: memory.totalram.saturating_mul(u64::from(memory.mem_unit)),
            kernel: kernel.release().to_string_lossy().into_owned(),
            kvm_module: kvm.module,
            tdp_mmu: kvm.tdp_mmu,
            page_sizes: page_sizes(Path::new("/sys/kernel/mm/hugepages")),
            zap: kvm.zap,
            slot_zap_all_quirk: kvm.slot_zap_all_quirk,
            nr_memslots: kvm.nr_memslots,
        }
    }
}

/// The values of one key of `/proc/cpuinfo`, one per CPU. A hypervisor may
/// put any bytes into a CPU's name; none of them may reach a terminal raw.
fn values(cpuinfo: &Path, key: &str) -> Vec<String> {
    let bytes = std::fs::read(cpuinfo).unwrap_or_default();
    String::from_utf8_lossy(&bytes)
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| name.trim() == key)
        .map(|(_, value)| value.trim().replace(char::is_control, " "))
        .collect()
}

fn machine(cpuinfo: &Path) -> String {
    values(cpuinfo, "model name")
        .into_iter()
        .find(|name| !name.is_empty())
        .unwrap_or_else(|| UNKNOWN.to_owned())
}

fn cpus(cpuinfo: &Path) -> usize {
    match values(cpuinfo, "processor").len() {
        0 => std::thread::available_parallelism().map_or(0, usize::from),
        online => online,
    }
}

/// The base page size and the name of each pool: `hugepages-2048kB`.
fn page_sizes(pools: &Path) -> Vec<u64> {
    let base = u64::try_from(rustix::param::page_size()).unwrap_or(0);
    let huge = std::fs::read_dir(pools)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|pool| {
            let name = pool.file_name().into_string().ok()?;
            let kib = name.strip_prefix("hugepages-")?.strip_suffix("kB")?;
            kib.parse::<u64>().ok()?.checked_mul(1024)
        });
    let mut sizes: Vec<u64> = std::iter::once(base).chain(huge).collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_and_cpus_from_cpuinfo() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            file.path(),
            "processor\t: 0\nmodel name\t: Some\x1b CPU: v2 \n\nprocessor\t: 1\nmodel name\t: Other\n",
        )
        .unwrap();
        assert_eq!(machine(file.path()), "Some  CPU: v2");
        assert_eq!(cpus(file.path()), 2);
    }

    #[test]
    fn machine_without_cpuinfo_is_unknown() {
        let missing = Path::new("/nonexistent/cpuinfo");
        assert_eq!(machine(missing), UNKNOWN);
        assert!(cpus(missing) >= 1);
    }

    #[test]
    fn page_sizes_from_pools_sorted_and_strangers_ignored() {
        let pools = tempfile::tempdir().unwrap();
        for name in [
            "hugepages-1048576kB",
            "hugepages-2048kB",
            "hugepages-xkB",
            "other",
        ] {
            std::fs::create_dir(pools.path().join(name)).unwrap();
        }
        let sizes = page_sizes(pools.path());
        assert!(sizes.is_sorted() && sizes.len() == 3, "{sizes:?}");
        assert_eq!(sizes[1..], [2 << 20, 1 << 30]);
    }

    #[test]
    fn read_describes_this_machine() {
        let kvm = KvmFacts {
            module: "kvm_amd".into(),
            tdp_mmu: Some(true),
            zap: "the calling task".into(),
            slot_zap_all_quirk: false,
            nr_memslots: 32764,
        };
        let host = Host::read(kvm);
        assert!(host.cpus >= 1 && host.memory_bytes > 0);
        assert!(!host.kernel.is_empty() && !host.page_sizes.is_empty());
        assert_eq!(
            (host.kvm_module.as_str(), host.tdp_mmu),
            ("kvm_amd", Some(true))
        );
    }
}
