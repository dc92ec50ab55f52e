//! Owns the tests of what a guest on KVM finds where no memory is, or none that it may write.

use hypervisor::HypervisorCpuError;
use vm_remap::BackendKind::{Fixed, Memslot};
use vm_remap::{GuestAddress, HolePolicy, PAGE_SIZE, ReadOnlyWrites};
use vm_remap_cloud_hypervisor::RemapOptions;

use crate::guest::{READ, WINDOW, WRITE, bare, decorated};
use crate::memory::{Figures, Memory, create, figures};

fn text(error: HypervisorCpuError) -> String {
    format!("{:#}", anyhow::Error::new(error))
}

/// By this text a fault is told from every other failure of a run.
#[test]
fn fault_of_the_hypervisor_crate_has_the_text_that_is_looked_for() {
    let test = "fault_of_the_hypervisor_crate_has_the_text_that_is_looked_for";
    let Some(mut guest) = bare(test) else {
        return;
    };
    let barred = Memory::barred(1);
    create(guest.vm.as_ref(), figures(1, WINDOW, 1), &barred).unwrap();
    let error = guest.run(READ, WINDOW, 0).unwrap_err();
    let HypervisorCpuError::RunVcpu(cause) = error else {
        panic!("{error:?}");
    };
    assert_eq!(cause.to_string(), "VCPU error Error(14)");
}

#[test]
fn holes_read_as_ones_and_drop_writes() {
    let test = "holes_read_as_ones_and_drop_writes";
    for backend in [Fixed, Memslot] {
        let Some((mut guest, remap)) = decorated(test, RemapOptions::new(backend)) else {
            return;
        };
        remap.open_window(GuestAddress(WINDOW), 16 << 20).unwrap();
        let memory = Memory::shared(4);
        create(guest.vm.as_ref(), figures(5, WINDOW, 4), &memory).unwrap();
        let hole = WINDOW + (8 << 20);
        for _ in 0..3 {
            assert_eq!(guest.run(READ, hole, 0).unwrap(), u64::MAX, "{backend}");
            assert_eq!(guest.run(WRITE, hole, 3).unwrap(), u64::MAX, "{backend}");
            assert_eq!(guest.run(WRITE, WINDOW, 4).unwrap(), 4, "{backend}");
        }
        let counters = remap.resolver().counters();
        assert!(counters.holes >= 9, "{counters:?}");
        assert_eq!(counters.stops, 0, "{counters:?}");
        assert_eq!(counters.faults > 0, backend == Fixed, "{counters:?}");
    }
}

#[test]
fn writes_to_a_read_only_region_are_dropped() {
    let test = "writes_to_a_read_only_region_are_dropped";
    for backend in [Fixed, Memslot] {
        let Some((mut guest, remap)) = decorated(test, RemapOptions::new(backend)) else {
            return;
        };
        remap.open_window(GuestAddress(WINDOW), 16 << 20).unwrap();
        let memory = Memory::shared(4);
        memory.store(8, &9_u64.to_le_bytes());
        let read_only = Figures {
            read_only: true,
            ..figures(5, WINDOW, 4)
        };
        create(guest.vm.as_ref(), read_only, &memory).unwrap();
        for _ in 0..3 {
            assert_eq!(guest.run(WRITE, WINDOW + 8, 3).unwrap(), 9, "{backend}");
        }
        assert_eq!(memory.load(8), 9);
        let counters = remap.resolver().counters();
        assert!(counters.dropped_writes >= 3, "{counters:?}");
    }
}

#[test]
fn policies_that_stop_end_the_run_with_a_report() {
    let test = "policies_that_stop_end_the_run_with_a_report";
    for backend in [Fixed, Memslot] {
        let options = RemapOptions::new(backend)
            .holes(HolePolicy::Stop)
            .read_only_writes(ReadOnlyWrites::Report);
        let Some((mut guest, remap)) = decorated(test, options) else {
            return;
        };
        remap.open_window(GuestAddress(WINDOW), 16 << 20).unwrap();
        let memory = Memory::shared(4);
        let read_only = Figures {
            read_only: true,
            ..figures(5, WINDOW, 4)
        };
        create(guest.vm.as_ref(), read_only, &memory).unwrap();
        let error = text(guest.run(READ, WINDOW + (8 << 20), 0).unwrap_err());
        let report = "Failed to run vcpu: cannot go on with the guest's read at 0x100800000 in the \
                      window at 0x100000000: nothing is mapped there, and holes are to stop it";
        assert!(error.starts_with(report), "{backend}: {error}");
        let Some((mut guest, remap)) = decorated(
            test,
            RemapOptions::new(backend).read_only_writes(ReadOnlyWrites::Report),
        ) else {
            return;
        };
        remap.open_window(GuestAddress(WINDOW), 16 << 20).unwrap();
        create(guest.vm.as_ref(), read_only, &memory).unwrap();
        let error = text(guest.run(WRITE, WINDOW, 0).unwrap_err());
        let report = "Failed to run vcpu: cannot go on with the guest's write at 0x100000000 in the \
                      window at 0x100000000: the mapping with the label 5 is read-only";
        assert!(error.starts_with(report), "{backend}: {error}");
    }
}

#[test]
fn fault_outside_windows_is_the_vmms_own() {
    let test = "fault_outside_windows_is_the_vmms_own";
    let Some((mut guest, remap)) = decorated(test, RemapOptions::new(Fixed)) else {
        return;
    };
    let barred = Memory::barred(1);
    create(guest.vm.as_ref(), figures(1, WINDOW, 1), &barred).unwrap();
    let error = text(guest.run(READ, WINDOW, 0).unwrap_err());
    assert_eq!(error, "Failed to run vcpu: VCPU error Error(14)");
    // With a window somewhere it may be that one's; it is found not to be.
    remap
        .open_window(GuestAddress(2 * WINDOW), PAGE_SIZE)
        .unwrap();
    let error = text(guest.run(READ, WINDOW, 0).unwrap_err());
    assert!(
        error.starts_with("Failed to run vcpu: cannot go on with the guest's access"),
        "{error}"
    );
}

#[test]
fn device_memory_beside_a_window_stays_the_vmms() {
    let test = "device_memory_beside_a_window_stays_the_vmms";
    let Some((mut guest, remap)) = decorated(test, RemapOptions::new(Fixed)) else {
        return;
    };
    let window = remap.open_window(GuestAddress(WINDOW), PAGE_SIZE).unwrap();
    let beside = WINDOW + PAGE_SIZE;
    assert_eq!(guest.run(READ, beside, 0).unwrap(), 0x5555_5555_5555_5555);
    // No slot lies under the window yet: what KVM leaves to the VMM there is the window's.
    assert_eq!(guest.run(READ, WINDOW, 0).unwrap(), u64::MAX);
    remap.close_window(window).unwrap();
    assert_eq!(guest.run(READ, WINDOW, 0).unwrap(), 0x5555_5555_5555_5555);
}
