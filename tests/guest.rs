//! Proves that the guest of the bench is real: it runs on this host's KVM,
//! tells the truth about faults and MMIO, and always stops.

mod guest_support;

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use vm_remap_cli::guest::{Access, BLOCK, GpaRange, Guest, GuestConfig, GuestError};
use vm_remap_cli::guest::{PAGE, Program, TOP, Touch};

use guest_support::{MIB, Slot, WINDOW, open, skip, wait_for};

/// KVM changes code of the running kernel when the first VM comes and when the last one goes (its
/// static keys). Under emulation with a thread for each CPU that has hung and crashed the machine,
/// so the lab keeps one VM for the whole run.
#[test]
#[ignore = "it only keeps a VM open, for ever, for the lab"]
fn keep_a_vm_open() {
    let guest = open("keep_a_vm_open", 1, None);
    while guest.is_some() {
        thread::park();
    }
}

#[test]
fn walk_makes_passes_and_stops() {
    let Some(guest) = open("walk_makes_passes_and_stops", 1, None) else {
        return;
    };
    let work = guest.layout().working_set();
    let (base, len) = (work.base, 4 * MIB);
    guest.start(0, Program::Walk { base, len }).unwrap();
    wait_for("passes", || guest.passes(0).unwrap() > 10);
    let ran = guest.stop(0).unwrap();
    assert!(ran.passes > 10, "{ran:?}");
    assert!(ran.cpu > Duration::ZERO, "{ran:?}");
    assert_eq!((ran.efaults, ran.mmio), (0, 0), "{ran:?}");
    let pages = len / PAGE;
    assert!(ran.accesses >= ran.passes * pages, "{ran:?}");
    assert!(ran.accesses <= (ran.passes + 1) * pages, "{ran:?}");
}

#[test]
fn one_shot_in_ram_reads_what_it_wrote() {
    let Some(guest) = open("one_shot_in_ram_reads_what_it_wrote", 2, None) else {
        return;
    };
    let gpa = guest.layout().working_set().end() - 8;
    let value = 0x0123_4567_89ab_cdef;
    assert_eq!(guest.write_u64(0, gpa, value).unwrap(), Access::Done(()));
    assert_eq!(guest.read_u64(0, gpa).unwrap(), Access::Done(value));
    assert_eq!(guest.read_u64(1, gpa).unwrap(), Access::Done(value));
}

#[test]
fn touch_visits_each_page_once() {
    let Some(guest) = open("touch_visits_each_page_once", 1, Some(WINDOW)) else {
        return;
    };
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let slot = Slot::new(Arc::clone(guest.vm()), WINDOW.base, WINDOW.len, prot);
    let (base, len) = (WINDOW.base + PAGE, 700 * PAGE);
    let pages = Access::Done(700);
    assert_eq!(guest.touch(0, base, len, Touch::Read).unwrap(), pages);
    assert_eq!(slot.load(4096), 0);
    assert_eq!(guest.touch(0, base, len, Touch::Write).unwrap(), pages);
    assert_eq!(slot.load(0), 0);
    assert_eq!(slot.load(4096), base);
    assert_eq!(slot.load(700 * 4096), base + len - PAGE);
    assert_eq!(slot.load(701 * 4096), 0);
}

#[test]
fn window_without_slot_is_mmio() {
    let windows = [
        WINDOW,
        GpaRange {
            base: 80 * MIB,
            len: PAGE,
        },
        GpaRange {
            base: (64 << 30) + 3 * PAGE,
            len: 5 * PAGE,
        },
    ];
    for window in windows {
        let Some(guest) = open("window_without_slot_is_mmio", 1, Some(window)) else {
            return;
        };
        let gpa = window.end() - 8;
        let mmio = |write| Access::Mmio { gpa, write };
        assert_eq!(guest.read_u64(0, gpa).unwrap(), mmio(false));
        assert_eq!(
            guest.write_u64(0, gpa, 1).unwrap(),
            Access::Mmio { gpa, write: true }
        );
        // What was given up leaves nothing behind for the next one.
        let ram = guest.layout().working_set().base;
        assert_eq!(guest.write_u64(0, ram, 5).unwrap(), Access::Done(()));
        assert_eq!(guest.read_u64(0, ram).unwrap(), Access::Done(5));
    }
}

#[test]
fn slot_over_prot_none_is_a_fault() {
    let Some(guest) = open("slot_over_prot_none_is_a_fault", 1, Some(WINDOW)) else {
        return;
    };
    let _slot = Slot::new(
        Arc::clone(guest.vm()),
        WINDOW.base,
        WINDOW.len,
        libc::PROT_NONE,
    );
    let gpa = WINDOW.base + 5 * PAGE;
    assert_eq!(guest.read_u64(0, gpa).unwrap(), Access::Fault);
    assert_eq!(guest.write_u64(0, gpa, 1).unwrap(), Access::Fault);
    let touched = guest.touch(0, WINDOW.base, WINDOW.len, Touch::Read);
    assert_eq!(touched.unwrap(), Access::Fault);
    let ram = guest.layout().working_set().base;
    assert_eq!(guest.read_u64(0, ram).unwrap(), Access::Done(0));
}

#[test]
fn walk_into_a_fault_counts_and_still_stops() {
    let test = "walk_into_a_fault_counts_and_still_stops";
    let Some(guest) = open(test, 1, Some(WINDOW)) else {
        return;
    };
    let _slot = Slot::new(
        Arc::clone(guest.vm()),
        WINDOW.base,
        WINDOW.len,
        libc::PROT_NONE,
    );
    let (base, len) = (WINDOW.base, WINDOW.len);
    guest.start(0, Program::Walk { base, len }).unwrap();
    thread::sleep(Duration::from_millis(50));
    let ran = guest.stop(0).unwrap();
    assert!(ran.efaults > 0, "{ran:?}");
    assert_eq!((ran.passes, ran.accesses, ran.mmio), (0, 0, 0), "{ran:?}");
}

#[test]
fn walk_over_mmio_goes_on_and_is_counted() {
    let test = "walk_over_mmio_goes_on_and_is_counted";
    let Some(guest) = open(test, 1, Some(WINDOW)) else {
        return;
    };
    let (base, len) = (WINDOW.base, 4 * PAGE);
    guest.start(0, Program::Walk { base, len }).unwrap();
    wait_for("passes", || guest.passes(0).unwrap() > 3);
    let ran = guest.stop(0).unwrap();
    assert!(ran.mmio >= 4 * ran.passes, "{ran:?}");
    assert_eq!(ran.efaults, 0, "{ran:?}");
}

#[test]
fn watch_sees_stale_reads_and_only_those() {
    let test = "watch_sees_stale_reads_and_only_those";
    let Some(guest) = open(test, 1, Some(WINDOW)) else {
        return;
    };
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let slot = Slot::new(Arc::clone(guest.vm()), WINDOW.base, WINDOW.len, prot);
    let (page, expected) = (WINDOW.base, 7);
    slot.store(0, 7);
    guest.start(0, Program::Watch { page, expected }).unwrap();
    for sequence in 8..1000 {
        slot.store(0, sequence);
        guest.set_expected(0, sequence).unwrap();
    }
    wait_for("passes", || guest.passes(0).unwrap() > 1000);
    assert_eq!(guest.stale(0).unwrap(), 0);
    // A promise that is not kept must show.
    guest.set_expected(0, 1000).unwrap();
    wait_for("stale reads", || guest.stale(0).unwrap() > 10);
    let ran = guest.stop(0).unwrap();
    assert!(guest.stale(0).unwrap() < ran.passes, "{ran:?}");
    assert_eq!((ran.efaults, ran.mmio), (0, 0), "{ran:?}");
}

#[test]
fn statistics_have_the_names_the_bench_needs() {
    let test = "statistics_have_the_names_the_bench_needs";
    let Some(guest) = open(test, 1, None) else {
        return;
    };
    let (Some(vm), Some(vcpu)) = (guest.vm_stats(), guest.vcpu_stats(0)) else {
        skip(test, "this kernel has no KVM_GET_STATS_FD");
        return;
    };
    let work = guest.layout().working_set();
    let before = vcpu.snapshot().unwrap();
    let touched = guest.touch(0, work.base, work.len, Touch::Write).unwrap();
    assert_eq!(touched, Access::Done(work.len / PAGE));
    let after = vcpu.snapshot().unwrap();
    for name in ["pf_taken", "pf_fixed", "exits", "mmio_exits"] {
        assert!(after.get(name) > before.get(name), "{name}");
        assert_eq!(vcpu.read(name).unwrap(), after.get(name), "{name}");
    }
    let all = vm.snapshot().unwrap();
    for name in [
        "pages_4k",
        "pages_2m",
        "pages_1g",
        "remote_tlb_flush_requests",
        "remote_tlb_flush",
        "mmu_shadow_zapped",
    ] {
        assert!(all.get(name).is_some(), "{name}");
    }
    let mapped = all.get("pages_4k").unwrap() + all.get("pages_2m").unwrap() * 512;
    assert!(mapped >= work.len / PAGE, "{mapped}");
    assert_eq!(vm.read("no such name").unwrap(), None);
    assert!(vm.names().any(|name| name == "pages_4k"));
    assert!(all.iter().any(|(name, _)| name == "pages_4k"));
}

#[test]
fn two_vcpus_run_at_once() {
    let Some(guest) = open("two_vcpus_run_at_once", 2, None) else {
        return;
    };
    let work = guest.layout().working_set();
    for vcpu in 0..2 {
        let base = work.base + vcpu as u64 * 8 * MIB;
        guest.start(vcpu, Program::Walk { base, len: MIB }).unwrap();
    }
    let first = guest.passes(0).unwrap();
    wait_for("passes of vCPU 1", || guest.passes(1).unwrap() > 100);
    wait_for("passes of vCPU 0", || guest.passes(0).unwrap() > first);
    for vcpu in 0..2 {
        let ran = guest.stop(vcpu).unwrap();
        assert!(ran.passes > 0, "{ran:?}");
        assert_eq!((ran.efaults, ran.mmio), (0, 0), "{ran:?}");
    }
}

#[test]
fn stop_right_after_start_is_never_lost() {
    let Some(guest) = open("stop_right_after_start_is_never_lost", 1, None) else {
        return;
    };
    let base = guest.layout().working_set().base;
    for _ in 0..500 {
        guest.start(0, Program::Walk { base, len: MIB }).unwrap();
        guest.stop(0).unwrap();
    }
}

#[test]
fn misuse_is_refused_by_name() {
    let Some(guest) = open("misuse_is_refused_by_name", 1, Some(WINDOW)) else {
        return;
    };
    let work = guest.layout().working_set();
    let walk = |base, len| Program::Walk { base, len };
    assert!(matches!(guest.stop(0), Err(GuestError::Idle { vcpu: 0 })));
    guest.start(0, walk(work.base, PAGE)).unwrap();
    let again = guest.start(0, walk(work.base, PAGE)).unwrap_err();
    assert!(matches!(again, GuestError::Busy { vcpu: 0 }));
    let once = guest.read_u64(0, work.base).unwrap_err();
    assert!(matches!(once, GuestError::Busy { vcpu: 0 }));
    guest.stop(0).unwrap();
    for (base, len) in [
        (0, PAGE),
        (work.base + 8, PAGE),
        (work.base, 0),
        (work.end(), PAGE),
        (guest.layout().doorbell(), PAGE),
        (u64::MAX - PAGE + 1, PAGE),
    ] {
        let refused = guest.start(0, walk(base, len)).unwrap_err();
        assert!(matches!(refused, GuestError::Range { .. }), "{base:#x}");
    }
    let nobody = guest.read_u64(1, work.base).unwrap_err();
    assert_eq!(
        nobody.to_string(),
        "cannot find vCPU 1: the guest has 1, counted from 0"
    );
}

#[test]
fn config_without_sense_is_refused_before_kvm_is_asked() {
    for (ram_len, vcpus, base) in [
        (1, 1, WINDOW.base),
        (8 * MIB, 0, WINDOW.base),
        (8 * MIB, 1000, WINDOW.base),
        (8 * MIB, 1, TOP),
    ] {
        let len = BLOCK;
        let config = GuestConfig {
            ram_len,
            vcpus,
            window: Some(GpaRange { base, len }),
        };
        let refused = Guest::open(&config).unwrap_err();
        assert!(matches!(refused, GuestError::Layout { .. }), "{refused}");
    }
}

#[test]
fn dropped_guest_stops_and_takes_its_slot_along() {
    let test = "dropped_guest_stops_and_takes_its_slot_along";
    let Some(guest) = open(test, 2, Some(WINDOW)) else {
        return;
    };
    let base = guest.layout().working_set().base;
    guest.start(1, Program::Walk { base, len: MIB }).unwrap();
    let vm = Arc::clone(guest.vm());
    drop(guest);
    // Guest-physical 0 is free again: slots may not overlap.
    let _slot = Slot::new(vm, 0, PAGE, libc::PROT_READ);
}
