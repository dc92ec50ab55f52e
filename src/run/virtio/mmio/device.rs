//! Owns what a device is to the transport. Never touches a register.

use std::error::Error;

use vmm_sys_util::eventfd::EventFd;

use super::queue::ActiveQueue;

/// Why a device cannot do its work. It is logged, and the guest finds a device that needs a reset.
pub type DeviceError = Box<dyn Error + Send + Sync>;

/// A shared memory region of a device: guest addresses that the driver finds through the transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedMemoryRegion {
    /// The guest-physical address of its first byte.
    pub base: u64,
    /// Its length in bytes.
    pub len: u64,
}

/// A virtio device, without its transport. All calls come one after another.
pub trait VirtioDevice: Send {
    /// What the log calls it.
    fn name(&self) -> &str;

    /// The kind of device (VIRTIO 1.2, 5).
    fn device_type(&self) -> u32;

    /// The feature bits that the driver may take. Bit 32 (`VIRTIO_F_VERSION_1`) has to be among them.
    fn features(&self) -> u64;

    /// The greatest size of each queue, in descriptors: powers of two, at most 32768.
    fn queue_sizes(&self) -> &[u16];

    /// The shared memory region with this number, if there is one.
    fn shared_memory(&self, id: u32) -> Option<SharedMemoryRegion> {
        let _ = id;
        None
    }

    /// Fills `data` from the configuration space, with zeros where it has nothing. `data` is 1, 2, 4
    /// or 8 bytes.
    fn read_config(&mut self, offset: u32, data: &mut [u8]);

    /// Takes what the driver writes to the configuration space, and ignores what cannot be written.
    fn write_config(&mut self, offset: u32, data: &[u8]) {
        let _ = (offset, data);
    }

    /// Starts the work: the driver took `features`, and set `queues` up, which lie in the guest's
    /// RAM.
    ///
    /// # Errors
    /// Whatever keeps the device from working. The guest finds a device that needs a reset.
    fn activate(&mut self, features: u64, queues: &[ActiveQueue]) -> Result<(), DeviceError>;

    /// Ends the work that [`activate`](Self::activate) started, also where that failed. When it
    /// returns, nothing of the guest's memory is touched any more, and shared memory regions are
    /// empty.
    fn reset(&mut self);

    /// The driver has put buffers into a queue, and the hypervisor did not ring its doorbell.
    fn notify(&mut self, queue: u16);

    /// What stands for a driver's notification, one event for each queue: the hypervisor can
    /// trigger it itself.
    fn doorbells(&self) -> Vec<&EventFd> {
        Vec::new()
    }

    /// Events that stand for the device's interrupt, beside [`Interrupt::line`]: whoever does the
    /// work triggers them.
    ///
    /// [`Interrupt::line`]: super::Interrupt::line
    fn calls(&self) -> Vec<&EventFd> {
        Vec::new()
    }
}
