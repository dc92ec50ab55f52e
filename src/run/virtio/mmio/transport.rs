//! Owns the register file: what each register reads, and what a write to it does. Never decides
//! whether a queue or a step of the driver is good (`queue`, `status`).

use std::sync::Arc;

use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_DEVICE_FEATURES,
    VIRTIO_MMIO_DEVICE_FEATURES_SEL, VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_DRIVER_FEATURES,
    VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS,
    VIRTIO_MMIO_MAGIC_VALUE, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, VIRTIO_MMIO_QUEUE_AVAIL_LOW,
    VIRTIO_MMIO_QUEUE_DESC_HIGH, VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NOTIFY,
    VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_NUM_MAX, VIRTIO_MMIO_QUEUE_READY,
    VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_HIGH, VIRTIO_MMIO_QUEUE_USED_LOW,
    VIRTIO_MMIO_SHM_BASE_HIGH, VIRTIO_MMIO_SHM_BASE_LOW, VIRTIO_MMIO_SHM_LEN_HIGH,
    VIRTIO_MMIO_SHM_LEN_LOW, VIRTIO_MMIO_SHM_SEL, VIRTIO_MMIO_STATUS, VIRTIO_MMIO_VENDOR_ID,
    VIRTIO_MMIO_VERSION,
};
use vm_device::MutDeviceMmio;
use vm_device::bus::MmioAddress;
use vm_memory::GuestMemoryMmap;

use super::MMIO_LEN;
use super::complaints::Complaints;
use super::device::{SharedMemoryRegion, VirtioDevice};
use super::interrupt::Interrupt;
use super::queue::{ActiveQueue, Part, QueueRegisters};
use super::status::{Status, Step};

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VENDOR: u32 = u32::from_le_bytes(*b"VRMP");
const VERSION: u32 = 2;

/// A device behind the registers of virtio-mmio.
#[derive(Debug)]
pub struct MmioTransport<D> {
    device: D,
    memory: GuestMemoryMmap,
    interrupt: Arc<Interrupt>,
    queues: Vec<QueueRegisters>,
    status: Status,
    device_features_page: u32,
    driver_features_page: u32,
    driver_features: u64,
    queue: u32,
    region: u32,
    /// Whether the device has been told to work since it was last reset.
    started: bool,
    complaints: Complaints,
}

impl<D: VirtioDevice> MmioTransport<D> {
    /// A transport for `device`, whose queues lie in `memory`, the guest's RAM, and which uses
    /// `interrupt`.
    pub fn new(device: D, memory: GuestMemoryMmap, interrupt: Arc<Interrupt>) -> Self {
        let queues = device.queue_sizes().iter();
        let queues = queues.map(|max| QueueRegisters::new(*max)).collect();
        Self {
            device,
            memory,
            interrupt,
            queues,
            status: Status::default(),
            device_features_page: 0,
            driver_features_page: 0,
            driver_features: 0,
            queue: 0,
            region: 0,
            started: false,
            complaints: Complaints::default(),
        }
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &D {
        &self.device
    }

    #[cfg(test)]
    pub(super) fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// The device's interrupt.
    #[must_use]
    pub fn interrupt(&self) -> &Arc<Interrupt> {
        &self.interrupt
    }

    fn register(&self, offset: u32) -> u32 {
        match offset {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.device.device_type(),
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => match self.device_features_page {
                0 => low(self.device.features()),
                1 => high(self.device.features()),
                _ => 0,
            },
            VIRTIO_MMIO_QUEUE_NUM_MAX => self.selected().map_or(0, |queue| queue.max().into()),
            VIRTIO_MMIO_QUEUE_READY => self.selected().map_or(0, |queue| queue.is_ready().into()),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.status(),
            VIRTIO_MMIO_STATUS if self.interrupt.is_reset_needed() => {
                self.status.bits() | VIRTIO_CONFIG_S_NEEDS_RESET
            }
            VIRTIO_MMIO_STATUS => self.status.bits(),
            VIRTIO_MMIO_SHM_LEN_LOW => low(self.shared_memory().len),
            VIRTIO_MMIO_SHM_LEN_HIGH => high(self.shared_memory().len),
            VIRTIO_MMIO_SHM_BASE_LOW => low(self.shared_memory().base),
            VIRTIO_MMIO_SHM_BASE_HIGH => high(self.shared_memory().base),
            VIRTIO_MMIO_CONFIG_GENERATION => self.interrupt.generation(),
            _ => 0,
        }
    }

    fn set_register(&mut self, offset: u32, value: u32) {
        match offset {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_page = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_page = value,
            VIRTIO_MMIO_DRIVER_FEATURES => self.take_features(value),
            VIRTIO_MMIO_QUEUE_SEL => self.queue = value,
            VIRTIO_MMIO_QUEUE_NOTIFY => self.notify(value),
            VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            VIRTIO_MMIO_STATUS => self.set_status(value),
            VIRTIO_MMIO_SHM_SEL => self.region = value,
            VIRTIO_MMIO_QUEUE_READY => self.set_queue_ready(value),
            _ => self.set_queue_register(offset, value),
        }
    }

    /// What a driver reads of a region that is not there is all ones.
    fn shared_memory(&self) -> SharedMemoryRegion {
        let absent = SharedMemoryRegion {
            base: u64::MAX,
            len: u64::MAX,
        };
        self.device.shared_memory(self.region).unwrap_or(absent)
    }

    fn selected(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::try_from(self.queue).ok()?)
    }

    fn selected_mut(&mut self) -> Option<&mut QueueRegisters> {
        self.queues.get_mut(usize::try_from(self.queue).ok()?)
    }

    fn take_features(&mut self, value: u32) {
        if !self.status.takes_features() {
            return;
        }
        let (value, taken) = (u64::from(value), self.driver_features);
        match self.driver_features_page {
            0 => self.driver_features = (taken & !0xffff_ffff) | value,
            1 => self.driver_features = (taken & 0xffff_ffff) | (value << 32),
            // There are no features beyond: a driver that takes one has taken what is not offered.
            _ if value != 0 => self.driver_features = u64::MAX,
            _ => {}
        }
    }

    fn features_are_good(&self) -> bool {
        let taken = self.driver_features;
        taken & !self.device.features() == 0 && taken & (1 << VIRTIO_F_VERSION_1) != 0
    }

    fn set_queue_register(&mut self, offset: u32, value: u32) {
        if !self.status.takes_queues() {
            return;
        }
        let Some(queue) = self.selected_mut().filter(|queue| !queue.is_ready()) else {
            return;
        };
        match offset {
            VIRTIO_MMIO_QUEUE_NUM => queue.set_size(value),
            VIRTIO_MMIO_QUEUE_DESC_LOW => queue.set_half(Part::Descriptors, false, value),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => queue.set_half(Part::Descriptors, true, value),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => queue.set_half(Part::Driver, false, value),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => queue.set_half(Part::Driver, true, value),
            VIRTIO_MMIO_QUEUE_USED_LOW => queue.set_half(Part::Device, false, value),
            VIRTIO_MMIO_QUEUE_USED_HIGH => queue.set_half(Part::Device, true, value),
            _ => {}
        }
    }

    fn set_queue_ready(&mut self, value: u32) {
        if !self.status.takes_queues() {
            return;
        }
        let (index, memory) = (self.queue, self.memory.clone());
        let Some(queue) = self.selected_mut() else {
            return;
        };
        queue.set_ready(value & 1 != 0);
        if !queue.is_ready() {
            return;
        }
        let refused = queue.check(0, &memory).err();
        queue.set_ready(refused.is_none());
        if let Some(refused) = refused {
            let name = self.device.name();
            let text = || format!("{name}: queue {index} of the guest's driver: {refused}");
            self.complaints.add(text);
        }
    }

    fn set_status(&mut self, value: u32) {
        let good = self.features_are_good();
        match self.status.write(value, good) {
            Step::Reset => self.reset(),
            Step::Start => self.start(),
            Step::Stay => {}
        }
    }

    fn start(&mut self) {
        self.started = true;
        let queues = (0u16..).zip(&self.queues);
        let ready = queues.filter(|(_, queue)| queue.is_ready());
        let checked = ready.map(|(index, queue)| queue.check(index, &self.memory));
        let queues: Vec<ActiveQueue> = checked.filter_map(Result::ok).collect();
        if let Err(error) = self.device.activate(self.driver_features, &queues) {
            self.interrupt.needs_reset();
            let name = self.device.name();
            let text = || format!("{name}: cannot start, until the guest resets it: {error}");
            self.complaints.add(text);
        }
    }

    fn reset(&mut self) {
        if std::mem::take(&mut self.started) {
            self.device.reset();
        }
        self.interrupt.reset();
        self.queues.iter_mut().for_each(QueueRegisters::reset);
        self.driver_features = 0;
        self.driver_features_page = 0;
        self.device_features_page = 0;
        self.queue = 0;
        self.region = 0;
    }

    fn notify(&mut self, queue: u32) {
        let index = usize::try_from(queue).ok();
        let known = index.and_then(|index| self.queues.get(index));
        if !self.started || !known.is_some_and(QueueRegisters::is_ready) {
            return;
        }
        if let Ok(queue) = u16::try_from(queue) {
            self.device.notify(queue);
        }
    }
}

impl<D: VirtioDevice> MutDeviceMmio for MmioTransport<D> {
    fn mmio_read(&mut self, _base: MmioAddress, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match Place::of(offset, data.len()) {
            Some(Place::Register(offset)) => {
                let value = self.register(offset).to_le_bytes();
                data.copy_from_slice(&value);
            }
            Some(Place::Config(offset)) => self.device.read_config(offset, data),
            None => {}
        }
    }

    fn mmio_write(&mut self, _base: MmioAddress, offset: u64, data: &[u8]) {
        match (Place::of(offset, data.len()), data.try_into()) {
            (Some(Place::Register(offset)), Ok(value)) => {
                self.set_register(offset, u32::from_le_bytes(value));
            }
            (Some(Place::Config(offset)), _) => self.device.write_config(offset, data),
            _ => {}
        }
    }
}

/// Where an access goes.
enum Place {
    /// A register: four bytes at a multiple of four.
    Register(u32),
    /// So many bytes into the configuration space.
    Config(u32),
}

impl Place {
    fn of(offset: u64, len: usize) -> Option<Self> {
        let end = offset.checked_add(u64::try_from(len).ok()?)?;
        let offset = u32::try_from(offset).ok()?;
        if end > MMIO_LEN || !matches!(len, 1 | 2 | 4 | 8) {
            return None;
        }
        match offset.checked_sub(VIRTIO_MMIO_CONFIG) {
            Some(offset) => Some(Self::Config(offset)),
            None if len == 4 && offset.is_multiple_of(4) => Some(Self::Register(offset)),
            None => None,
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "this is the half asked for"
)]
fn low(value: u64) -> u32 {
    value as u32
}

fn high(value: u64) -> u32 {
    low(value >> 32)
}
