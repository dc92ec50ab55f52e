//! Owns the tests of regions inside, outside and across windows, over a recorded VM.

use std::sync::Arc;

use vm_remap::BackendKind::{Fixed, Memslot};
use vm_remap::{GuestAddress, PAGE_SIZE, PageRange, Protection};
use vm_remap_cloud_hypervisor::{RemapOptions, RemapVm};

use crate::memory::{Figures, Memory, as_vm, create, create_at, figures, remove, text};
use crate::recorder::Recorder;

const BASE: u64 = 4 << 30;
const PAGES: u64 = 64;

fn wrapped(options: RemapOptions) -> (Arc<Recorder>, Arc<RemapVm>) {
    let recorder = Recorder::alone();
    let vm = RemapVm::wrap(Arc::clone(&recorder) as _, options).unwrap();
    (recorder, vm)
}

fn fixed() -> (Arc<Recorder>, Arc<RemapVm>) {
    wrapped(RemapOptions::new(Fixed))
}

fn page(number: u64) -> u64 {
    BASE + number * PAGE_SIZE
}

#[test]
fn region_outside_windows_passes_as_it_is() {
    for backend in [Fixed, Memslot] {
        let (recorder, remap) = wrapped(RemapOptions::new(backend));
        let vm = as_vm(&remap);
        let memory = Memory::private(4);
        let own = Figures {
            read_only: true,
            ..figures(3, 0x10_0000, 4)
        };
        create(vm.as_ref(), own, &memory).unwrap();
        remove(vm.as_ref(), own, &memory).unwrap();
        let calls = recorder.slots();
        assert_eq!(calls.len(), 2);
        for (call, creates) in calls.iter().zip([true, false]) {
            assert_eq!(
                (call.creates, call.slot, call.guest),
                (creates, 3, 0x10_0000)
            );
            assert_eq!(
                (call.len, call.read_only, call.logged),
                (4 << 12, true, true)
            );
        }
    }
}

#[test]
fn region_in_a_window_becomes_a_mapping_and_its_slot_rests() {
    let (recorder, remap) = fixed();
    let vm = as_vm(&remap);
    let window = remap
        .open_window(GuestAddress(BASE), PAGES * PAGE_SIZE)
        .unwrap();
    let memory = Memory::shared(4);
    for turn in 0..3 {
        let own = Figures {
            read_only: turn == 1,
            ..figures(7, page(8 + turn), 4)
        };
        create(vm.as_ref(), own, &memory).unwrap();
        let mappings = window.mappings();
        let range = PageRange::new((8 + turn) * PAGE_SIZE, 4 * PAGE_SIZE).unwrap();
        assert_eq!((mappings.len(), mappings[0].range()), (1, range));
        assert_eq!(mappings[0].label(), 7);
        assert_eq!(
            mappings[0].protection() == Protection::ReadOnly,
            own.read_only
        );
        remove(vm.as_ref(), own, &memory).unwrap();
        assert!(window.mappings().is_empty());
    }
    // The window's one segment, under a number of the windows', logged from its creation on.
    let calls = recorder.slots();
    assert_eq!(calls.len(), 1);
    assert_eq!(
        (calls[0].guest, calls[0].len),
        (BASE, (PAGES * PAGE_SIZE) as usize)
    );
    assert!(calls[0].slot > 16_000 && calls[0].logged && calls[0].creates);
    remap.close_window(window).unwrap();
    assert!(recorder.slots().iter().all(|call| !call.creates));
    assert!(remap.windows().is_empty());
}

#[test]
fn private_memory_in_a_window_gets_a_slot_of_its_own_unless_that_is_forbidden() {
    let memory = Memory::private(4);
    let own = figures(7, page(8), 4);
    let (recorder, remap) = fixed();
    let window = remap
        .open_window(GuestAddress(BASE), PAGES * PAGE_SIZE)
        .unwrap();
    create(as_vm(&remap).as_ref(), own, &memory).unwrap();
    assert!(
        recorder
            .slots()
            .iter()
            .any(|call| call.guest == page(8) && call.len == own.len)
    );
    assert_eq!(window.counters().fallbacks, 1);

    let (_, remap) = wrapped(RemapOptions::new(Fixed).fallback(false));
    remap
        .open_window(GuestAddress(BASE), PAGES * PAGE_SIZE)
        .unwrap();
    let error = create(as_vm(&remap).as_ref(), own, &memory).unwrap_err();
    assert!(text(error).contains("it is private memory"));
}

#[test]
fn region_over_the_border_of_a_window_is_refused() {
    let (recorder, remap) = fixed();
    let vm = as_vm(&remap);
    remap
        .open_window(GuestAddress(BASE), PAGES * PAGE_SIZE)
        .unwrap();
    let memory = Memory::shared(PAGES + 2);
    for (guest, pages) in [
        (BASE - PAGE_SIZE, 2),
        (page(PAGES - 1), 2),
        (BASE - PAGE_SIZE, PAGES + 2),
    ] {
        let error = create(vm.as_ref(), figures(7, guest, pages), &memory).unwrap_err();
        assert_eq!(
            text(error),
            format!(
                "Failed to create user memory: cannot create a region of {:#x} bytes at guest \
                 address {guest:#x}: it reaches over the border of the window of 0x40000 bytes at \
                 0x100000000; keep it inside, or outside",
                pages * PAGE_SIZE
            )
        );
    }
    assert!(recorder.slots().is_empty());
    for guest in [BASE - PAGE_SIZE, page(PAGES)] {
        create(vm.as_ref(), figures(8, guest, 1), &memory).unwrap();
        remove(vm.as_ref(), figures(8, guest, 1), &memory).unwrap();
    }
    assert_eq!(recorder.slots().len(), 4);
}

#[test]
fn removal_with_other_figures_is_refused() {
    let (_, remap) = fixed();
    let vm = as_vm(&remap);
    let window = remap
        .open_window(GuestAddress(BASE), PAGES * PAGE_SIZE)
        .unwrap();
    let (memory, other) = (Memory::shared(4), Memory::shared(4));
    let own = figures(7, page(8), 4);
    create(vm.as_ref(), own, &memory).unwrap();
    let wrong = [
        figures(7, page(9), 4),
        figures(7, page(8), 3),
        Figures {
            read_only: true,
            ..own
        },
    ];
    for figures in wrong {
        let error = remove(vm.as_ref(), figures, &memory).unwrap_err();
        assert!(text(error).ends_with(
            "the one with this number has 0x4000 bytes at 0x100008000, or other host memory; pass \
             the figures that it was created with"
        ));
    }
    remove(vm.as_ref(), own, &other).unwrap_err();
    let error = remove(vm.as_ref(), figures(9, page(8), 4), &memory).unwrap_err();
    assert_eq!(
        text(error),
        "Failed to remove user memory: cannot remove the region of 0x4000 bytes at guest address \
         0x100008000: it lies in the window at 0x100000000, and none was created with the memslot \
         number 9"
    );
    assert_eq!(window.mappings().len(), 1);
    remove(vm.as_ref(), own, &memory).unwrap();
}

#[test]
fn number_of_a_region_in_a_window_is_taken_until_it_is_removed() {
    let (recorder, remap) = fixed();
    let vm = as_vm(&remap);
    remap
        .open_window(GuestAddress(BASE), PAGES * PAGE_SIZE)
        .unwrap();
    let memory = Memory::shared(4);
    create(vm.as_ref(), figures(7, page(8), 4), &memory).unwrap();
    recorder.slots();
    for guest in [page(20), 0x10_0000] {
        let error = create(vm.as_ref(), figures(7, guest, 4), &memory).unwrap_err();
        assert!(text(error).ends_with(
            "the region of 0x4000 bytes at guest address 0x100008000 has it; remove that first"
        ));
    }
    assert!(recorder.slots().is_empty());
}

#[test]
fn numbers_of_windows_are_refused_to_the_vmm() {
    let (recorder, remap) = fixed();
    let vm = as_vm(&remap);
    let memory = Memory::shared(1);
    remap
        .open_window(GuestAddress(BASE), PAGES * PAGE_SIZE)
        .unwrap();
    let own = figures(32_763, 0, 1);
    let errors = [
        create(vm.as_ref(), own, &memory).unwrap_err(),
        remove(vm.as_ref(), own, &memory).unwrap_err(),
        vm.get_dirty_log(own.slot, 0, PAGE_SIZE).unwrap_err(),
    ];
    for error in errors {
        assert!(text(error).ends_with(
            "cannot use memslot 32763 beside windows: the numbers from 16382 on are theirs; use a \
             lower one"
        ));
    }
    assert!(recorder.slots().is_empty() && recorder.names().is_empty());
}

#[test]
fn region_without_host_memory_or_whole_pages_is_refused() {
    let (_, remap) = fixed();
    let vm = as_vm(&remap);
    remap
        .open_window(GuestAddress(BASE), PAGES * PAGE_SIZE)
        .unwrap();
    let error = create_at(vm.as_ref(), figures(7, page(8), 1), std::ptr::null_mut()).unwrap_err();
    assert!(text(error).ends_with("its host address is 0"));
    let memory = Memory::shared(1);
    let odd = Figures {
        len: 100,
        ..figures(7, page(8), 1)
    };
    let error = create(vm.as_ref(), odd, &memory).unwrap_err();
    assert!(text(error).contains("cannot use 0x64 bytes at 0x8000"));
    let nothing = Figures { len: 0, ..odd };
    create(vm.as_ref(), nothing, &memory).unwrap_err();
}

#[test]
fn failed_creation_leaves_nothing_behind() {
    let (recorder, remap) = fixed();
    let vm = as_vm(&remap);
    let window = remap
        .open_window(GuestAddress(BASE), PAGES * PAGE_SIZE)
        .unwrap();
    let memory = Memory::shared(4);
    let own = figures(7, page(8), 4);
    *recorder.refused.lock().unwrap() = Some(BASE);
    for _ in 0..3 {
        let error = create(vm.as_ref(), own, &memory).unwrap_err();
        // The number that KVM gave stands at the end of the causes.
        assert!(
            text(error).ends_with(&std::io::Error::from_raw_os_error(libc::EEXIST).to_string())
        );
    }
    assert!(window.mappings().is_empty());
    // Each creation that failed is followed by a removal: the hypervisor crate notes a region for
    // its dirty log before it creates it.
    let calls = recorder.slots();
    assert_eq!(calls.len(), 6);
    assert!(
        calls
            .chunks(2)
            .all(|pair| pair[0].creates && !pair[1].creates)
    );
    assert!(calls.iter().all(|call| call.slot == calls[0].slot));
    *recorder.refused.lock().unwrap() = None;
    create(vm.as_ref(), own, &memory).unwrap();
    assert_eq!(recorder.slots()[0].slot, calls[0].slot);
}

#[test]
fn window_over_another_is_refused() {
    let (_, remap) = fixed();
    remap
        .open_window(GuestAddress(BASE), PAGES * PAGE_SIZE)
        .unwrap();
    let error = remap
        .open_window(GuestAddress(page(1)), PAGE_SIZE)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot place a window of 0x1000 bytes at guest address 0x100001000: the window of 0x40000 \
         bytes at 0x100000000 lies there; close that, or choose another place"
    );
    assert_eq!(error.errno(), libc::EEXIST);
}

#[test]
fn window_with_regions_or_with_other_handles_stays_open() {
    let (_, remap) = fixed();
    let vm = as_vm(&remap);
    let window = remap
        .open_window(GuestAddress(BASE), PAGES * PAGE_SIZE)
        .unwrap();
    let memory = Memory::shared(4);
    let own = figures(7, page(8), 4);
    create(vm.as_ref(), own, &memory).unwrap();
    let error = remap.close_window(Arc::clone(&window)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot close the window at 0x100000000: 1 regions lie in it; remove them first"
    );
    remove(vm.as_ref(), own, &memory).unwrap();
    let error = remap.close_window(Arc::clone(&window)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot close the window at 0x100000000: something else still holds it; let go of it first"
    );
    assert_eq!(error.errno(), libc::EBUSY);
    create(vm.as_ref(), own, &memory).unwrap();
    remove(vm.as_ref(), own, &memory).unwrap();
    remap.close_window(window).unwrap();
}

#[test]
fn closed_windows_give_their_numbers_back() {
    let (recorder, remap) = fixed();
    let vm = as_vm(&remap);
    let memory = Memory::shared(1);
    let mut first = None;
    for _ in 0..100 {
        let window = remap
            .open_window(GuestAddress(BASE), PAGES * PAGE_SIZE)
            .unwrap();
        create(vm.as_ref(), figures(7, page(8), 1), &memory).unwrap();
        let slot = recorder.slots()[0].slot;
        assert_eq!(*first.get_or_insert(slot), slot);
        remove(vm.as_ref(), figures(7, page(8), 1), &memory).unwrap();
        remap.close_window(window).unwrap();
    }
}

#[test]
fn regions_follow_a_window_that_moves() {
    let (_, remap) = fixed();
    let vm = as_vm(&remap);
    let window = remap
        .open_window(GuestAddress(BASE), PAGES * PAGE_SIZE)
        .unwrap();
    let memory = Memory::shared(4);
    create(vm.as_ref(), figures(7, page(8), 4), &memory).unwrap();
    let other = remap
        .open_window(GuestAddress(3 * BASE), PAGE_SIZE)
        .unwrap();
    let error = remap.relocate_window(&window, GuestAddress(3 * BASE));
    assert_eq!(error.unwrap_err().errno(), libc::EEXIST);
    remap.close_window(other).unwrap();
    // Over itself is no obstacle.
    remap
        .relocate_window(&window, GuestAddress(page(1)))
        .unwrap();
    remap
        .relocate_window(&window, GuestAddress(2 * BASE))
        .unwrap();
    remove(vm.as_ref(), figures(7, page(8), 4), &memory).unwrap_err();
    remove(vm.as_ref(), figures(7, BASE + page(8), 4), &memory).unwrap();
    assert!(window.mappings().is_empty());
}

#[test]
fn memslot_windows_make_a_slot_of_each_region() {
    let (recorder, remap) = wrapped(RemapOptions::new(Memslot));
    let vm = as_vm(&remap);
    remap
        .open_window(GuestAddress(BASE), PAGES * PAGE_SIZE)
        .unwrap();
    let memory = Memory::private(4);
    let own = Figures {
        read_only: true,
        ..figures(7, page(8), 4)
    };
    create(vm.as_ref(), own, &memory).unwrap();
    remove(vm.as_ref(), own, &memory).unwrap();
    let calls = recorder.slots();
    assert_eq!(calls.len(), 2);
    // KVM's `Vm` refuses to log what the guest cannot write.
    assert!(
        calls
            .iter()
            .all(|call| call.guest == page(8) && call.read_only && !call.logged)
    );
}
