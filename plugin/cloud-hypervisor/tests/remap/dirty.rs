//! Owns the tests of the dirty log with windows, over a recorded VM.

use std::sync::Arc;

use hypervisor::Vm;
use vm_remap::BackendKind::Fixed;
use vm_remap::{GuestAddress, PAGE_SIZE, PageRange};
use vm_remap_cloud_hypervisor::{RemapOptions, RemapVm};

use crate::memory::{Memory, create, figures, remove, text};
use crate::recorder::Recorder;

const BASE: u64 = 4 << 30;

struct Bench {
    recorder: Arc<Recorder>,
    vm: Arc<RemapVm>,
    memory: Memory,
}

/// Regions 7 at page 8 and 9 at page 100 of a window of 128 pages.
fn bench() -> Bench {
    let recorder = Recorder::alone();
    let vm = RemapVm::wrap(Arc::clone(&recorder) as _, RemapOptions::new(Fixed)).unwrap();
    vm.open_window(GuestAddress(BASE), 128 * PAGE_SIZE).unwrap();
    let memory = Memory::shared(8);
    create(vm.as_ref(), figures(7, at(8), 4), &memory).unwrap();
    create(vm.as_ref(), figures(9, at(100), 8), &memory).unwrap();
    recorder.names();
    Bench {
        recorder,
        vm,
        memory,
    }
}

fn at(page: u64) -> u64 {
    BASE + page * PAGE_SIZE
}

fn log(vm: &dyn Vm, slot: u32, page: u64, pages: u64) -> Vec<u64> {
    vm.get_dirty_log(slot, at(page), pages * PAGE_SIZE).unwrap()
}

#[test]
fn pages_that_the_guest_wrote_wait_for_the_region_that_asks() {
    let Bench { recorder, vm, .. } = bench();
    vm.start_dirty_log().unwrap();
    recorder
        .dirty
        .lock()
        .unwrap()
        .insert(BASE, vec![9, 103, 127]);
    assert_eq!(log(vm.as_ref(), 7, 8, 4), [0b10]);
    assert_eq!(log(vm.as_ref(), 7, 8, 4), [0]);
    recorder.dirty.lock().unwrap().insert(BASE, vec![100]);
    assert_eq!(log(vm.as_ref(), 9, 100, 8), [0b1001]);
    // What lies in no region waits for the VMM itself.
    let rest = vm
        .take_dirty_log(GuestAddress(at(120)), 8 * PAGE_SIZE)
        .unwrap();
    assert_eq!(rest, [0x80]);
}

#[test]
fn remaps_are_dirty_too() {
    let Bench { vm, memory, .. } = bench();
    vm.start_dirty_log().unwrap();
    remove(vm.as_ref(), figures(7, at(8), 4), &memory).unwrap();
    create(vm.as_ref(), figures(7, at(9), 2), &memory).unwrap();
    assert_eq!(log(vm.as_ref(), 7, 9, 2), [0b11]);
    assert_eq!(log(vm.as_ref(), 9, 100, 8), [0]);
    vm.windows()[0].mark_dirty(PageRange::new(102 * PAGE_SIZE, PAGE_SIZE).unwrap());
    assert_eq!(log(vm.as_ref(), 9, 100, 8), [0b100]);
}

#[test]
fn figures_of_the_log_are_those_of_the_region() {
    let Bench { vm, .. } = bench();
    let refused = |slot, page, pages: u64| {
        text(
            vm.get_dirty_log(slot, at(page), pages * PAGE_SIZE)
                .unwrap_err(),
        )
    };
    assert!(refused(7, 8, 4).ends_with("it is off; start the VM's first"));
    vm.start_dirty_log().unwrap();
    assert!(refused(7, 8, 5).contains("cannot take the dirty log of the region of 0x5000 bytes"));
    let outside = vm.take_dirty_log(GuestAddress(0), PAGE_SIZE).unwrap_err();
    assert_eq!(
        outside.to_string(),
        "cannot use the window at 0x0: it is not open in this VM"
    );
}

#[test]
fn log_of_other_regions_passes() {
    let Bench { recorder, vm, .. } = bench();
    recorder.dirty.lock().unwrap().insert(0x10_0000, vec![2]);
    assert_eq!(vm.get_dirty_log(1, 0x10_0000, 4 * PAGE_SIZE).unwrap(), [4]);
}

#[test]
fn log_that_does_not_start_is_off_everywhere() {
    let Bench { recorder, vm, .. } = bench();
    *recorder.start_fails.lock().unwrap() = true;
    vm.start_dirty_log().unwrap_err();
    assert_eq!(recorder.names(), ["stop_dirty_log"]);
    *recorder.start_fails.lock().unwrap() = false;
    // A window that logs already refuses to start.
    let second = vm.open_window(GuestAddress(2 * BASE), PAGE_SIZE).unwrap();
    second.start_dirty_log().unwrap();
    let error = vm.start_dirty_log().unwrap_err();
    assert!(text(error).contains("cannot start dirty logging: it is on already"));
    assert_eq!(recorder.names().last(), Some(&"stop_dirty_log"));
    second.stop_dirty_log().unwrap();
    vm.start_dirty_log().unwrap();
    assert_eq!(log(vm.as_ref(), 7, 8, 4), [0]);
}

#[test]
fn log_stops_and_starts_again_clean() {
    let Bench { recorder, vm, .. } = bench();
    vm.start_dirty_log().unwrap();
    recorder.dirty.lock().unwrap().insert(BASE, vec![9, 103]);
    assert_eq!(log(vm.as_ref(), 7, 8, 4), [0b10]);
    vm.stop_dirty_log().unwrap();
    // Once more is the hypervisor's to judge.
    vm.stop_dirty_log().unwrap();
    vm.start_dirty_log().unwrap();
    vm.start_dirty_log().unwrap();
    assert_eq!(log(vm.as_ref(), 9, 100, 8), [0]);
}

/// `KvmVm` creates a region without the flag, and sets it when the log is started.
#[test]
fn slots_that_come_while_the_log_is_on_are_logged() {
    let Bench {
        recorder,
        vm,
        memory,
    } = bench();
    vm.start_dirty_log().unwrap();
    let window = vm
        .open_window(GuestAddress(2 * BASE), 8 * PAGE_SIZE)
        .unwrap();
    recorder.names();
    create(vm.as_ref(), figures(5, 2 * BASE, 8), &memory).unwrap();
    assert_eq!(
        recorder.names(),
        ["create_user_memory_region", "start_dirty_log"]
    );
    assert!(window.slots()[0].logs_dirty_pages());
    assert_eq!(
        vm.get_dirty_log(5, 2 * BASE, 8 * PAGE_SIZE).unwrap(),
        [0xff]
    );
}
