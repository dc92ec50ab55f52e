//! Owns the virtio-mmio transport, version 2 (VIRTIO 1.2, 4.2.2): the registers through which a
//! guest's driver finds a device, sets it up and resets it. Never does a device's work, and knows no
//! kind of device.
//!
//! A device is a [`VirtioDevice`] in an [`MmioTransport`]. The machine gives the transport the
//! guest's accesses to [`MMIO_LEN`] bytes of guest addresses, and connects one interrupt
//! ([`Interrupt::line`], [`connect`]).
//!
//! **Who is believed.** Nobody: an access of the wrong width, at the wrong place or at the wrong
//! time reads as zero and writes nothing. What a guest can make the transport log is bounded.

mod complaints;
mod device;
mod interrupt;
mod kvm;
mod queue;
mod status;
#[cfg(test)]
mod tests;
mod transport;

pub use device::{DeviceError, SharedMemoryRegion, VirtioDevice};
pub use interrupt::Interrupt;
pub use kvm::connect;
pub use queue::ActiveQueue;
pub use transport::MmioTransport;

/// How many bytes of guest addresses a device takes.
pub const MMIO_LEN: u64 = 0x1000;
