//! Owns the tests of the way back to holes. Never sends a message by hand.

use std::sync::Arc;
use std::thread;

use vhost::vhost_user::VhostUserFrontendReqHandler;
use vhost::vhost_user::message::VhostUserMMap;
use vm_remap::vhost_user::{Refusal, ShmemHandler};
use vm_remap::{Error, GuestAddress, OnPinned, Slot, SlotNumbers, SlotProvider, WindowOptions};

use crate::recorder::Recorder;
use crate::support::*;

#[test]
fn reset_returns_every_window_to_a_hole_and_the_device_goes_on() {
    let device = Device::new();
    let handler = device.handler();
    for round in 1..4 {
        for page in [0, 3, 60] {
            handler
                .shmem_map(&request(page, 2), &blob(2, round))
                .unwrap();
            let other = VhostUserMMap {
                shmid: 5,
                ..request(page, 1)
            };
            handler.shmem_map(&other, &blob(1, round)).unwrap();
        }
        handler.reset().unwrap();
        assert_eq!(device.seen(), []);
        assert!(
            device
                .windows
                .iter()
                .all(|window| window.mappings().is_empty())
        );
        let counters = handler.counters();
        assert_eq!((counters.mappings, counters.bytes), (0, 0));
        assert_eq!(counters.resets, u64::from(round));
    }
}

#[test]
fn pinned_mapping_outlives_a_reset_and_keeps_new_ones_out() {
    let recorder = Arc::new(Recorder::default());
    let window = WindowOptions::new(GuestAddress(4 << 30), SIZE)
        .on_pinned(OnPinned::Refuse)
        .open(recorder, SlotNumbers::new(8..16))
        .unwrap();
    let window = Arc::new(window);
    let handler = ShmemHandler::new([(0, Arc::clone(&window))]);
    let file = blob(4, 1);
    for page in [0, 4, 8] {
        handler.shmem_map(&request(page, 4), &file).unwrap();
    }
    let pin = window.pin(range(5, 1)).unwrap();
    let error = handler.reset().unwrap_err();
    assert_eq!((error.region, error.left), (0, 1));
    assert!(matches!(error.source, Error::Pinned { .. }));
    let left: Vec<_> = window.mappings().iter().map(|one| one.range()).collect();
    assert_eq!(left, [range(4, 4)]);
    let mut byte = [0];
    pin.read(0, &mut byte).unwrap();
    assert_eq!(byte, [2]);

    let refused = handler.shmem_map(&request(20, 1), &file).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(16));
    let refusal = handler.take_refusal().unwrap();
    assert!(matches!(refusal, Refusal::ResetPending { region: 0 }));
    drop(pin);
    handler.reset().unwrap();
    assert!(window.mappings().is_empty());
    handler.shmem_map(&request(20, 1), &file).unwrap();
    let counters = handler.counters();
    assert_eq!((counters.resets, counters.failed_resets), (1, 1));
    assert_eq!((counters.mappings, counters.refused_busy), (1, 1));
}

#[test]
fn change_of_pinned_memory_is_answered_with_ebusy() {
    let recorder = Arc::new(Recorder::default());
    let window = WindowOptions::new(GuestAddress(4 << 30), SIZE)
        .on_pinned(OnPinned::Refuse)
        .open(recorder, SlotNumbers::new(8..16))
        .unwrap();
    let window = Arc::new(window);
    let handler = ShmemHandler::new([(0, Arc::clone(&window))]);
    handler.shmem_map(&request(0, 4), &blob(4, 1)).unwrap();
    let pin = window.pin(range(1, 1)).unwrap();
    let error = handler.shmem_unmap(&request(0, 4)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(16));
    drop(pin);
    handler.shmem_unmap(&request(0, 4)).unwrap();
}

#[test]
fn resets_and_requests_of_many_threads_leave_books_that_agree_with_the_windows() {
    let device = Device::new();
    let handler = &device.handler();
    thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                let file = blob(4, 1);
                for round in 0..200 {
                    let page = (round * 7 + thread * 13) % 60;
                    // Whatever they are answered with.
                    handler.shmem_map(&request(page, 1 + page % 4), &file).ok();
                    handler.shmem_unmap(&request(page, 1 + round % 4)).ok();
                    if round % 16 == 0 {
                        handler.reset().unwrap();
                    }
                }
            });
        }
    });
    let counters = handler.counters();
    let mappings = device.window().mappings();
    let bytes: u64 = mappings.iter().map(|one| one.range().len()).sum();
    assert_eq!(counters.mappings, mappings.len() as u64);
    assert_eq!(counters.bytes, bytes);
    assert!(counters.maps > 0 && counters.unmaps > 0);
}

/// A hypervisor whose crate has a bug.
#[derive(Debug)]
struct Panics;

#[expect(unsafe_code, reason = "the provider trait is unsafe to implement")]
// SAFETY: it never gives the guest any memory.
unsafe impl SlotProvider for Panics {
    unsafe fn register(&self, _: &Slot) -> std::io::Result<()> {
        panic!("told to");
    }

    fn unregister(&self, _: &Slot) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn panic_under_the_lock_leaves_a_handler_that_refuses() {
    let window = WindowOptions::new(GuestAddress(4 << 30), SIZE)
        .open(Arc::new(Panics), SlotNumbers::new(8..16))
        .unwrap();
    let handler = Arc::new(ShmemHandler::new([(0, Arc::new(window))]));
    let other = Arc::clone(&handler);
    let panicked = thread::spawn(move || other.shmem_map(&request(0, 1), &blob(1, 1)));
    panicked.join().unwrap_err();
    let error = handler.shmem_map(&request(0, 1), &blob(1, 1)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5));
    let error = handler.reset().unwrap_err();
    assert!(matches!(error.source, Error::Poisoned));
    assert_eq!(handler.counters().mappings, 0);
}
