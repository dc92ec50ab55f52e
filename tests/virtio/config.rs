//! Owns the proofs of what a driver finds in a device: features, queues, configuration. Never starts
//! a queue.

use virtio_bindings::virtio_mmio::*;
use vm_device::MutDeviceMmio;
use vm_device::bus::MmioAddress;

use crate::daemon::{Manner, OWN_FEATURES, REGION, REGION_LEN};
use crate::driver::{Machine, VERSION_1, WINDOW, started};

#[test]
fn a_driver_finds_what_the_daemon_offers_and_the_transport_can_do() {
    let machine = Machine::new();
    let daemon = machine.daemon(&Manner::default());
    let mut driver = machine.device(&machine.options()).unwrap();
    assert_eq!(driver.get(VIRTIO_MMIO_DEVICE_ID), 26);
    // Neither the protocol's own bit nor notifications with data.
    assert_eq!(driver.features(), VERSION_1 | OWN_FEATURES);
    for (queue, most) in [(0, 256), (1, 256), (2, 0)] {
        driver.set(VIRTIO_MMIO_QUEUE_SEL, queue);
        assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_NUM_MAX), most);
    }
    assert_eq!(driver.region(REGION), (WINDOW, REGION_LEN));
    assert_eq!(driver.region(0), (u64::MAX, u64::MAX));
    drop(driver);
    daemon.kill();
}

#[test]
fn the_configuration_is_the_daemons() {
    let (_machine, daemon, mut driver) = started();
    assert_eq!(driver.config(0), [0_u8, 1, 2, 3]);
    assert_eq!(driver.config(5), [5_u8]);
    assert_eq!(driver.config(8), [8_u8, 9, 10, 11, 12, 13, 14, 15]);
    // The daemon refuses what it does not have, and goes on.
    assert_eq!(driver.config(16), [0_u8; 4]);
    driver.transport.mmio_write(MmioAddress(0), 0x104, &[77]);
    driver.transport.mmio_write(MmioAddress(0), 0x200, &[77]);
    assert_eq!(driver.config(4), [77_u8, 5]);
    assert_eq!(daemon.notes.lock().unwrap().config[4], 77);
    assert_eq!(driver.status(), 15);
    daemon.kill();
}
