//! Owns the reading of what bounds and speeds up a window's memory: mapped
//! areas, huge pages, userfaultfd. Never reserves any of it.

use std::fs::{self, OpenOptions};

use vm_remap::host::Host;

/// The directory of transparent huge pages.
const THP: &str = "/sys/kernel/mm/transparent_hugepage";
/// The directory of hugetlb pools.
pub(in crate::doctor) const POOLS: &str = "/sys/kernel/mm/hugepages";

/// The budget of mapped areas (VMAs).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::doctor) struct MapCount {
    /// `vm.max_map_count`.
    pub(in crate::doctor) limit: usize,
    /// What this process holds already.
    pub(in crate::doctor) held: usize,
}

impl MapCount {
    pub(super) fn read(host: &Host) -> Option<Self> {
        Some(Self {
            limit: host.max_map_count().ok()?,
            held: host.mapped_areas().unwrap_or(0),
        })
    }
}

/// The word in force for 2 MiB pages, in a file that lists all words and
/// brackets one.
pub(super) fn chosen(host: &Host, file: &str) -> Option<String> {
    // Newer kernels have a switch per size, which wins unless it inherits.
    let per_size = bracketed(host, &format!("{THP}/hugepages-2048kB/{file}"));
    match per_size.as_deref() {
        None | Some("inherit") => bracketed(host, &format!("{THP}/{file}")),
        Some(_) => per_size,
    }
}

fn bracketed(host: &Host, path: &str) -> Option<String> {
    let text = host.text(path).ok()?;
    let (_, rest) = text.split_once('[')?;
    let (word, _) = rest.split_once(']')?;
    Some(word.to_owned())
}

/// The hugetlb pool of one page size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::doctor) struct HugePool {
    /// The page size, in KiB.
    pub(in crate::doctor) page_kib: u64,
    /// Pages in the pool.
    pub(in crate::doctor) total: usize,
    /// Those neither in use nor promised to a mapping.
    pub(in crate::doctor) available: usize,
    /// Pages the pool may still grow by on demand.
    pub(in crate::doctor) growth: usize,
}

impl HugePool {
    /// All pools, smallest page first.
    pub(super) fn all(host: &Host) -> Vec<Self> {
        let Ok(entries) = fs::read_dir(host.path(POOLS)) else {
            return Vec::new();
        };
        let mut pools: Vec<Self> = entries
            .filter_map(|entry| Self::read(host, entry.ok()?.file_name().to_str()?))
            .collect();
        pools.sort_by_key(|pool| pool.page_kib);
        pools
    }

    fn read(host: &Host, name: &str) -> Option<Self> {
        let page_kib = name
            .strip_prefix("hugepages-")?
            .strip_suffix("kB")?
            .parse()
            .ok()?;
        let figure = |file: &str| host.number(&format!("{POOLS}/{name}/{file}")).ok();
        let or_none = |file: &str| figure(file).unwrap_or(0);
        Some(Self {
            page_kib,
            total: figure("nr_hugepages")?,
            available: figure("free_hugepages")?.saturating_sub(or_none("resv_hugepages")),
            growth: or_none("nr_overcommit_hugepages").saturating_sub(or_none("surplus_hugepages")),
        })
    }
}

/// The two ways to a userfaultfd that catches KVM's own accesses, beside a
/// capability.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::doctor) struct Userfaultfd {
    /// `/dev/userfaultfd` could be opened; `None` where it is not there.
    pub(in crate::doctor) device: Option<bool>,
    /// `vm.unprivileged_userfaultfd`; `None` where the kernel has none.
    pub(in crate::doctor) everyone: Option<bool>,
}

impl Userfaultfd {
    pub(super) fn read(host: &Host) -> Self {
        let device = host.path("/dev/userfaultfd");
        Self {
            device: device.exists().then(|| {
                // Opening it allocates nothing and arms nothing.
                OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open(&device)
                    .is_ok()
            }),
            everyone: host
                .number("/proc/sys/vm/unprivileged_userfaultfd")
                .ok()
                .map(|value| value != 0),
        }
    }
}
