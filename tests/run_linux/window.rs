//! Owns the proof that a device of the machine can have a window, and change it under the guest.

use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex};

use iced_x86::code_asm::*;
use vm_device::MutDeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};
use vm_remap::{PageRange, Protection, Source, Window};
use vm_remap_cli::run::{GuestEnd, Machine};
use vmm_sys_util::eventfd::EventFd;

use crate::program::{POWER_OFF, SLEEP_PORT, Tiny, out_byte, stay};
use crate::support::runs_guests;

/// What the tables map first, of which the window is the GiB behind.
const MAPPED: u64 = 4 << 30;
/// The page directory pointers of the first moments, and an entry for a page of 1 GiB.
const POINTERS: u32 = 0xa000;
const LARGE: u32 = 0x83;
const LEN: u64 = 1 << 30;
const PAGE: u64 = 4096;
const IN_FILE: u32 = 0x5eed_f11e;

/// Maps a file when the guest writes to it, and keeps what the guest says it saw.
struct Device {
    window: Arc<Window>,
    seen: Vec<u32>,
}

impl MutDeviceMmio for Device {
    fn mmio_read(&mut self, _: MmioAddress, _: MmioAddressOffset, data: &mut [u8]) {
        data.fill(0);
    }

    fn mmio_write(&mut self, _: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        assert_eq!(offset, 8);
        self.seen.push(u32::from_le_bytes(data.try_into().unwrap()));
        if self.seen.len() > 1 {
            return;
        }
        let memory = rustix::fs::memfd_create("blob", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&memory, PAGE).unwrap();
        rustix::io::pwrite(&memory, &IN_FILE.to_le_bytes(), 0).unwrap();
        let range = PageRange::new(0, PAGE).unwrap();
        let source = Source::descriptor(memory.as_fd(), 0);
        self.window
            .map(range, &source, Protection::ReadWrite)
            .unwrap();
    }
}

#[test]
fn a_device_maps_a_file_into_its_window_while_the_guest_looks() {
    let name = "a_device_maps_a_file_into_its_window_while_the_guest_looks";
    if !runs_guests(name) {
        return;
    }
    for backend in ["fixed", "memslot"] {
        assert_eq!(looked(backend), [u32::MAX, IN_FILE], "{backend}");
    }
}

/// What the guest saw before and after.
fn looked(backend: &str) -> Vec<u32> {
    let registers = 0xd000_0008_u32;
    let tiny = Tiny::new(|a| {
        let high = u32::try_from(MAPPED >> 32).unwrap();
        a.mov(dword_ptr(POINTERS + 4 * 8), LARGE)?;
        a.mov(dword_ptr(POINTERS + 4 * 8 + 4), high)?;
        a.mov(rbx, MAPPED)?;
        a.mov(esi, registers)?;
        for _ in 0..2 {
            a.mov(eax, dword_ptr(rbx))?;
            a.mov(dword_ptr(rsi), eax)?;
        }
        out_byte(a, SLEEP_PORT, POWER_OFF)?;
        stay(a)
    });
    let launch = tiny.launch(&format!("size=64M,backend={backend}"));
    let mut machine = Machine::new(&launch).unwrap();
    let window = machine.open_window(LEN, &launch.memory.window).unwrap();
    assert_eq!(window.base().0, MAPPED);
    let device = Arc::new(Mutex::new(Device {
        window,
        seen: Vec::new(),
    }));
    let interrupt = EventFd::new(0).unwrap();
    let place = machine
        .add_virtio_mmio(Arc::clone(&device) as _, &interrupt)
        .unwrap();
    assert_eq!(place.base, registers - 8);
    assert_eq!(machine.run(&launch).unwrap(), GuestEnd::PowerOff);
    device.lock().unwrap().seen.clone()
}
