//! Owns the registers of one queue, and whether what they say can be used. Never reads a ring.

use thiserror::Error;
use vm_memory::{GuestAddress, GuestMemoryBackend};

/// A queue that the driver has set up. Its rings are aligned, and each lies in one piece of RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActiveQueue {
    /// Which queue of the device it is.
    pub index: u16,
    /// How many descriptors it has: a power of two.
    pub size: u16,
    /// Where the descriptor table lies.
    pub descriptors: GuestAddress,
    /// Where the driver puts what is available.
    pub driver: GuestAddress,
    /// Where the device puts what it has used.
    pub device: GuestAddress,
}

impl ActiveQueue {
    /// The three parts: what they are called, where they lie, how many bytes they have, and what
    /// their address is a multiple of (VIRTIO 1.2, 2.7).
    fn parts(&self) -> [(&'static str, GuestAddress, usize, u64); 3] {
        let size = usize::from(self.size);
        let ring = |entry: usize| size.saturating_mul(entry).saturating_add(6);
        [
            (
                "descriptor table",
                self.descriptors,
                size.saturating_mul(16),
                16,
            ),
            ("available ring", self.driver, ring(2), 2),
            ("used ring", self.device, ring(8), 4),
        ]
    }
}

/// Why a queue cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub(super) enum QueueError {
    #[error("cannot use {size} descriptors: the size must be a power of two up to {max}")]
    Size { size: u32, max: u16 },
    #[error("cannot use a {part} at {at:#x}: the address must be a multiple of {align}")]
    Align {
        part: &'static str,
        at: u64,
        align: u64,
    },
    #[error("cannot use a {part} of {len:#x} bytes at {at:#x}: it must lie in RAM, in one piece")]
    Place {
        part: &'static str,
        at: u64,
        len: usize,
    },
}

/// Which address a register has a half of.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part {
    Descriptors,
    Driver,
    Device,
}

/// What the driver has written of one queue.
#[derive(Debug)]
pub(super) struct QueueRegisters {
    max: u16,
    size: u32,
    descriptors: u64,
    driver: u64,
    device: u64,
    ready: bool,
}

impl QueueRegisters {
    pub(super) fn new(max: u16) -> Self {
        Self {
            max,
            size: u32::from(max),
            descriptors: 0,
            driver: 0,
            device: 0,
            ready: false,
        }
    }

    pub(super) fn max(&self) -> u16 {
        self.max
    }

    pub(super) fn is_ready(&self) -> bool {
        self.ready
    }

    pub(super) fn set_ready(&mut self, ready: bool) {
        self.ready = ready;
    }

    pub(super) fn set_size(&mut self, size: u32) {
        self.size = size;
    }

    pub(super) fn set_half(&mut self, part: Part, high: bool, value: u32) {
        let address = match part {
            Part::Descriptors => &mut self.descriptors,
            Part::Driver => &mut self.driver,
            Part::Device => &mut self.device,
        };
        let value = u64::from(value);
        *address = if high {
            (*address & 0xffff_ffff) | (value << 32)
        } else {
            (*address & !0xffff_ffff) | value
        };
    }

    pub(super) fn reset(&mut self) {
        *self = Self::new(self.max);
    }

    /// The queue, if a device can use it.
    pub(super) fn check(
        &self,
        index: u16,
        memory: &impl GuestMemoryBackend,
    ) -> Result<ActiveQueue, QueueError> {
        let (size, max) = (self.size, self.max);
        let fits = u16::try_from(size).ok();
        let fits = fits.filter(|fits| fits.is_power_of_two() && *fits <= max);
        let queue = ActiveQueue {
            index,
            size: fits.ok_or(QueueError::Size { size, max })?,
            descriptors: GuestAddress(self.descriptors),
            driver: GuestAddress(self.driver),
            device: GuestAddress(self.device),
        };
        for (part, address, len, align) in queue.parts() {
            let at = address.0;
            if !at.is_multiple_of(align) {
                return Err(QueueError::Align { part, at, align });
            }
            if memory.get_slice(address, len).is_err() {
                return Err(QueueError::Place { part, at, len });
            }
        }
        Ok(queue)
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestMemoryMmap;

    use super::*;

    fn registers() -> QueueRegisters {
        let mut registers = QueueRegisters::new(256);
        registers.set_half(Part::Descriptors, false, 0x1000);
        registers.set_half(Part::Driver, false, 0x2000);
        registers.set_half(Part::Device, false, 0x3000);
        registers
    }

    fn memory() -> GuestMemoryMmap {
        // Two pieces, side by side: a ring must not reach from one into the other.
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x4000), (GuestAddress(0x4000), 0x4000)])
            .unwrap()
    }

    #[test]
    fn check_takes_what_lies_in_ram() {
        let queue = registers().check(1, &memory()).unwrap();
        assert_eq!((queue.index, queue.size), (1, 256));
        assert_eq!(queue.device, GuestAddress(0x3000));
    }

    #[test]
    fn check_refuses_the_rest_and_names_the_figures() {
        let text = |change: fn(&mut QueueRegisters)| {
            let mut registers = registers();
            change(&mut registers);
            registers.check(0, &memory()).unwrap_err().to_string()
        };
        for size in [0, 3, 512, 0x1_0001] {
            let mut registers = registers();
            registers.set_size(size);
            let refused = registers.check(0, &memory()).unwrap_err();
            assert_eq!(refused, QueueError::Size { size, max: 256 });
        }
        assert_eq!(
            text(|queue| queue.set_size(3)),
            "cannot use 3 descriptors: the size must be a power of two up to 256"
        );
        assert_eq!(
            text(|queue| queue.set_half(Part::Device, false, 0x3002)),
            "cannot use a used ring at 0x3002: the address must be a multiple of 4"
        );
        assert_eq!(
            text(|queue| queue.set_half(Part::Descriptors, false, 0x3800)),
            "cannot use a descriptor table of 0x1000 bytes at 0x3800: it must lie in RAM, in one \
             piece"
        );
        assert!(text(|queue| queue.set_half(Part::Driver, true, u32::MAX)).contains("in RAM"));
        let top = |queue: &mut QueueRegisters| {
            queue.set_half(Part::Driver, true, u32::MAX);
            queue.set_half(Part::Driver, false, u32::MAX - 1);
        };
        assert!(text(top).contains("in RAM"));
    }
}
