//! Owns a VM that writes down what it is asked, and answers itself or asks KVM's. Never changes what
//! it passes.

// UNSAFETY: the trait's own memory calls are unsafe functions.
#![expect(unsafe_code, reason = "the hypervisor's memory calls are unsafe")]

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use anyhow::anyhow;
use hypervisor::arch::x86::VcpuMsrConfigUpdate;
use hypervisor::{
    ClockData, ClockRestoreMode, ClockState, DataMatch, HypervisorVmError, InterruptSourceConfig,
    IoEventAddress, IrqRoutingEntry, Vcpu, Vm, VmOps,
};
use vfio_ioctls::VfioDeviceFd;
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::EventFd;

use crate::script::{Script, Scripted};

type Result<T> = std::result::Result<T, HypervisorVmError>;

/// A memslot call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotCall {
    pub creates: bool,
    pub slot: u32,
    pub guest: u64,
    pub len: usize,
    pub read_only: bool,
    pub logged: bool,
}

#[derive(Default)]
pub struct Recorder {
    inner: Option<Arc<dyn Vm>>,
    names: Mutex<Vec<&'static str>>,
    slots: Mutex<Vec<SlotCall>>,
    /// Regions at this guest address fail to be created.
    pub refused: Mutex<Option<u64>>,
    pub start_fails: Mutex<bool>,
    /// What `get_dirty_log` answers, by guest address of the slot: pages of it.
    pub dirty: Mutex<BTreeMap<u64, Vec<u64>>>,
    /// What its vCPUs do, where it answers itself.
    pub script: Arc<Script>,
}

impl Recorder {
    pub fn alone() -> Arc<Self> {
        Arc::default()
    }

    pub fn around(inner: Arc<dyn Vm>) -> Arc<Self> {
        Arc::new(Self {
            inner: Some(inner),
            ..Self::default()
        })
    }

    /// The names of the calls since the last time.
    pub fn names(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.names.lock().unwrap())
    }

    /// The memslot calls since the last time.
    pub fn slots(&self) -> Vec<SlotCall> {
        std::mem::take(&mut self.slots.lock().unwrap())
    }

    fn asked<T>(
        &self,
        name: &'static str,
        passed: impl FnOnce(&dyn Vm) -> Result<T>,
        own: impl FnOnce() -> T,
    ) -> Result<T> {
        self.names.lock().unwrap().push(name);
        match &self.inner {
            Some(inner) => passed(inner.as_ref()),
            None => Ok(own()),
        }
    }
}

fn refuse(make: fn(anyhow::Error) -> HypervisorVmError, number: i32) -> HypervisorVmError {
    make(errno::Error::new(number).into())
}

impl Vm for Recorder {
    unsafe fn create_user_memory_region(
        &self,
        slot: u32,
        guest: u64,
        len: usize,
        host: *mut u8,
        read_only: bool,
        logged: bool,
    ) -> Result<()> {
        self.slots.lock().unwrap().push(SlotCall {
            creates: true,
            slot,
            guest,
            len,
            read_only,
            logged,
        });
        if *self.refused.lock().unwrap() == Some(guest) {
            return Err(refuse(HypervisorVmError::CreateUserMemory, libc::EEXIST));
        }
        self.asked(
            "create_user_memory_region",
            // SAFETY: the caller's promise is the same.
            |vm| unsafe { vm.create_user_memory_region(slot, guest, len, host, read_only, logged) },
            || (),
        )
    }

    unsafe fn remove_user_memory_region(
        &self,
        slot: u32,
        guest: u64,
        len: usize,
        host: *mut u8,
        read_only: bool,
        logged: bool,
    ) -> Result<()> {
        self.slots.lock().unwrap().push(SlotCall {
            creates: false,
            slot,
            guest,
            len,
            read_only,
            logged,
        });
        self.asked(
            "remove_user_memory_region",
            // SAFETY: the caller's promise is the same.
            |vm| unsafe { vm.remove_user_memory_region(slot, guest, len, host, read_only, logged) },
            || (),
        )
    }

    fn start_dirty_log(&self) -> Result<()> {
        if *self.start_fails.lock().unwrap() {
            return Err(refuse(HypervisorVmError::StartDirtyLog, libc::ENOMEM));
        }
        self.asked("start_dirty_log", |vm| vm.start_dirty_log(), || ())
    }

    fn stop_dirty_log(&self) -> Result<()> {
        self.asked("stop_dirty_log", |vm| vm.stop_dirty_log(), || ())
    }

    fn get_dirty_log(&self, slot: u32, guest: u64, len: u64) -> Result<Vec<u64>> {
        let own = || {
            let mut words = vec![0; (len / 4096).div_ceil(64) as usize];
            for page in self
                .dirty
                .lock()
                .unwrap()
                .remove(&guest)
                .unwrap_or_default()
            {
                *words.get_mut((page / 64) as usize).unwrap() |= 1 << (page % 64);
            }
            words
        };
        self.asked(
            "get_dirty_log",
            |vm| vm.get_dirty_log(slot, guest, len),
            own,
        )
    }

    fn as_any(&self) -> &dyn Any {
        self.inner.as_ref().map_or(self, |inner| inner.as_any())
    }

    fn create_vcpu(
        &self,
        id: u32,
        ops: Option<Arc<dyn VmOps>>,
        update: Option<VcpuMsrConfigUpdate>,
    ) -> Result<Box<dyn Vcpu>> {
        let Some(inner) = &self.inner else {
            let script = Arc::clone(&self.script);
            return Ok(Box::new(Scripted { script, ops }));
        };
        inner.create_vcpu(id, ops, update)
    }

    fn set_identity_map_address(&self, at: u64) -> Result<()> {
        self.asked(
            "set_identity_map_address",
            |vm| vm.set_identity_map_address(at),
            || (),
        )
    }

    fn set_tss_address(&self, at: usize) -> Result<()> {
        self.asked("set_tss_address", |vm| vm.set_tss_address(at), || ())
    }

    fn create_irq_chip(&self) -> Result<()> {
        self.asked("create_irq_chip", |vm| vm.create_irq_chip(), || ())
    }

    fn register_irqfd(&self, fd: &EventFd, gsi: u32) -> Result<()> {
        self.asked("register_irqfd", |vm| vm.register_irqfd(fd, gsi), || ())
    }

    fn unregister_irqfd(&self, fd: &EventFd, gsi: u32) -> Result<()> {
        self.asked("unregister_irqfd", |vm| vm.unregister_irqfd(fd, gsi), || ())
    }

    fn register_ioevent(
        &self,
        fd: &EventFd,
        addr: &IoEventAddress,
        datamatch: Option<DataMatch>,
    ) -> Result<()> {
        self.asked(
            "register_ioevent",
            |vm| vm.register_ioevent(fd, addr, datamatch),
            || (),
        )
    }

    fn unregister_ioevent(&self, fd: &EventFd, addr: &IoEventAddress) -> Result<()> {
        self.asked(
            "unregister_ioevent",
            |vm| vm.unregister_ioevent(fd, addr),
            || (),
        )
    }

    fn make_routing_entry(&self, gsi: u32, config: &InterruptSourceConfig) -> IrqRoutingEntry {
        let own = || IrqRoutingEntry::Kvm(kvm_bindings::kvm_irq_routing_entry::default());
        let made = self.asked(
            "make_routing_entry",
            |vm| Ok(vm.make_routing_entry(gsi, config)),
            own,
        );
        made.unwrap()
    }

    fn set_gsi_routing(&self, entries: &[IrqRoutingEntry]) -> Result<()> {
        self.asked("set_gsi_routing", |vm| vm.set_gsi_routing(entries), || ())
    }

    fn enable_split_irq(&self) -> Result<()> {
        self.asked("enable_split_irq", |vm| vm.enable_split_irq(), || ())
    }

    fn enable_x2apic_api(&self) -> Result<()> {
        self.asked("enable_x2apic_api", |vm| vm.enable_x2apic_api(), || ())
    }

    fn get_clock(&self) -> Result<ClockData> {
        let own = || ClockData::Kvm(kvm_bindings::kvm_clock_data::default());
        self.asked("get_clock", |vm| vm.get_clock(), own)
    }

    fn set_clock(&self, data: &ClockData) -> Result<()> {
        self.asked("set_clock", |vm| vm.set_clock(data), || ())
    }

    fn snapshot_clock(&self, boot_vcpu: &dyn Vcpu) -> Result<Option<ClockState>> {
        self.asked("snapshot_clock", |vm| vm.snapshot_clock(boot_vcpu), || None)
    }

    fn restore_clock(
        &self,
        vcpus: &[&dyn Vcpu],
        state: &ClockState,
        mode: ClockRestoreMode,
    ) -> Result<()> {
        self.asked(
            "restore_clock",
            |vm| vm.restore_clock(vcpus, state, mode),
            || (),
        )
    }

    fn create_passthrough_device(&self) -> Result<VfioDeviceFd> {
        self.names.lock().unwrap().push("create_passthrough_device");
        Err(HypervisorVmError::CreatePassthroughDevice(anyhow!(
            "recorded"
        )))
    }

    fn init(&self) -> Result<()> {
        self.asked("init", |vm| vm.init(), || ())
    }

    fn pause(&self) -> Result<()> {
        self.asked("pause", |vm| vm.pause(), || ())
    }

    fn resume(&self) -> Result<()> {
        self.asked("resume", |vm| vm.resume(), || ())
    }
}
