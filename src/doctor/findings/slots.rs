//! Owns the judgement of memslots: what KVM promises about them, and what it
//! does to a guest when one goes. Never judges the memory behind them.

use kvm_bindings::KVM_X86_QUIRK_SLOT_ZAP_ALL;
use vm_remap::host::{TdpMmu, ZapMode, ZapReport};

use super::{Finding, about};
use crate::doctor::kvm::KvmFacts;
use crate::doctor::probe::Probe;

/// Fewer slots than this are soon used up by devices and windows.
const FEW_SLOTS: i32 = 128;

pub(super) fn capabilities(facts: &KvmFacts) -> Vec<Finding> {
    vec![
        user_memory(facts.user_memory),
        sync_mmu(facts.sync_mmu),
        memslots(facts.memslots),
        precise_zap(facts.quirks),
        pre_fault(facts.pre_fault_memory),
        fault_info(facts.memory_fault_info),
    ]
}

fn user_memory(value: i32) -> Finding {
    let finding = about("user-memory", value.to_string());
    if value > 0 {
        finding.ok("KVM_CAP_USER_MEMORY: memslots may be backed by the VMM's own memory.")
    } else {
        finding.bad(
            "KVM_CAP_USER_MEMORY is missing: a VMM can not give a guest its own memory.",
            "Use a newer kernel.",
        )
    }
}

fn sync_mmu(value: i32) -> Finding {
    let finding = about("sync-mmu", value.to_string());
    if value > 0 {
        finding.ok("KVM_CAP_SYNC_MMU: KVM's promise that an mmap under a memslot reaches the guest at once.")
    } else {
        finding.bad(
            "KVM_CAP_SYNC_MMU is missing: the guest may go on using memory that was mapped away.",
            "Use a kernel whose KVM has MMU notifiers (CONFIG_MMU_NOTIFIER).",
        )
    }
}

fn memslots(value: i32) -> Finding {
    let finding = about("memslots", value.to_string());
    if value >= FEW_SLOTS {
        finding.ok("So many per VM. A window takes one per segment, once.")
    } else {
        finding.warning(
            "So many per VM, which is few: a window takes one per segment.",
            "Use large segments, or a newer kernel.",
        )
    }
}

fn precise_zap(quirks: i32) -> Finding {
    // A negative answer is an error, and so offers nothing.
    let mask = u32::try_from(quirks).unwrap_or(0);
    if mask & KVM_X86_QUIRK_SLOT_ZAP_ALL != 0 {
        about("precise-zap", format!("offered (quirks {mask:#x})")).ok(
            "A VMM may limit what a memslot delete drops to that slot, by disabling \
             KVM_X86_QUIRK_SLOT_ZAP_ALL (0x80). Unless it does, the whole VM is emptied.",
        )
    } else {
        about("precise-zap", format!("not offered (quirks {mask:#x})")).note(
            "Deleting or moving any memslot empties the page tables of the whole VM. Remapping \
             under a resting slot does not.",
            "Use the fixed backend; for the memslot backend, kernel 6.12 or later.",
        )
    }
}

fn pre_fault(value: i32) -> Finding {
    let finding = about("pre-fault", value.to_string());
    if value > 0 {
        finding.ok("KVM_PRE_FAULT_MEMORY fills the guest's page tables before the guest touches a mapping.")
    } else {
        finding.note(
            "The guest's first touch of each page costs it a fault: the kernel is older than \
             KVM_PRE_FAULT_MEMORY, or guests run without two-dimensional paging.",
            "Back mappings with huge pages, which need few faults.",
        )
    }
}

fn fault_info(value: i32) -> Finding {
    about("fault-info", value.to_string()).ok(
        "KVM_CAP_MEMORY_FAULT_INFO is of no help to windows: also kernels that have it give no address for a hole, only for \
         private guest memory.",
    )
}

pub(super) fn tdp_mmu(probe: &Probe) -> Finding {
    let report = &probe.tdp;
    let evidence = &report.evidence;
    let pvm = probe.vendors.iter().any(|module| module.name == "kvm_pvm");
    match report.state {
        TdpMmu::On => about("tdp-mmu", "on").ok(&format!(
            "Guest page tables are per-VM roots, and a registered but empty slot costs 2 KiB per \
             GiB ({evidence})."
        )),
        TdpMmu::Off => about("tdp-mmu", "off").note(
            &format!(
                "Guest page tables are shadow pages, found through a reverse map: a slot costs \
                 2.5 MiB per GiB when it is registered ({evidence})."
            ),
            if pvm {
                ""
            } else {
                "Load kvm with tdp_mmu=1 and nested paging (ept=1 or npt=1), unless it is off on \
                 purpose."
            },
        ),
        TdpMmu::Unknown => about("tdp-mmu", "unknown").note(
            &format!("KVM is not loaded, or older than its TDP MMU ({evidence})."),
            "Load KVM and ask again.",
        ),
    }
}

pub(super) fn who_zaps(zap: &ZapReport) -> Finding {
    let evidence = &zap.evidence;
    match zap.mode {
        ZapMode::Synchronous => about("who-zaps", "the calling task").ok(&format!(
            "A memslot delete does its work on the caller's CPUs, at the caller's priority \
             ({evidence})."
        )),
        ZapMode::Worker => about("who-zaps", "a kernel worker").warning(
            &format!(
                "A memslot delete has the VM's roots torn down by a worker on any CPU, at no \
                 one's priority; real-time threads miss deadlines ({evidence})."
            ),
            "Use the fixed backend, which deletes no slots; or a kernel of 6.6, 6.5.6, 6.1.60 or \
             later, or one with the patch in patches/linux.",
        ),
        ZapMode::Unknown => about("who-zaps", "unknown").note(
            &format!("Nothing here tells who tears down a VM's roots ({evidence})."),
            "Load KVM, and use a kernel with CONFIG_KALLSYMS; then ask again.",
        ),
    }
}
