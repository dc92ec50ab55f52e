//! Owns the short ways between a guest and a device's work: doorbells and interrupts that KVM hands
//! over without asking the VMM. Never creates an interrupt controller.

use kvm_ioctls::{IoEventAddress, VmFd};
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY;
use vmm_sys_util::errno;

use super::device::VirtioDevice;
use super::transport::MmioTransport;

/// Connects the device at guest address `base` with `vm`: each doorbell with the notification of its
/// queue, and what whoever does the work triggers with line `gsi` of the interrupt controller.
/// [`Interrupt::line`] is the machine's to connect, with the same line. The guest has to be told
/// that the line is edge-triggered, and that nobody else uses it.
///
/// # Errors
/// What KVM answers: it has no interrupt controller, or an event is connected already. What was
/// connected before that stays connected for as long as the device lives.
///
/// [`Interrupt::line`]: super::Interrupt::line
pub fn connect<D: VirtioDevice>(
    transport: &MmioTransport<D>,
    vm: &VmFd,
    base: u64,
    gsi: u32,
) -> Result<(), errno::Error> {
    let doorbell = base.saturating_add(u64::from(VIRTIO_MMIO_QUEUE_NOTIFY));
    let doorbell = IoEventAddress::Mmio(doorbell);
    for (queue, event) in (0u32..).zip(transport.device().doorbells()) {
        vm.register_ioevent(event, &doorbell, queue)?;
    }
    for event in transport.device().calls() {
        vm.register_irqfd(event, gsi)?;
    }
    Ok(())
}
