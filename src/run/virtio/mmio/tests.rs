//! Owns the tests of the register file: a driver that does everything right, and one that does
//! anything at all. Never uses a real device.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "the tests compute with small figures of their own"
)]

use std::sync::Arc;

use proptest::prelude::*;
use virtio_bindings::virtio_mmio::*;
use vm_device::MutDeviceMmio;
use vm_device::bus::MmioAddress;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::*;

const FEATURES: u64 = (1 << 32) | (1 << 29) | 1;
const RAM: u64 = 1 << 20;
const BASE: MmioAddress = MmioAddress(0xd000_0000);

/// A device that writes down what it is told.
#[derive(Debug, Default)]
struct Notebook {
    active: Option<(u64, Vec<ActiveQueue>)>,
    resets: usize,
    notified: Vec<u16>,
    config: Vec<u8>,
    breaks: bool,
}

impl VirtioDevice for Notebook {
    fn name(&self) -> &'static str {
        "notebook"
    }

    fn device_type(&self) -> u32 {
        26
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn queue_sizes(&self) -> &[u16] {
        &[256, 64]
    }

    fn shared_memory(&self, id: u32) -> Option<SharedMemoryRegion> {
        (id == 1).then_some(SharedMemoryRegion {
            base: 0x12_3456_7000,
            len: 0x2_0000_0000,
        })
    }

    fn read_config(&mut self, offset: u32, data: &mut [u8]) {
        let offset = usize::try_from(offset).unwrap();
        for (at, byte) in data.iter_mut().enumerate() {
            *byte = self.config.get(offset + at).copied().unwrap_or(0);
        }
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) {
        let offset = usize::try_from(offset).unwrap();
        for (at, byte) in data.iter().enumerate() {
            if let Some(old) = self.config.get_mut(offset + at) {
                *old = *byte;
            }
        }
    }

    fn activate(&mut self, features: u64, queues: &[ActiveQueue]) -> Result<(), DeviceError> {
        assert!(self.active.is_none(), "it works already");
        self.active = Some((features, queues.to_vec()));
        if self.breaks {
            return Err("told to".into());
        }
        Ok(())
    }

    fn reset(&mut self) {
        assert!(self.active.take().is_some(), "it did not work");
        self.resets += 1;
    }

    fn notify(&mut self, queue: u16) {
        assert!(self.active.is_some(), "it does not work");
        self.notified.push(queue);
    }
}

struct Driver(MmioTransport<Notebook>);

impl Driver {
    fn new(device: Notebook) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap();
        let interrupt = Arc::new(Interrupt::new().unwrap());
        Self(MmioTransport::new(device, memory, interrupt))
    }

    fn get(&mut self, register: u32) -> u32 {
        let mut value = [0; 4];
        self.read(register.into(), &mut value);
        u32::from_le_bytes(value)
    }

    fn set(&mut self, register: u32, value: u32) {
        self.write(register.into(), &value.to_le_bytes());
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.0.mmio_read(BASE, offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.0.mmio_write(BASE, offset, data);
    }

    fn pairs(&mut self, low: u32) -> u64 {
        u64::from(self.get(low)) | (u64::from(self.get(low + 4)) << 32)
    }

    /// What Linux does from finding the device until its features are settled.
    fn settle_features(&mut self, features: u64) {
        self.set(VIRTIO_MMIO_STATUS, 0);
        self.set(VIRTIO_MMIO_STATUS, 1);
        self.set(VIRTIO_MMIO_STATUS, 3);
        self.set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
        self.set(VIRTIO_MMIO_DRIVER_FEATURES, (features >> 32) as u32);
        self.set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
        self.set(VIRTIO_MMIO_DRIVER_FEATURES, features as u32);
        self.set(VIRTIO_MMIO_STATUS, 11);
    }

    fn set_queue_up(&mut self, queue: u32, size: u32, at: u64) {
        self.set(VIRTIO_MMIO_QUEUE_SEL, queue);
        assert_eq!(self.get(VIRTIO_MMIO_QUEUE_READY), 0);
        self.set(VIRTIO_MMIO_QUEUE_NUM, size);
        let parts = [
            (VIRTIO_MMIO_QUEUE_DESC_LOW, at),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, at + 0x1000),
            (VIRTIO_MMIO_QUEUE_USED_LOW, at + 0x2000),
        ];
        for (low, address) in parts {
            self.set(low, address as u32);
            self.set(low + 4, (address >> 32) as u32);
        }
        self.set(VIRTIO_MMIO_QUEUE_READY, 1);
    }

    fn start(&mut self) {
        self.settle_features(FEATURES);
        self.set_queue_up(0, 128, 0x4000);
        self.set_queue_up(1, 64, 0x8000);
        self.set(VIRTIO_MMIO_STATUS, 15);
    }
}

#[test]
fn a_driver_finds_the_device_and_starts_it() {
    let mut driver = Driver::new(Notebook::default());
    assert_eq!(driver.get(VIRTIO_MMIO_MAGIC_VALUE), 0x7472_6976);
    assert_eq!(driver.get(VIRTIO_MMIO_VERSION), 2);
    assert_eq!(driver.get(VIRTIO_MMIO_DEVICE_ID), 26);
    assert_ne!(driver.get(VIRTIO_MMIO_VENDOR_ID), 0);
    let mut offered = 0;
    for page in [1, 0] {
        driver.set(VIRTIO_MMIO_DEVICE_FEATURES_SEL, page);
        offered = offered << 32 | u64::from(driver.get(VIRTIO_MMIO_DEVICE_FEATURES));
    }
    assert_eq!(offered, FEATURES);
    driver.settle_features(FEATURES);
    assert_eq!(driver.get(VIRTIO_MMIO_STATUS), 11);
    for (queue, max) in [(0, 256), (1, 64), (2, 0), (u32::MAX, 0)] {
        driver.set(VIRTIO_MMIO_QUEUE_SEL, queue);
        assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_NUM_MAX), max);
    }
    driver.set_queue_up(0, 128, 0x4000);
    assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_READY), 1);
    driver.set(VIRTIO_MMIO_STATUS, 15);
    let (features, queues) = driver.0.device().active.clone().unwrap();
    assert_eq!(features, FEATURES);
    let expected = ActiveQueue {
        index: 0,
        size: 128,
        descriptors: GuestAddress(0x4000),
        driver: GuestAddress(0x5000),
        device: GuestAddress(0x6000),
    };
    assert_eq!(queues, [expected]);
    // What nobody set up is not notified.
    for queue in [0, 1, 7, 0x1_0000] {
        driver.set(VIRTIO_MMIO_QUEUE_NOTIFY, queue);
    }
    assert_eq!(driver.0.device().notified, [0]);
}

#[test]
fn features_that_are_not_offered_are_not_taken() {
    let mut driver = Driver::new(Notebook::default());
    for features in [FEATURES | 1 << 40, FEATURES | 2, FEATURES & !(1 << 32), 0] {
        driver.settle_features(features);
        assert_eq!(driver.get(VIRTIO_MMIO_STATUS), 3, "{features:#x}");
        driver.set(VIRTIO_MMIO_STATUS, 15);
        assert_eq!(driver.0.device().active, None);
    }
    driver.settle_features(0);
    driver.set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
    driver.set(VIRTIO_MMIO_DRIVER_FEATURES, 1);
    driver.set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 2);
    driver.set(VIRTIO_MMIO_DRIVER_FEATURES, 1);
    driver.set(VIRTIO_MMIO_STATUS, 11);
    assert_eq!(driver.get(VIRTIO_MMIO_STATUS), 3);
}

#[test]
fn a_region_is_found_by_its_number_and_an_absent_one_is_all_ones() {
    let mut driver = Driver::new(Notebook::default());
    for id in [0, 2, 256, u32::MAX] {
        driver.set(VIRTIO_MMIO_SHM_SEL, id);
        assert_eq!(driver.pairs(VIRTIO_MMIO_SHM_LEN_LOW), u64::MAX);
        assert_eq!(driver.pairs(VIRTIO_MMIO_SHM_BASE_LOW), u64::MAX);
    }
    driver.set(VIRTIO_MMIO_SHM_SEL, 1);
    assert_eq!(driver.pairs(VIRTIO_MMIO_SHM_LEN_LOW), 0x2_0000_0000);
    assert_eq!(driver.pairs(VIRTIO_MMIO_SHM_BASE_LOW), 0x12_3456_7000);
}

#[test]
fn interrupts_say_why_and_are_acknowledged() {
    let mut driver = Driver::new(Notebook::default());
    driver.start();
    let interrupt = Arc::clone(driver.0.interrupt());
    interrupt.used_buffers();
    interrupt.config_changed();
    assert_eq!(interrupt.line().read().unwrap(), 2);
    assert_eq!(driver.get(VIRTIO_MMIO_INTERRUPT_STATUS), 3);
    assert_eq!(driver.get(VIRTIO_MMIO_CONFIG_GENERATION), 1);
    driver.set(VIRTIO_MMIO_INTERRUPT_ACK, 1);
    assert_eq!(driver.get(VIRTIO_MMIO_INTERRUPT_STATUS), 2);
    interrupt.set_always_used(true);
    driver.set(VIRTIO_MMIO_INTERRUPT_ACK, 3);
    assert_eq!(driver.get(VIRTIO_MMIO_INTERRUPT_STATUS), 1);
    driver.set(VIRTIO_MMIO_STATUS, 0);
    assert_eq!(driver.get(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

#[test]
fn a_device_that_breaks_asks_for_a_reset_and_starts_again_after_it() {
    let mut driver = Driver::new(Notebook {
        breaks: true,
        ..Notebook::default()
    });
    driver.start();
    assert_eq!(driver.get(VIRTIO_MMIO_STATUS), 15 | 64);
    assert_eq!(driver.get(VIRTIO_MMIO_INTERRUPT_STATUS), 2);
    driver.0.device_mut().breaks = false;
    // Linux writes back what it has read.
    driver.set(VIRTIO_MMIO_STATUS, 15 | 64);
    assert_eq!(driver.get(VIRTIO_MMIO_STATUS), 15 | 64);
    driver.start();
    assert_eq!(driver.get(VIRTIO_MMIO_STATUS), 15);
    assert_eq!(driver.0.device().resets, 1);
    assert!(driver.0.device().active.is_some());
}

#[test]
fn a_reset_forgets_what_the_driver_wrote() {
    let mut driver = Driver::new(Notebook::default());
    driver.start();
    driver.set(VIRTIO_MMIO_STATUS, 0);
    driver.set(VIRTIO_MMIO_STATUS, 0);
    assert_eq!(driver.0.device().resets, 1);
    driver.settle_features(FEATURES);
    driver.set(VIRTIO_MMIO_STATUS, 15);
    assert_eq!(driver.0.device().active, Some((FEATURES, vec![])));
}

#[test]
fn queues_move_only_while_they_may() {
    let mut driver = Driver::new(Notebook::default());
    // Before the features are settled.
    driver.set(VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_READY), 0);
    driver.settle_features(FEATURES);
    // Outside RAM, and where it is not aligned.
    for at in [RAM - 0x800, RAM, 1 << 40, u64::MAX - 0x2fff, 0x4001] {
        driver.set_queue_up(0, 128, at);
        assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_READY), 0, "{at:#x}");
    }
    driver.set_queue_up(0, 128, 0x4000);
    // While it is ready.
    driver.set(VIRTIO_MMIO_QUEUE_DESC_LOW, 0x7000);
    driver.set(VIRTIO_MMIO_STATUS, 15);
    // While the device works.
    driver.set(VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_READY), 1);
    let (_, queues) = driver.0.device().active.clone().unwrap();
    assert_eq!(queues[0].descriptors, GuestAddress(0x4000));
}

#[test]
fn the_configuration_space_takes_each_width() {
    let mut driver = Driver::new(Notebook {
        config: (0..16).collect(),
        ..Notebook::default()
    });
    let mut read = |offset: u64, len: usize| {
        let mut data = vec![0xff; len];
        driver.read(0x100 + offset, &mut data);
        data
    };
    assert_eq!(read(3, 1), [3]);
    assert_eq!(read(4, 2), [4, 5]);
    assert_eq!(read(8, 4), [8, 9, 10, 11]);
    assert_eq!(read(8, 8), [8, 9, 10, 11, 12, 13, 14, 15]);
    assert_eq!(read(14, 4), [14, 15, 0, 0]);
    // No such width, and beyond the end.
    assert_eq!(read(0, 3), [0, 0, 0]);
    assert_eq!(read(0xeff, 2), [0, 0]);
    driver.write(0x102, &[42]);
    driver.write(0x10c, &[1, 2, 3]);
    assert_eq!(driver.0.device().config[2], 42);
    assert_eq!(driver.0.device().config[12], 12);
}

#[test]
fn a_register_is_four_bytes_at_its_own_place() {
    let mut driver = Driver::new(Notebook::default());
    for (offset, len) in [(0, 1), (0, 2), (0, 8), (1, 4), (2, 4), (0xfe, 4), (0, 0)] {
        let mut data = vec![0xff; len];
        driver.read(offset, &mut data);
        assert_eq!(data, vec![0; len], "{offset:#x}");
    }
    driver.write(VIRTIO_MMIO_STATUS.into(), &[1]);
    driver.write(VIRTIO_MMIO_STATUS.into(), &[1; 8]);
    driver.write(u64::MAX, &[1; 4]);
    assert_eq!(driver.get(VIRTIO_MMIO_STATUS), 0);
}

#[derive(Clone, Debug)]
enum Act {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    Set(u32, u32),
    Start,
    Break,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let offset = prop_oneof![0u64..0x200, 0xff0u64..0x1010, any::<u64>()];
    let register = (0u32..0x40).prop_map(|at| at * 4);
    let value = prop_oneof![0u32..16, Just(0x4000), Just(64), any::<u32>()];
    let act = prop_oneof![
        2 => (offset.clone(), 0usize..10).prop_map(|(at, len)| Act::Read(at, len)),
        2 => (offset, proptest::collection::vec(any::<u8>(), 0..10))
            .prop_map(|(at, data)| Act::Write(at, data)),
        8 => (register, value).prop_map(|(at, value)| Act::Set(at, value)),
        1 => Just(Act::Start),
        1 => Just(Act::Break),
    ];
    proptest::collection::vec(act, 0..200)
}

proptest! {
    /// The notebook panics when it is started twice, or reset or notified while it does not work.
    #[test]
    fn whatever_a_driver_does_the_device_is_used_in_order(acts in acts()) {
        let mut driver = Driver::new(Notebook { config: vec![0; 32], ..Notebook::default() });
        for act in acts {
            match act {
                Act::Read(at, len) => driver.read(at, &mut vec![0xff; len]),
                Act::Write(at, data) => driver.write(at, &data),
                Act::Set(at, value) => driver.set(at, value),
                Act::Start => driver.start(),
                Act::Break => driver.0.interrupt().needs_reset(),
            }
            let status = driver.get(VIRTIO_MMIO_STATUS);
            let active = driver.0.device().active.as_ref();
            prop_assert_eq!(status & 4 != 0, active.is_some());
            prop_assert!(status & 4 == 0 || status & 11 == 11);
            for queue in active.map_or(&[][..], |(_, queues)| queues) {
                prop_assert!(queue.size.is_power_of_two() && queue.size <= 256);
                prop_assert!(queue.descriptors.0 < RAM && queue.device.0 < RAM);
            }
            if let Some((features, _)) = active {
                prop_assert_eq!(features & !FEATURES, 0);
            }
        }
    }
}
