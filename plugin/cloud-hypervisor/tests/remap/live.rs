//! Owns the tests of regions and of the dirty log as a guest on KVM sees them.

use hypervisor::kvm::KvmVm;
use vm_remap::BackendKind::{Fixed, Memslot};
use vm_remap::{GuestAddress, PAGE_SIZE, Zap};
use vm_remap_cloud_hypervisor::{RemapOptions, RemapVm};

use crate::guest::{READ, WINDOW, WRITE, decorated, of_the_decorated_hypervisor};
use crate::memory::{Memory, create, figures, remove};

#[test]
fn guest_reads_and_writes_a_region_in_a_window() {
    let test = "guest_reads_and_writes_a_region_in_a_window";
    let Some((mut guest, remap)) = decorated(test, RemapOptions::new(Fixed)) else {
        return;
    };
    let window = remap.open_window(GuestAddress(WINDOW), 16 << 20).unwrap();
    let (first, second) = (Memory::shared(4), Memory::shared(4));
    first.store(PAGE_SIZE, &11_u64.to_le_bytes());
    second.store(0, &22_u64.to_le_bytes());
    create(guest.vm.as_ref(), figures(5, WINDOW, 4), &first).unwrap();
    guest.recorder.slots();
    assert_eq!(guest.run(READ, WINDOW + PAGE_SIZE, 0).unwrap(), 11);
    assert_eq!(guest.run(WRITE, WINDOW, 33).unwrap(), 33);
    assert_eq!(first.load(0), 33);
    for _ in 0..10 {
        remove(guest.vm.as_ref(), figures(5, WINDOW, 4), &first).unwrap();
        create(
            guest.vm.as_ref(),
            figures(5, WINDOW + PAGE_SIZE, 4),
            &second,
        )
        .unwrap();
        assert_eq!(guest.run(READ, WINDOW + PAGE_SIZE, 0).unwrap(), 22);
        remove(
            guest.vm.as_ref(),
            figures(5, WINDOW + PAGE_SIZE, 4),
            &second,
        )
        .unwrap();
        create(guest.vm.as_ref(), figures(5, WINDOW, 4), &first).unwrap();
        assert_eq!(guest.run(READ, WINDOW, 0).unwrap(), 33);
    }
    assert!(guest.recorder.slots().is_empty(), "the slot rests");
    assert_eq!(window.mappings().len(), 1);
}

#[test]
fn guest_of_the_decorated_hypervisor_runs_as_it_did() {
    let test = "guest_of_the_decorated_hypervisor_runs_as_it_did";
    for backend in [Fixed, Memslot] {
        let Some(mut guest) = of_the_decorated_hypervisor(test, RemapOptions::new(backend)) else {
            return;
        };
        assert!(guest.vm.as_any().is::<KvmVm>());
        let remap = RemapVm::of(guest.vm.as_ref()).unwrap();
        assert_eq!((remap.backend(), remap.zap()), (backend, Zap::All));
        // In RAM, with no window; and where nothing is, which the VMM's operations answer.
        guest.ram.store(0x10_0000, &7_u64.to_le_bytes());
        assert_eq!(guest.run(READ, 0x10_0000, 0).unwrap(), 7);
        let nothing = 0x5555_5555_5555_5555;
        assert_eq!(guest.run(READ, WINDOW, 0).unwrap(), nothing);
        // Under a plain region again.
        let memory = Memory::private(1);
        create(guest.vm.as_ref(), figures(1, WINDOW, 1), &memory).unwrap();
        assert_eq!(guest.run(WRITE, WINDOW, 44).unwrap(), 44);
        remove(guest.vm.as_ref(), figures(1, WINDOW, 1), &memory).unwrap();
        assert_eq!(guest.run(READ, WINDOW, 0).unwrap(), nothing);
    }
}

#[test]
fn private_memory_lies_in_a_window_too() {
    let test = "private_memory_lies_in_a_window_too";
    let Some((mut guest, remap)) = decorated(test, RemapOptions::new(Fixed)) else {
        return;
    };
    remap.open_window(GuestAddress(WINDOW), 16 << 20).unwrap();
    let (private, shared) = (Memory::private(4), Memory::shared(4));
    create(
        guest.vm.as_ref(),
        figures(5, WINDOW + (1 << 20), 4),
        &private,
    )
    .unwrap();
    create(guest.vm.as_ref(), figures(6, WINDOW, 4), &shared).unwrap();
    assert_eq!(guest.run(WRITE, WINDOW + (1 << 20), 5).unwrap(), 5);
    assert_eq!(guest.run(WRITE, WINDOW, 6).unwrap(), 6);
    remove(
        guest.vm.as_ref(),
        figures(5, WINDOW + (1 << 20), 4),
        &private,
    )
    .unwrap();
    assert_eq!(guest.run(READ, WINDOW + (1 << 20), 0).unwrap(), u64::MAX);
    assert_eq!(guest.run(READ, WINDOW, 0).unwrap(), 6);
}

#[test]
fn dirty_log_has_what_the_guest_wrote_and_what_was_remapped() {
    let test = "dirty_log_has_what_the_guest_wrote_and_what_was_remapped";
    for backend in [Fixed, Memslot] {
        let Some((mut guest, remap)) = decorated(test, RemapOptions::new(backend)) else {
            return;
        };
        remap.open_window(GuestAddress(WINDOW), 16 << 20).unwrap();
        let (first, second) = (Memory::shared(70), Memory::shared(4));
        let (one, two) = (figures(5, WINDOW, 70), figures(6, WINDOW + (1 << 20), 4));
        create(guest.vm.as_ref(), one, &first).unwrap();
        guest.vm.start_dirty_log().unwrap();
        create(guest.vm.as_ref(), two, &second).unwrap();
        guest.run(WRITE, WINDOW + 66 * PAGE_SIZE, 1).unwrap();
        let log = |slot: u32, at: u64, pages: u64| {
            let log = guest.vm.get_dirty_log(slot, at, pages * PAGE_SIZE);
            log.unwrap()
        };
        assert_eq!(log(5, WINDOW, 70), [0, 1 << 2], "{backend}");
        assert_eq!(log(6, two.guest, 4), [0b1111], "{backend}");
        assert_eq!(log(0, 0, 512)[4], 0);
        guest.run(WRITE, two.guest + PAGE_SIZE, 1).unwrap();
        guest.run(WRITE, 0x10_0000, 1).unwrap();
        let log = |slot: u32, at: u64, pages: u64| {
            let log = guest.vm.get_dirty_log(slot, at, pages * PAGE_SIZE);
            log.unwrap()
        };
        assert_eq!(log(0, 0, 512)[4], 1);
        assert_eq!(log(5, WINDOW, 70), [0, 0]);
        assert_eq!(log(6, two.guest, 4), [0b10], "{backend}");
        guest.vm.stop_dirty_log().unwrap();
        guest
            .vm
            .get_dirty_log(6, two.guest, 4 * PAGE_SIZE)
            .unwrap_err();
    }
}

/// The list that the hypervisor crate's dirty log is switched on from would create it otherwise.
#[test]
fn failed_creation_is_not_made_up_for_by_the_dirty_log() {
    let test = "failed_creation_is_not_made_up_for_by_the_dirty_log";
    let Some((mut guest, remap)) = decorated(test, RemapOptions::new(Fixed)) else {
        return;
    };
    let (in_the_way, memory) = (Memory::private(1), Memory::shared(4));
    let region = figures(1, WINDOW, 1);
    create(guest.vm.as_ref(), region, &in_the_way).unwrap();
    let window = remap.open_window(GuestAddress(WINDOW), 16 << 20).unwrap();
    create(
        guest.vm.as_ref(),
        figures(5, WINDOW + PAGE_SIZE, 4),
        &memory,
    )
    .unwrap_err();
    remap.close_window(window).unwrap();
    remove(guest.vm.as_ref(), region, &in_the_way).unwrap();
    guest.vm.start_dirty_log().unwrap();
    let nothing = 0x5555_5555_5555_5555;
    assert_eq!(guest.run(READ, WINDOW + PAGE_SIZE, 0).unwrap(), nothing);
}
