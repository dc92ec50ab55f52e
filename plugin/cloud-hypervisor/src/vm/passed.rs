//! Owns cloud-hypervisor's `Vm` as a decorated VM has it: what passes, and where a window comes
//! first. Never opens a window.

// UNSAFETY: the trait's own memory calls are unsafe functions.
#![expect(unsafe_code, reason = "the hypervisor's memory calls are unsafe")]

use std::any::Any;
use std::sync::Arc;

use hypervisor::arch::x86::VcpuMsrConfigUpdate;
use hypervisor::{
    ClockData, ClockRestoreMode, ClockState, DataMatch, HypervisorVmError, InterruptSourceConfig,
    IoEventAddress, IrqRoutingEntry, Vcpu, Vm, VmOps,
};
use vfio_ioctls::VfioDeviceFd;
use vm_remap::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use super::RemapVm;
use crate::error::RemapError;
use crate::ops::WindowOps;
use crate::registry::Region;
use crate::vcpu::RemapVcpu;

type Result<T> = std::result::Result<T, HypervisorVmError>;

fn region(slot: u32, guest: u64, len: usize, host: *mut u8, read_only: bool) -> Region {
    Region {
        slot,
        guest: GuestAddress(guest),
        // A usize has at most 64 bits.
        len: len as u64,
        host,
        read_only,
    }
}

// A method with a body of its own in the trait would hide the decorated one.
#[deny(clippy::missing_trait_methods)]
impl Vm for RemapVm {
    fn create_vcpu(
        &self,
        id: u32,
        vm_ops: Option<Arc<dyn VmOps>>,
        msr_config_update: Option<VcpuMsrConfigUpdate>,
    ) -> Result<Box<dyn Vcpu>> {
        if let Some(ops) = &vm_ops {
            self.faults.ram.is_read_with(ops);
        }
        let ops = Arc::new(WindowOps::new(vm_ops, &self.faults));
        let own = Arc::clone(&ops) as Arc<dyn VmOps>;
        let vcpu = self.inner.create_vcpu(id, Some(own), msr_config_update)?;
        Ok(Box::new(RemapVcpu::new(vcpu, ops, &self.faults)))
    }

    unsafe fn create_user_memory_region(
        &self,
        slot: u32,
        guest_phys_addr: u64,
        memory_size: usize,
        userspace_addr: *mut u8,
        readonly: bool,
        log_dirty_pages: bool,
    ) -> Result<()> {
        let own = region(slot, guest_phys_addr, memory_size, userspace_addr, readonly);
        let mut registry = self.registry();
        // SAFETY: the caller promises that the memory stays valid until the region is removed, and
        // the guest writes there: nothing in the VMM may refer to it.
        let mapped = unsafe { registry.map(&own) };
        let refused = |error: RemapError| HypervisorVmError::CreateUserMemory(error.into());
        if mapped.map_err(refused)? {
            return Ok(());
        }
        // SAFETY: the caller promises the same for the decorated VM.
        unsafe {
            self.inner.create_user_memory_region(
                slot,
                guest_phys_addr,
                memory_size,
                userspace_addr,
                readonly,
                log_dirty_pages,
            )
        }
    }

    unsafe fn remove_user_memory_region(
        &self,
        slot: u32,
        guest_phys_addr: u64,
        memory_size: usize,
        userspace_addr: *mut u8,
        readonly: bool,
        log_dirty_pages: bool,
    ) -> Result<()> {
        let own = region(slot, guest_phys_addr, memory_size, userspace_addr, readonly);
        let mut registry = self.registry();
        let refused = |error: RemapError| HypervisorVmError::RemoveUserMemory(error.into());
        if registry.unmap(&own).map_err(refused)? {
            return Ok(());
        }
        // SAFETY: the caller promises the same for the decorated VM.
        unsafe {
            self.inner.remove_user_memory_region(
                slot,
                guest_phys_addr,
                memory_size,
                userspace_addr,
                readonly,
                log_dirty_pages,
            )
        }
    }

    fn start_dirty_log(&self) -> Result<()> {
        self.start_logs()
    }

    fn stop_dirty_log(&self) -> Result<()> {
        self.stop_logs()
    }

    fn get_dirty_log(&self, slot: u32, base_gpa: u64, memory_size: u64) -> Result<Vec<u64>> {
        let guest = GuestAddress(base_gpa);
        let log = self
            .registry()
            .dirty_of(slot, guest, memory_size, &self.slots);
        match log.map_err(|error| HypervisorVmError::GetDirtyLog(error.into()))? {
            Some(log) => Ok(log),
            None => self.inner.get_dirty_log(slot, base_gpa, memory_size),
        }
    }

    fn as_any(&self) -> &dyn Any {
        self.inner.as_any()
    }

    fn set_identity_map_address(&self, address: u64) -> Result<()> {
        self.inner.set_identity_map_address(address)
    }

    fn set_tss_address(&self, offset: usize) -> Result<()> {
        self.inner.set_tss_address(offset)
    }

    fn create_irq_chip(&self) -> Result<()> {
        self.inner.create_irq_chip()
    }

    fn register_irqfd(&self, fd: &EventFd, gsi: u32) -> Result<()> {
        self.inner.register_irqfd(fd, gsi)
    }

    fn unregister_irqfd(&self, fd: &EventFd, gsi: u32) -> Result<()> {
        self.inner.unregister_irqfd(fd, gsi)
    }

    fn register_ioevent(
        &self,
        fd: &EventFd,
        addr: &IoEventAddress,
        datamatch: Option<DataMatch>,
    ) -> Result<()> {
        self.inner.register_ioevent(fd, addr, datamatch)
    }

    fn unregister_ioevent(&self, fd: &EventFd, addr: &IoEventAddress) -> Result<()> {
        self.inner.unregister_ioevent(fd, addr)
    }

    fn make_routing_entry(&self, gsi: u32, config: &InterruptSourceConfig) -> IrqRoutingEntry {
        self.inner.make_routing_entry(gsi, config)
    }

    fn set_gsi_routing(&self, entries: &[IrqRoutingEntry]) -> Result<()> {
        self.inner.set_gsi_routing(entries)
    }

    fn enable_split_irq(&self) -> Result<()> {
        self.inner.enable_split_irq()
    }

    fn enable_x2apic_api(&self) -> Result<()> {
        self.inner.enable_x2apic_api()
    }

    fn get_clock(&self) -> Result<ClockData> {
        self.inner.get_clock()
    }

    fn set_clock(&self, data: &ClockData) -> Result<()> {
        self.inner.set_clock(data)
    }

    fn snapshot_clock(&self, boot_vcpu: &dyn Vcpu) -> Result<Option<ClockState>> {
        self.inner.snapshot_clock(boot_vcpu)
    }

    fn restore_clock(
        &self,
        vcpus: &[&dyn Vcpu],
        state: &ClockState,
        mode: ClockRestoreMode,
    ) -> Result<()> {
        self.inner.restore_clock(vcpus, state, mode)
    }

    fn create_passthrough_device(&self) -> Result<VfioDeviceFd> {
        self.inner.create_passthrough_device()
    }

    fn init(&self) -> Result<()> {
        self.inner.init()
    }

    fn pause(&self) -> Result<()> {
        self.inner.pause()
    }

    fn resume(&self) -> Result<()> {
        self.inner.resume()
    }
}
