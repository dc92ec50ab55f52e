//! Owns the proofs of a device's life: started, reset, started again, its daemon killed and
//! restarted. Never asks how long anything takes.

use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_mmio::*;
use vm_remap_cli::run::virtio::mmio::VirtioDevice;

use crate::daemon::{Manner, OWN_FEATURES, Request};
use crate::driver::{Machine, VERSION_1, started, wait_for};

/// What `/proc` shows of a descriptor that a new program does not get.
const O_CLOEXEC: u32 = 0o200_0000;

const MAP: Request = Request::Map {
    offset: 0,
    len: 0x1000,
    fill: 5,
};

#[test]
fn a_request_is_answered_and_the_interrupt_says_so() {
    let (_machine, daemon, mut driver) = started();
    for queue in [0, 1] {
        for number in 0..20 {
            assert_eq!(driver.ask(queue, Request::Add(number)), number + 1);
            wait_for("an interrupt", || driver.interrupted());
            assert_eq!(driver.get(VIRTIO_MMIO_INTERRUPT_STATUS), 1);
            driver.set(VIRTIO_MMIO_INTERRUPT_ACK, 1);
        }
    }
    let features = daemon.notes.lock().unwrap().features;
    assert_eq!(features, VERSION_1 | 1 << 30 | OWN_FEATURES);
    daemon.kill();
}

#[test]
fn no_event_of_a_device_is_left_to_a_process_that_the_vmm_starts() {
    let (_machine, daemon, driver) = started();
    let device = driver.transport.device();
    let mut events = device.doorbells();
    events.extend(device.calls());
    events.push(driver.transport.interrupt().line());
    for event in events {
        let path = format!("/proc/self/fdinfo/{}", event.as_raw_fd());
        let text = std::fs::read_to_string(path).unwrap();
        let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = u32::from_str_radix(flags.unwrap().trim(), 8).unwrap();
        assert_ne!(flags & O_CLOEXEC, 0);
    }
    daemon.kill();
}

#[test]
fn a_reset_returns_holes_and_a_second_start_works() {
    let (machine, daemon, mut driver) = started();
    for turn in 1..4 {
        assert_eq!(driver.ask(0, MAP), 0);
        assert_eq!(machine.peek(0), Some(5));
        driver.reset();
        assert_eq!(machine.peek(0), None);
        assert_eq!(driver.get(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
        assert_eq!(daemon.notes.lock().unwrap().resets, turn);
        driver.start();
        assert_eq!(driver.status(), 15);
        assert_eq!(driver.ask(1, Request::Add(1)), 2);
    }
    daemon.kill();
}

#[test]
fn a_killed_daemon_leaves_holes_and_a_device_that_needs_a_reset() {
    let (machine, daemon, mut driver) = started();
    assert_eq!(driver.ask(0, MAP), 0);
    let generation = driver.get(VIRTIO_MMIO_CONFIG_GENERATION);
    daemon.kill();
    wait_for("the news", || driver.needs_reset());
    assert_eq!(machine.peek(0), None);
    assert!(driver.interrupted());
    assert_eq!(driver.get(VIRTIO_MMIO_INTERRUPT_STATUS) & 2, 2);
    assert_ne!(driver.get(VIRTIO_MMIO_CONFIG_GENERATION), generation);
    // The guest goes on as it likes.
    driver.send(0, Request::Add(1));
    assert_eq!(driver.config(0), [0_u8; 4]);
    driver.reset();
    assert_eq!(driver.status(), 0);
    // Nobody is there to start it.
    driver.start();
    assert!(driver.needs_reset());
}

#[test]
fn a_restarted_daemon_works_once_the_guest_has_reset_the_device() {
    let (machine, daemon, mut driver) = started();
    for _ in 0..2 {
        assert_eq!(driver.ask(0, MAP), 0);
    }
    daemon.kill();
    wait_for("the news", || driver.needs_reset());
    let again = machine.daemon(&Manner::default());
    // The configuration is readable as soon as the daemon is there.
    wait_for("the daemon", || driver.config(1) == [1_u8]);
    // Nothing starts behind the driver's back.
    assert!(driver.needs_reset());
    assert_eq!(again.notes.lock().unwrap().features, 0);
    driver.start();
    assert_eq!(driver.status(), 15);
    assert_eq!(driver.ask(0, MAP), 0);
    assert_eq!(machine.peek(0), Some(5));
    again.kill();
}

#[test]
fn a_daemon_that_comes_back_before_the_guest_starts_is_never_missed() {
    let machine = Machine::new();
    let daemon = machine.daemon(&Manner::default());
    let mut driver = machine.device(&machine.options()).unwrap();
    daemon.kill();
    let again = machine.daemon(&Manner::default());
    wait_for("the daemon", || {
        driver.start();
        !driver.needs_reset()
    });
    assert_eq!(driver.ask(0, Request::Add(3)), 4);
    again.kill();
}

#[test]
fn another_daemon_in_the_place_of_the_first_is_refused() {
    let (machine, daemon, mut driver) = started();
    daemon.kill();
    wait_for("the news", || driver.needs_reset());
    let other = machine.daemon(&Manner {
        region_len: 1 << 20,
        ..Manner::default()
    });
    // It is let go of again.
    other.kill();
    assert_eq!(driver.config(1), [0_u8]);
    let right = machine.daemon(&Manner::default());
    wait_for("the right daemon", || driver.config(1) == [1_u8]);
    driver.start();
    assert_eq!(driver.ask(0, Request::Add(3)), 4);
    right.kill();
}

#[test]
fn daemons_that_come_and_go_are_taken_on_once_a_second() {
    let (machine, mut daemon, mut driver) = started();
    let begun = Instant::now();
    for _ in 0..3 {
        // It listens already when the one before goes.
        let next = machine.daemon(&Manner::default());
        daemon.kill();
        wait_for("the next daemon", || driver.config(1) == [1_u8]);
        daemon = next;
    }
    assert!(begun.elapsed() >= Duration::from_secs(2));
    daemon.kill();
}

#[test]
fn a_device_that_goes_takes_its_thread_along_and_leaves_holes() {
    let (machine, daemon, mut driver) = started();
    assert_eq!(driver.ask(0, MAP), 0);
    driver.reset();
    drop(driver);
    let windows = std::mem::take(&mut *machine.windows.lock().unwrap());
    for window in windows {
        // Nobody else holds it.
        Arc::into_inner(window).unwrap().close().unwrap();
    }
    assert_eq!(machine.slots.registered(), 0);
    daemon.kill();
}
