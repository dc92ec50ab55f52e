//! Owns the reading of a host: every fact the doctor judges, in one value.
//! Never judges, never changes anything, never fails: what cannot be read is
//! absent.

pub(super) mod device;
pub(super) mod memory;
pub(super) mod process;

use vm_remap::host::{Host, TdpReport, ZapReport};

use self::device::{Cpu, Module, Node};
use self::memory::{HugePool, MapCount, Userfaultfd};
use self::process::{Limit, User};
use super::kvm::KvmState;

/// Everything read from one host.
#[derive(Clone, Debug)]
pub(super) struct Probe {
    /// The kernel's release, as `uname -r` prints it.
    pub(super) kernel: Option<String>,
    /// What came of opening `/dev/kvm`.
    pub(super) kvm: KvmState,
    /// The file `/dev/kvm`, where there is one.
    pub(super) node: Option<Node>,
    /// Whether the kernel has registered KVM's device, file or no file.
    pub(super) registered: bool,
    /// The KVM modules that serve a kind of CPU.
    pub(super) vendors: Vec<Module>,
    /// What the CPU says of itself; `None` where it cannot be read.
    pub(super) cpu: Option<Cpu>,
    /// Who is asking.
    pub(super) user: User,
    /// Whether the TDP MMU is in use.
    pub(super) tdp: TdpReport,
    /// Who zaps roots.
    pub(super) zap: ZapReport,
    /// The budget of mapped areas.
    pub(super) map_count: Option<MapCount>,
    /// The chosen word for anonymous memory.
    pub(super) thp: Option<String>,
    /// The chosen word for shared memory.
    pub(super) thp_shmem: Option<String>,
    /// The hugetlb pools, smallest page first.
    pub(super) pools: Vec<HugePool>,
    /// Open files.
    pub(super) open_files: Option<Limit>,
    /// Locked memory, in bytes.
    pub(super) locked_memory: Option<Limit>,
    /// Whether this host can hand devices to guests.
    pub(super) passthrough: bool,
    /// How userfaultfd may be used.
    pub(super) userfaultfd: Userfaultfd,
    /// The tightest memory limit of the control groups around us, in bytes.
    pub(super) cgroup_limit: Option<u64>,
}

impl Probe {
    /// Reads `host`.
    pub(super) fn read(host: &Host) -> Self {
        let status = host.text("/proc/self/status").unwrap_or_default();
        let uid_map = host.text("/proc/self/uid_map").unwrap_or_default();
        let limits = host.text("/proc/self/limits").unwrap_or_default();
        Self {
            kernel: host.text("/proc/sys/kernel/osrelease").ok(),
            kvm: KvmState::probe(&host.path("/dev/kvm")),
            node: Node::read(host, "/dev/kvm"),
            registered: host.path("/sys/class/misc/kvm").exists(),
            vendors: Module::vendors(host),
            cpu: Cpu::read(host),
            user: User::parse(&status, &uid_map),
            tdp: host.tdp_mmu(),
            zap: host.zap_report(),
            map_count: MapCount::read(host),
            thp: memory::chosen(host, "enabled"),
            thp_shmem: memory::chosen(host, "shmem_enabled"),
            pools: HugePool::all(host),
            open_files: Limit::parse(&limits, "Max open files"),
            locked_memory: Limit::parse(&limits, "Max locked memory"),
            passthrough: ["/dev/vfio/vfio", "/dev/iommu"]
                .iter()
                .any(|path| host.path(path).exists()),
            userfaultfd: Userfaultfd::read(host),
            cgroup_limit: process::cgroup_limit(host),
        }
    }
}
