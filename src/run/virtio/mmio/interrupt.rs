//! Owns a device's interrupt: what the guest finds in the registers when it comes, and the event
//! that raises it. Never reaches the interrupt controller itself.
//!
//! The line is a pulse: an event that the hypervisor turns into an edge (`KVM_IRQFD` without a
//! resample event). The guest has to be told of an edge-triggered line, and then loses none: each
//! pulse comes after the bit that it stands for.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// A device's interrupt, shared by the transport and whoever does the device's work.
#[derive(Debug)]
pub struct Interrupt {
    line: EventFd,
    pending: AtomicU32,
    always_used: AtomicBool,
    needs_reset: AtomicBool,
    generation: AtomicU32,
}

impl Interrupt {
    /// An interrupt that has nothing to say.
    ///
    /// # Errors
    /// What the kernel answers where it has no event to give.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            line: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
            pending: AtomicU32::new(0),
            always_used: AtomicBool::new(false),
            needs_reset: AtomicBool::new(false),
            generation: AtomicU32::new(0),
        })
    }

    /// The event that the hypervisor is to turn into an edge of the interrupt's line.
    #[must_use]
    pub fn line(&self) -> &EventFd {
        &self.line
    }

    /// Tells the driver that the device has used buffers.
    pub fn used_buffers(&self) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    /// Says that somebody else raises the line for used buffers and does not come by here: the
    /// driver then finds that reason in every interrupt, and looks at its queues.
    pub fn set_always_used(&self, always: bool) {
        self.always_used.store(always, Ordering::SeqCst);
    }

    /// Tells the driver that the configuration space has changed.
    pub fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    /// Tells the driver that the device does not work until it is reset.
    pub fn needs_reset(&self) {
        self.needs_reset.store(true, Ordering::SeqCst);
        self.config_changed();
    }

    /// Whether the device has to be reset.
    #[must_use]
    pub fn is_reset_needed(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    pub(super) fn status(&self) -> u32 {
        let always = self.always_used.load(Ordering::SeqCst);
        let used = if always { VIRTIO_MMIO_INT_VRING } else { 0 };
        self.pending.load(Ordering::SeqCst) | used
    }

    pub(super) fn acknowledge(&self, bits: u32) {
        self.pending.fetch_and(!bits, Ordering::SeqCst);
    }

    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Ordering::SeqCst)
    }

    /// The generation of the configuration space goes on.
    pub(super) fn reset(&self) {
        self.needs_reset.store(false, Ordering::SeqCst);
        self.always_used.store(false, Ordering::SeqCst);
        self.pending.store(0, Ordering::SeqCst);
    }

    fn raise(&self, bit: u32) {
        self.pending.fetch_or(bit, Ordering::SeqCst);
        // It is refused only where 2^64 - 1 pulses wait already.
        self.line.write(1).unwrap_or_default();
    }
}
