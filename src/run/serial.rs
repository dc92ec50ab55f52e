//! Owns the guest's serial port: a 16550 whose output goes to a writer, and the input that waits
//! for it. Never reads a terminal.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::RawFd;

use anyhow::{Context as _, Result};
use kvm_ioctls::VmFd;
use vm_device::MutDevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};
use vm_superio::serial::{Error as SerialError, NoEvents};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::output::Output;

/// The first port of the PC's first serial port, how many it has, and its interrupt.
pub(super) const SERIAL_PORT: u16 = 0x3f8;
/// How many ports it has.
pub(super) const SERIAL_PORTS: u8 = 8;
/// Its interrupt.
pub(super) const SERIAL_GSI: u32 = 4;

/// Input beyond this is not asked for before the guest has read what is there.
const ENOUGH: usize = 4096;

/// An interrupt, by an event that KVM waits for.
#[derive(Debug)]
struct Irq(EventFd);

impl Trigger for Irq {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// The serial port.
pub(super) struct Uart<W: Write> {
    chip: Serial<Irq, NoEvents, Output<W>>,
    /// What was typed, and does not fit into the chip yet.
    waiting: VecDeque<u8>,
    /// Whoever reads the input waits for this, because it brought enough.
    room: EventFd,
    full: bool,
}

impl<W: Write> Uart<W> {
    /// A serial port with its interrupt at `vm`.
    pub(super) fn new(vm: &VmFd, to: W) -> Result<Self> {
        let irq = event()?;
        vm.register_irqfd(&irq, SERIAL_GSI)
            .context("cannot connect the serial port's interrupt")?;
        Self::with_irq(irq, to)
    }

    fn with_irq(irq: EventFd, to: W) -> Result<Self> {
        Ok(Self {
            chip: Serial::new(Irq(irq), Output::new(to)?),
            waiting: VecDeque::new(),
            room: event()?,
            full: false,
        })
    }

    /// Becomes readable once there is room again, after [`type_in`](Self::type_in) said that there
    /// is none.
    pub(super) fn room(&self) -> &EventFd {
        &self.room
    }

    /// The descriptor of the timer behind [`fired`](Self::fired).
    pub(super) fn timer(&self) -> RawFd {
        self.chip.writer().timer()
    }

    /// The timer has fired.
    pub(super) fn fired(&mut self) {
        self.chip.writer_mut().fired();
    }

    /// Writes all output that is held back.
    pub(super) fn finish(&mut self) {
        self.chip.writer_mut().write_held();
    }

    /// Takes input for the guest, and returns whether there is room for more.
    pub(super) fn type_in(&mut self, bytes: &[u8]) -> bool {
        self.waiting.extend(bytes);
        self.feed();
        self.full = self.waiting.len() >= ENOUGH;
        !self.full
    }

    /// Moves waiting input into the chip, as far as it takes any.
    fn feed(&mut self) {
        let room = self.chip.fifo_capacity();
        if self.waiting.is_empty() || room == 0 {
            return;
        }
        let next: Vec<u8> = self.waiting.iter().take(room).copied().collect();
        match self.chip.enqueue_raw_bytes(&next) {
            Ok(taken) => drop(self.waiting.drain(..taken)),
            Err(error) => tell(&error),
        }
        if self.full && self.waiting.is_empty() {
            self.full = false;
            if let Err(error) = self.room.write(1) {
                log::error!("cannot ask for more input: {error}");
            }
        }
    }
}

impl<W: Write> MutDevicePio for Uart<W> {
    fn pio_read(&mut self, _: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        let register = u8::try_from(offset).unwrap_or(u8::MAX);
        // More than one byte is a repeating instruction, which stays at its port.
        data.fill_with(|| self.chip.read(register));
        self.feed();
    }

    fn pio_write(&mut self, _: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        let register = u8::try_from(offset).unwrap_or(u8::MAX);
        for &byte in data {
            if let Err(error) = self.chip.write(register, byte) {
                tell(&error);
            }
        }
        self.feed();
    }
}

fn tell(error: &SerialError<io::Error>) {
    log::debug!("serial port: {error}");
}

fn event() -> Result<EventFd> {
    EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).context("cannot create an event")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: u16 = 0;
    const IER: u16 = 1;
    const MCR: u16 = 4;
    const LSR: u16 = 5;
    const LOOP: u8 = 1 << 4;

    fn uart() -> (Uart<Vec<u8>>, EventFd) {
        let irq = event().unwrap();
        let seen = irq.try_clone().unwrap();
        (Uart::with_irq(irq, Vec::new()).unwrap(), seen)
    }

    fn read(uart: &mut Uart<Vec<u8>>, register: u16) -> u8 {
        let mut byte = [0];
        uart.pio_read(PioAddress(SERIAL_PORT), register, &mut byte);
        byte[0]
    }

    fn write(uart: &mut Uart<Vec<u8>>, register: u16, bytes: &[u8]) {
        uart.pio_write(PioAddress(SERIAL_PORT), register, bytes);
    }

    /// What a driver does: read while the line status says that there is something.
    fn drain(uart: &mut Uart<Vec<u8>>) -> Vec<u8> {
        let mut bytes = Vec::new();
        while read(uart, LSR) & 1 != 0 {
            bytes.push(read(uart, DATA));
        }
        bytes
    }

    #[test]
    fn more_input_than_the_chip_holds_arrives_in_order() {
        let (mut uart, irq) = uart();
        write(&mut uart, IER, &[1]);
        let typed: Vec<u8> = (0..200).collect();
        assert!(uart.type_in(&typed));
        assert!(irq.read().unwrap() > 0);
        assert_eq!(drain(&mut uart), typed);
    }

    #[test]
    fn enough_input_stops_the_reader_until_the_guest_has_read() {
        let (mut uart, _irq) = uart();
        assert!(!uart.type_in(&[b'a'; 2 * ENOUGH]));
        uart.room().read().unwrap_err();
        assert_eq!(drain(&mut uart).len(), 2 * ENOUGH);
        assert_eq!(uart.room().read().unwrap(), 1);
        assert!(uart.type_in(b"b"));
    }

    #[test]
    fn input_waits_for_the_end_of_a_test_of_the_chip() {
        let (mut uart, _irq) = uart();
        write(&mut uart, MCR, &[LOOP]);
        assert!(uart.type_in(b"early"));
        assert_eq!(drain(&mut uart), b"");
        write(&mut uart, MCR, &[0]);
        assert_eq!(drain(&mut uart), b"early");
    }

    #[test]
    fn output_goes_to_the_writer_also_from_a_repeating_instruction() {
        let (mut uart, _irq) = uart();
        write(&mut uart, DATA, b"hello\n");
        write(&mut uart, DATA, b"$ ");
        uart.finish();
        assert_eq!(uart.chip.into_writer().into_inner(), b"hello\n$ ");
    }
}
