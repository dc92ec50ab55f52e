//! Owns a driver as a guest's kernel has one: it finds the device through its registers, sets queues
//! up in RAM, and puts requests into them. Never calls the device past the transport.

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use tempfile::TempDir;
use virtio_bindings::virtio_mmio::*;
use vm_device::MutDeviceMmio;
use vm_device::bus::MmioAddress;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vm_remap::{PageRange, SlotNumbers, Window, WindowOptions};
use vm_remap_cli::run::virtio::mmio::{Interrupt, MmioTransport, VirtioDevice};
use vm_remap_cli::run::virtio::vhost_user::{
    DeviceType, VhostUserDevice, VhostUserError, VhostUserOptions,
};
use vmm_sys_util::eventfd::EventFd;

use crate::daemon::{Daemon, Manner, REGION, Request};
use crate::recorder::Recorder;

const RAM: usize = 2 << 20;
pub const WINDOW: u64 = 4 << 30;
const SIZE: u32 = 8;
pub const VERSION_1: u64 = 1 << 32;
pub const NEEDS_RESET: u32 = 64;

/// Waits for what another thread does; the daemon may take a second to be found.
pub fn wait_for(what: &str, mut happened: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if happened() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("waited in vain for {what}");
}

/// RAM that can be given to a daemon.
pub fn ram() -> GuestMemoryMmap {
    let fd = memfd_create("ram", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, RAM as u64).unwrap();
    let file = FileOffset::new(File::from(fd), 0);
    GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), RAM, Some(file))]).unwrap()
}

/// A place for a socket, and windows for a machine without a hypervisor.
pub struct Machine {
    pub dir: TempDir,
    pub memory: GuestMemoryMmap,
    pub slots: Arc<Recorder>,
    pub windows: Arc<Mutex<Vec<Arc<Window>>>>,
}

impl Machine {
    pub fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            memory: ram(),
            slots: Arc::default(),
            windows: Arc::default(),
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    pub fn daemon(&self, manner: &Manner) -> Daemon {
        Daemon::listen(&self.socket(), manner)
    }

    pub fn options(&self) -> VhostUserOptions {
        VhostUserOptions::new(self.socket(), DeviceType::new(26).unwrap())
    }

    pub fn device(&self, options: &VhostUserOptions) -> Result<Driver, VhostUserError> {
        let interrupt = Arc::new(Interrupt::new().unwrap());
        let slots: Arc<Recorder> = Arc::clone(&self.slots);
        let open = |len| {
            let numbers = SlotNumbers::new(8..16);
            let base = vm_remap::GuestAddress(WINDOW);
            let window = WindowOptions::new(base, len).open(slots.clone(), numbers)?;
            let window = Arc::new(window);
            self.windows.lock().unwrap().push(Arc::clone(&window));
            Ok(window)
        };
        let memory = self.memory.clone();
        let device = VhostUserDevice::new(options, memory.clone(), Arc::clone(&interrupt), open)?;
        Ok(Driver {
            transport: MmioTransport::new(device, memory.clone(), interrupt),
            memory,
            sent: [0; 2],
        })
    }

    /// What the window has at `offset`, or nothing where it is a hole.
    pub fn peek(&self, offset: u64) -> Option<u8> {
        let window = Arc::clone(&self.windows.lock().unwrap()[0]);
        let pin = window.pin(PageRange::new(offset, 4096).unwrap()).ok()?;
        let mut byte = [0];
        pin.read(0, &mut byte).unwrap();
        Some(byte[0])
    }
}

/// The driver of the device.
pub struct Driver {
    pub transport: MmioTransport<VhostUserDevice>,
    memory: GuestMemoryMmap,
    /// How many requests went into each queue since it was set up.
    sent: [u16; 2],
}

impl Driver {
    pub fn get(&mut self, register: u32) -> u32 {
        let mut value = [0; 4];
        self.transport
            .mmio_read(MmioAddress(0), register.into(), &mut value);
        u32::from_le_bytes(value)
    }

    pub fn set(&mut self, register: u32, value: u32) {
        self.transport
            .mmio_write(MmioAddress(0), register.into(), &value.to_le_bytes());
    }

    pub fn config<const N: usize>(&mut self, offset: u64) -> [u8; N] {
        let mut data = [0xff; N];
        self.transport
            .mmio_read(MmioAddress(0), 0x100 + offset, &mut data);
        data
    }

    pub fn status(&mut self) -> u32 {
        self.get(VIRTIO_MMIO_STATUS)
    }

    pub fn reset(&mut self) {
        self.set(VIRTIO_MMIO_STATUS, 0);
    }

    pub fn features(&mut self) -> u64 {
        self.set(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
        let high = u64::from(self.get(VIRTIO_MMIO_DEVICE_FEATURES));
        self.set(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
        high << 32 | u64::from(self.get(VIRTIO_MMIO_DEVICE_FEATURES))
    }

    /// The base and the length of a shared memory region.
    pub fn region(&mut self, id: u8) -> (u64, u64) {
        self.set(VIRTIO_MMIO_SHM_SEL, id.into());
        let mut pair = |low| u64::from(self.get(low)) | u64::from(self.get(low + 4)) << 32;
        (
            pair(VIRTIO_MMIO_SHM_BASE_LOW),
            pair(VIRTIO_MMIO_SHM_LEN_LOW),
        )
    }

    /// Resets the device and starts it, as a driver that is bound to it does.
    pub fn start(&mut self) {
        self.reset();
        self.sent = [0; 2];
        for status in [1, 3] {
            self.set(VIRTIO_MMIO_STATUS, status);
        }
        let features = self.features();
        for (page, half) in [(1, (features >> 32) as u32), (0, features as u32)] {
            self.set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, page);
            self.set(VIRTIO_MMIO_DRIVER_FEATURES, half);
        }
        self.set(VIRTIO_MMIO_STATUS, 11);
        for queue in 0..2 {
            let at = rings(queue);
            let zeros = [0; 0x3000];
            self.memory.write_slice(&zeros, GuestAddress(at)).unwrap();
            self.set(VIRTIO_MMIO_QUEUE_SEL, queue.into());
            self.set(VIRTIO_MMIO_QUEUE_NUM, SIZE);
            self.set(VIRTIO_MMIO_QUEUE_DESC_LOW, at as u32);
            self.set(VIRTIO_MMIO_QUEUE_AVAIL_LOW, at as u32 + 0x1000);
            self.set(VIRTIO_MMIO_QUEUE_USED_LOW, at as u32 + 0x2000);
            self.set(VIRTIO_MMIO_QUEUE_READY, 1);
        }
        self.set(VIRTIO_MMIO_STATUS, 15);
    }

    /// Puts a request into `queue` and notifies the device.
    pub fn send(&mut self, queue: u16, request: Request) {
        let (at, turn) = (rings(queue), self.sent[usize::from(queue)]);
        let buffer = 0x8_0000 + u64::from(queue) * 0x1000;
        let put = |value: &[u8], at: u64| {
            self.memory.write_slice(value, GuestAddress(at)).unwrap();
        };
        for (word, place) in request.words().into_iter().zip(0..) {
            put(&word.to_le_bytes(), buffer + place * 8);
        }
        // A readable descriptor, and a writable one for the answer.
        for (index, (address, len, flags)) in [(buffer, 32_u32, 1_u16), (buffer + 64, 8, 2)]
            .into_iter()
            .enumerate()
        {
            let descriptor = at + index as u64 * 16;
            put(&address.to_le_bytes(), descriptor);
            put(&len.to_le_bytes(), descriptor + 8);
            put(&flags.to_le_bytes(), descriptor + 12);
            put(&1_u16.to_le_bytes(), descriptor + 14);
        }
        let entry = at + 0x1000 + 4 + u64::from(turn % SIZE as u16) * 2;
        put(&0_u16.to_le_bytes(), entry);
        put(&(turn + 1).to_le_bytes(), at + 0x1002);
        self.sent[usize::from(queue)] = turn + 1;
        self.set(VIRTIO_MMIO_QUEUE_NOTIFY, queue.into());
    }

    /// Waits for the answer to the last request in `queue`.
    pub fn answer(&mut self, queue: u16) -> u64 {
        let used = GuestAddress(rings(queue) + 0x2002);
        let sent = self.sent[usize::from(queue)];
        let memory = self.memory.clone();
        wait_for("an answer", || {
            memory.read_obj::<u16>(used).unwrap() == sent
        });
        let answer = GuestAddress(0x8_0000 + u64::from(queue) * 0x1000 + 64);
        self.memory.read_obj(answer).unwrap()
    }

    pub fn ask(&mut self, queue: u16, request: Request) -> u64 {
        self.send(queue, request);
        self.answer(queue)
    }

    /// Whether an event of the interrupt was triggered since somebody asked last.
    pub fn interrupted(&self) -> bool {
        let mut events: Vec<&EventFd> = self.transport.device().calls();
        events.push(self.transport.interrupt().line());
        events.iter().filter(|event| event.read().is_ok()).count() > 0
    }

    pub fn needs_reset(&mut self) -> bool {
        self.status() & NEEDS_RESET != 0
    }
}

fn rings(queue: u16) -> u64 {
    0x4000 * (1 + u64::from(queue))
}

/// A started device and its daemon.
pub fn started() -> (Machine, Daemon, Driver) {
    let machine = Machine::new();
    let daemon = machine.daemon(&Manner::default());
    let mut driver = machine.device(&machine.options()).unwrap();
    driver.start();
    assert_eq!(driver.status(), 15);
    assert_eq!(driver.region(REGION).0, WINDOW);
    (machine, daemon, driver)
}
