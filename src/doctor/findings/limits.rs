//! Owns the judgement of what the system allows this process: descriptors,
//! locked memory, userfaultfd, memory as a whole. Never judges KVM.

use indicatif::BinaryBytes;

use super::{Finding, about};
use crate::doctor::probe::memory::Userfaultfd;
use crate::doctor::probe::process::Limit;

/// With fewer files than this a VMM hardly starts.
const FEW_FILES: u64 = 256;
/// With fewer than this, descriptors run out before mappings do.
const SOME_FILES: u64 = 4_096;

pub(super) fn open_files(limit: Option<Limit>) -> Finding {
    let id = "open-files";
    let meaning = "Descriptors this process may hold: one for each source of memory, next to those \
                   of vCPUs and devices.";
    let Some(limit) = limit else {
        return about(id, "unknown").note(meaning, "Mount /proc and ask again.");
    };
    let number = |value: Option<u64>| value.map_or_else(|| "unlimited".into(), |n| n.to_string());
    let value = format!("{} (up to {})", number(limit.soft), number(limit.hard));
    let finding = about(id, value);
    let action = "ulimit -n 65536, or LimitNOFILE=65536 in the VMM's systemd unit.";
    match limit.soft {
        Some(files) if files < FEW_FILES => finding.warning(meaning, action),
        Some(files) if files < SOME_FILES => finding.note(meaning, action),
        _ => finding.ok(meaning),
    }
}

pub(super) fn locked_memory(limit: Option<Limit>, passthrough: bool) -> Finding {
    let id = "locked-memory";
    let Some(limit) = limit else {
        return about(id, "unknown").note(
            "Binds memory that is pinned for a device or locked.",
            "Mount /proc and ask again.",
        );
    };
    let Some(bytes) = limit.soft else {
        return about(id, "unlimited").ok("Mappings may be pinned for a device's DMA.");
    };
    let finding = about(id, BinaryBytes(bytes).to_string());
    if passthrough {
        finding.note(
            "This host can hand devices to guests, and memory a device reaches is pinned and \
             counted against this limit.",
            "With such a device: ulimit -l unlimited, or LimitMEMLOCK=infinity.",
        )
    } else {
        finding.ok("Binds only memory pinned for a device or locked; there is no VFIO here.")
    }
}

pub(super) fn userfaultfd(ways: Userfaultfd, may_trace: bool) -> Finding {
    let id = "userfaultfd";
    let Some(everyone) = ways.everyone else {
        return about(id, "not available").note(
            "Holes and late mappings can not be served by a handler in the VMM.",
            "Use a kernel with CONFIG_USERFAULTFD.",
        );
    };
    let way = if everyone {
        Some("allowed to everyone")
    } else if may_trace {
        Some("allowed by CAP_SYS_PTRACE")
    } else if ways.device == Some(true) {
        Some("allowed through /dev/userfaultfd")
    } else {
        None
    };
    match way {
        Some(way) => about(id, way).ok(
            "A VMM can catch the guest's accesses, KVM's included, and answer them when they come.",
        ),
        None => about(id, "only for the process's own accesses").note(
            "Accesses that KVM makes for the guest can not be caught. Poisoned holes still can be \
             (kernel 6.6 or later).",
            if ways.device.is_some() {
                "Give the VMM's group /dev/userfaultfd: chgrp kvm /dev/userfaultfd; chmod 660 \
                 /dev/userfaultfd."
            } else {
                "sysctl -w vm.unprivileged_userfaultfd=1"
            },
        ),
    }
}

pub(super) fn cgroup_memory(limit: Option<u64>) -> Finding {
    let id = "cgroup-memory";
    match limit {
        None => about(id, "no limit").ok("No control group bounds this process's memory."),
        Some(bytes) => about(id, BinaryBytes(bytes).to_string()).note(
            "Guest memory and what mappings hold count against it; above it the VMM is killed.",
            "Make it at least guest memory plus the largest windows' contents.",
        ),
    }
}
