//! Owns the judgement of a window's memory: how many mappings fit, and
//! whether they can be backed by huge pages. Never judges KVM.

use super::{Finding, about};
use crate::doctor::probe::memory::{HugePool, MapCount, POOLS};

/// A mapping in the midst of a hole costs itself and a second half of it.
const AREAS_PER_MAPPING: usize = 2;
/// Room for fewer mappings than this is used up by one busy GPU.
const FEW_MAPPINGS: usize = 1_000;
/// The usual limit leaves about three times as many.
const SOME_MAPPINGS: usize = 10_000;
const KIB_PER_MIB: u64 = 1 << 10;
const KIB_PER_GIB: u64 = 1 << 20;

pub(super) fn map_count(count: Option<MapCount>) -> Finding {
    let id = "map-count";
    let Some(MapCount { limit, held }) = count else {
        return about(id, "unknown").note(
            "How many areas a process may map bounds how many mappings its windows hold.",
            "Mount /proc and ask again.",
        );
    };
    let room = limit.saturating_sub(held) / AREAS_PER_MAPPING;
    let finding = about(
        id,
        format!("{limit}, {held} held: room for {room} mappings"),
    );
    let meaning = "vm.max_map_count. A mapping in a window takes two areas; at the limit even \
                   closing one can fail.";
    let action = "sysctl -w vm.max_map_count=262144";
    if room < FEW_MAPPINGS {
        finding.warning(meaning, action)
    } else if room < SOME_MAPPINGS {
        finding.note(meaning, action)
    } else {
        finding.ok(meaning)
    }
}

pub(super) fn thp(word: Option<&str>) -> Finding {
    let id = "thp";
    match word {
        Some("always") => about(id, "always").ok("Anonymous memory gets 2 MiB pages by itself."),
        Some("madvise") => {
            about(id, "madvise").ok("Anonymous memory gets 2 MiB pages where the VMM asks for it.")
        }
        Some(word) => about(id, word).note(
            "Anonymous memory gets 4 KiB pages: 512 guest faults where one would do.",
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        ),
        None => about(id, "not available").note(
            "Anonymous memory gets 4 KiB pages: the kernel has no transparent huge pages.",
            "Use a hugetlb pool, or a kernel with CONFIG_TRANSPARENT_HUGEPAGE.",
        ),
    }
}

pub(super) fn thp_shmem(word: Option<&str>) -> Finding {
    let id = "thp-shmem";
    match word {
        Some("advise") => about(id, "advise").ok("A memfd gets 2 MiB pages where the VMM asks."),
        Some(word @ ("always" | "within_size" | "force")) => {
            about(id, word).ok("A memfd gets 2 MiB pages by itself.")
        }
        Some(word) => about(id, word).note(
            "A memfd gets 4 KiB pages on touch: 512 guest faults where one would do. Collapsing \
             it afterwards (MADV_COLLAPSE) still works.",
            "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled",
        ),
        None => about(id, "not available").note(
            "A memfd gets 4 KiB pages: the kernel has no transparent huge pages for it.",
            "Use a hugetlb pool.",
        ),
    }
}

pub(super) fn hugetlb(pools: &[HugePool]) -> Vec<Finding> {
    if pools.is_empty() {
        return vec![about("hugetlb", "not available").note(
            "There are no hugetlb pools, which hold the fastest memory to map.",
            "Use a kernel with CONFIG_HUGETLBFS, or transparent huge pages.",
        )];
    }
    pools.iter().map(pool).collect()
}

fn pool(pool: &HugePool) -> Finding {
    let size = page_size(pool.page_kib);
    let value = format!(
        "{} pages of {size}, {} available, may grow by {}",
        pool.total, pool.available, pool.growth
    );
    let id = format!("hugetlb-{}", size.replace(' ', "").to_lowercase());
    let finding = about(id, value);
    if pool.available > 0 || pool.growth > 0 {
        return finding.ok("Huge-page memfds of this size can be made; they cost fewest faults.");
    }
    let meaning = "No huge-page memfd of this size can be made.";
    if pool.page_kib >= KIB_PER_GIB {
        // Memory is soon too fragmented to make such pages later.
        let action = format!(
            "Only if a source needs it: hugepagesz={}G hugepages=<n> on the kernel command line.",
            pool.page_kib / KIB_PER_GIB
        );
        finding.note(meaning, &action)
    } else {
        // In two commands, so that neither is cut in a narrow table.
        let action = format!(
            "For 64 of them: cd {POOLS}/hugepages-{}kB; echo 64 > nr_hugepages",
            pool.page_kib
        );
        finding.note(meaning, &action)
    }
}

/// A page size in the largest unit that divides it.
fn page_size(kib: u64) -> String {
    if kib.is_multiple_of(KIB_PER_GIB) {
        format!("{} GiB", kib / KIB_PER_GIB)
    } else if kib.is_multiple_of(KIB_PER_MIB) {
        format!("{} MiB", kib / KIB_PER_MIB)
    } else {
        format!("{kib} KiB")
    }
}
