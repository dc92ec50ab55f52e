//! Owns the machine: what it is made of, what can be added to it, and its run. Never knows what a
//! device does.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Kvm, VmFd};
use vm_allocator::{AddressAllocator, AllocPolicy};
use vm_device::bus::{MmioAddress, MmioRange, PioAddress, PioRange};
use vm_device::device_manager::{IoManager, MmioManager as _, PioManager as _};
use vm_device::{DeviceMmio, DevicePio};
use vm_memory::GuestMemoryMmap;
use vm_remap::fault::FaultResolver;
use vm_remap::spec::WindowSpec;
use vm_remap::{BackendKind, GuestAddress, SlotNumbers, Window, WindowOptions};
use vmm_sys_util::eventfd::EventFd;

use super::acpi::{self, VirtioPlace};
use super::events::{Console, Loop, Subscriber};
use super::launch::Launch;
use super::layout::{GIB, IDENTITY_MAP, Layout, TSS, VIRTIO, VIRTIO_LEN};
use super::power::{self, Ending, GuestEnd, Panics, Power};
use super::serial::{SERIAL_PORT, SERIAL_PORTS, Uart};
use super::sink::Sink;
use super::slots::{RAM_SLOTS, RegisteredRam, advise};
use super::terminal::Raw;
use super::vcpu::{Exits, Shared, Threads, Vcpu};
use super::{cpuid, entry, host, kernel, lost_pages, machine_check, memory};

/// The first interrupt of a virtio device, and the last that the I/O APIC has.
const VIRTIO_GSI: u32 = 5;
const LAST_GSI: u32 = 23;
/// How many slot numbers a window gets whose backend makes one for each mapping.
const MEMSLOT_SLOTS: u32 = 4096;
/// How often a machine with windows looks for what the fault resolver has to tell, in
/// milliseconds.
const LOOK: i32 = 1000;

/// A machine that has not started yet.
pub struct Machine {
    // Windows go first: their slots must not outlive the memory behind them.
    windows: Vec<Arc<Window>>,
    resolver: Arc<FaultResolver>,
    devices: IoManager,
    places: Vec<VirtioPlace>,
    events: Loop,
    uart: Arc<Mutex<Uart<Sink>>>,
    addresses: AddressAllocator,
    next_slot: u32,
    slots: u32,
    supported: CpuId,
    ending: Arc<Ending>,
    layout: Layout,
    ram: RegisteredRam,
    vm: Arc<VmFd>,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine")
            .field("layout", &self.layout)
            .field("virtio", &self.places)
            .field("windows", &self.windows)
            .finish_non_exhaustive()
    }
}

impl Machine {
    /// A machine with RAM, interrupt controllers, a serial port and a way to power off.
    ///
    /// # Errors
    /// The host cannot run it, or has not the memory; the text says what to do.
    pub fn new(launch: &Launch) -> Result<Self> {
        let kvm = host::open(launch.cpus)?;
        let layout = Layout::new(launch.memory.size)?;
        let vm = Arc::new(create_vm(&kvm)?);
        let memory = memory::map(&launch.memory, &layout)?;
        advise(&launch.memory, &memory)?;
        let ram = RegisteredRam::new(Arc::clone(&vm), &memory)?;
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .context("cannot ask KVM which CPU features it supports")?;
        let windows = layout.windows(cpuid::address_bits(&supported))?;
        let ending = Arc::new(Ending::new()?);
        let mut events = Loop::new(Arc::clone(&ending))?;
        let uart = Arc::new(Mutex::new(Uart::new(&vm, events.output()?)?));
        let console = Console::new(Arc::clone(&uart), Arc::clone(&ending));
        events.add(Arc::new(Mutex::new(console)));
        let code = memory;
        let mut machine = Self {
            windows: Vec::new(),
            resolver: FaultResolver::new(Arc::new(
                move |address: GuestAddress, into: &mut [u8]| {
                    memory::read_code(&code, address.0, into)
                },
            )),
            devices: IoManager::new(),
            places: Vec::new(),
            events,
            uart,
            addresses: AddressAllocator::new(windows.base, windows.len)
                .context("cannot set up the addresses of windows")?,
            next_slot: RAM_SLOTS,
            slots: u32::try_from(kvm.get_nr_memslots())?,
            supported,
            ending,
            layout,
            ram,
            vm,
        };
        machine.add_own_ports()?;
        Ok(machine)
    }

    /// The virtual machine, for eventfds and the like.
    #[must_use]
    pub fn vm(&self) -> &Arc<VmFd> {
        &self.vm
    }

    /// Guest RAM, shared memory of one descriptor.
    #[must_use]
    pub fn memory(&self) -> &GuestMemoryMmap {
        self.ram.memory()
    }

    /// What ends the guest.
    #[must_use]
    pub fn ending(&self) -> &Arc<Ending> {
        &self.ending
    }

    /// Adds whatever waits for events to the main loop.
    pub fn add_subscriber(&mut self, subscriber: Subscriber) {
        self.events.add(subscriber);
    }

    /// Adds a virtio-mmio device; the guest finds it by ACPI. `interrupt` becomes its interrupt:
    /// each write to it is one. Its registers start at the address in the answer, for an ioeventfd
    /// on its doorbell.
    ///
    /// # Errors
    /// There is no interrupt left, or KVM refuses the event.
    pub fn add_virtio_mmio(
        &mut self,
        device: Arc<dyn DeviceMmio + Send + Sync>,
        interrupt: &EventFd,
    ) -> Result<VirtioPlace> {
        let number = u32::try_from(self.places.len())?;
        let gsi = VIRTIO_GSI.saturating_add(number);
        ensure!(
            gsi <= LAST_GSI,
            "cannot add a virtio device: there are interrupts for {number}, and all are taken"
        );
        let base = VIRTIO.saturating_add(VIRTIO_LEN.saturating_mul(number.into()));
        let place = VirtioPlace {
            base: u32::try_from(base)?,
            gsi,
        };
        self.vm
            .register_irqfd(interrupt, gsi)
            .with_context(|| format!("cannot connect the interrupt {gsi}"))?;
        let range = MmioRange::new(MmioAddress(base), VIRTIO_LEN)?;
        self.devices.register_mmio(range, device)?;
        self.places.push(place);
        Ok(place)
    }

    /// Opens a window of `len` bytes, on a GiB of guest addresses above RAM. Faults in it are dealt
    /// with.
    ///
    /// # Errors
    /// There are not enough addresses or slot numbers, or the window does not open.
    pub fn open_window(&mut self, len: u64, spec: &WindowSpec) -> Result<Arc<Window>> {
        let range = self
            .addresses
            .allocate(len, GIB, AllocPolicy::FirstMatch)
            .with_context(|| {
                format!("cannot find {len:#x} bytes of guest addresses for a window")
            })?;
        let base = GuestAddress(range.start());
        let numbers = self.take_slots(len, spec)?;
        let window = spec
            .options(base, len)
            .open(self.vm.clone(), numbers)
            .with_context(|| format!("cannot open a window of {len:#x} bytes at {base}"))?;
        let window = Arc::new(window);
        self.resolver.add(&window);
        self.windows.push(Arc::clone(&window));
        Ok(window)
    }

    fn take_slots(&mut self, len: u64, spec: &WindowSpec) -> Result<SlotNumbers> {
        let segment = spec.segment().unwrap_or(WindowOptions::DEFAULT_SEGMENT);
        let count = if spec.backend() == Some(BackendKind::Memslot) {
            MEMSLOT_SLOTS
        } else {
            // One more, for what the window needs beside its segments.
            u32::try_from(len.div_ceil(segment.max(1)))?.saturating_add(1)
        };
        let end = self.next_slot.saturating_add(count);
        ensure!(
            end <= self.slots,
            "cannot open a window of {len:#x} bytes: it needs {count} memslots and {} of {} are \
             left; make its segments larger",
            self.slots.saturating_sub(self.next_slot),
            self.slots
        );
        let numbers = self.next_slot..end;
        self.next_slot = end;
        Ok(SlotNumbers::new(numbers))
    }

    fn add_own_ports(&mut self) -> Result<()> {
        let power = Arc::new(Mutex::new(Power::new(Arc::clone(&self.ending))));
        let panics = Arc::new(Mutex::new(Panics::new(Arc::clone(&self.ending))));
        let uart: Arc<dyn DevicePio + Send + Sync> = Arc::clone(&self.uart) as _;
        let ports: [(u16, u16, Arc<dyn DevicePio + Send + Sync>); 3] = [
            (power::SLEEP_PORT, power::PORTS, power),
            (power::PANIC_PORT, 1, panics),
            (SERIAL_PORT, SERIAL_PORTS.into(), uart),
        ];
        for (base, count, device) in ports {
            let range = PioRange::new(PioAddress(base), count)?;
            self.devices.register_pio(range, device)?;
        }
        Ok(())
    }

    /// Loads what `launch` names and runs the guest to its end.
    ///
    /// # Errors
    /// Something cannot be loaded or started. How a guest ends that has started is no error.
    pub fn run(mut self, launch: &Launch) -> Result<GuestEnd> {
        let entry = kernel::load(launch, &self.layout, self.ram.memory())?;
        acpi::write(launch.cpus, &self.places, self.ram.memory())?;
        entry::write_tables(self.ram.memory())?;
        let vcpus = self.vcpus(launch.cpus, entry)?;
        let shared = Arc::new(Shared {
            devices: std::mem::take(&mut self.devices),
            ending: Arc::clone(&self.ending),
        });
        let terminal = Raw::enter()?;
        let mut threads = Threads::start(vcpus, &shared)?;
        let pause = if self.windows.is_empty() { -1 } else { LOOK };
        let resolver = Arc::clone(&self.resolver);
        let ended = self.events.run(pause, || {
            // The resolver has logged them.
            drop(resolver.events());
        });
        let exits = threads.stop();
        self.uart
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .finish();
        drop(terminal);
        self.tell(exits);
        ended
    }

    fn vcpus(&self, count: u8, entry: u64) -> Result<Vec<Vcpu>> {
        let mut vcpus = Vec::new();
        for id in 0..count {
            let fd = self
                .vm
                .create_vcpu(id.into())
                .with_context(|| format!("cannot create vCPU {id}"))?;
            fd.set_cpuid2(&cpuid::for_vcpu(&self.supported, id, count)?)
                .with_context(|| format!("cannot set the features of vCPU {id}"))?;
            entry::prepare(&fd, id)?;
            if id == 0 {
                entry::enter(&fd, entry)?;
            }
            let mut faults = self.resolver.vcpu();
            if machine_check::is_understood(&self.supported) {
                faults = faults.on_absent(|vcpu, _| machine_check::tell(vcpu));
            }
            vcpus.push(Vcpu { id, fd, faults });
        }
        Ok(vcpus)
    }

    /// Has KVM report a page that a file has lost, where it can. Call it before the guest starts.
    pub(super) fn report_lost_pages(&mut self) {
        lost_pages::report(&self.vm, &mut self.supported);
    }

    /// Tells what the run cost, to whoever asks for it (`RUST_LOG=info`).
    fn tell(&self, exits: Exits) {
        log::info!("exits: {exits:?}");
        log::info!("faults: {:?}", self.resolver.counters());
        for window in &self.windows {
            log::info!("window at {}: {:?}", window.base(), window.counters());
        }
    }
}

fn create_vm(kvm: &Kvm) -> Result<VmFd> {
    let vm = kvm
        .create_vm()
        .map_err(|error| crate::guest::GuestError::create_vm(error.errno()))?;
    vm.set_identity_map_address(IDENTITY_MAP)
        .context("cannot place KVM's identity map")?;
    vm.set_tss_address(TSS)
        .context("cannot place KVM's task state")?;
    vm.create_irq_chip()
        .context("cannot create the interrupt controllers")?;
    Ok(vm)
}
