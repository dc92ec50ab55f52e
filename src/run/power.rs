//! Owns how a guest ends: the register by which it powers off or resets, and who hears of it
//! first. Never ends the process.

use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use vm_device::MutDevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};
use vm_remap::fault::Report;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// The port of the sleep control register; the next one is the sleep status register, and the one
/// behind that resets.
pub(super) const SLEEP_PORT: u16 = 0x600;
/// The port of the sleep status register.
pub(super) const STATUS_PORT: u16 = SLEEP_PORT + 1;
/// The port of the reset register.
pub(super) const RESET_PORT: u16 = SLEEP_PORT + 2;
/// How many ports there are.
pub(super) const PORTS: u16 = 3;
/// What resets, written to the reset register.
pub(super) const RESET_VALUE: u8 = 1;
/// The sleep type of "off", as the DSDT has it in `_S5_`.
pub(super) const OFF: u8 = 5;
/// ACPI 6.5, 4.8.3.7: the type lies in bits 2 to 4 of the sleep control register, and bit 5 says
/// go.
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_ENABLE: u8 = 1 << 5;

/// The port of the device that a panicking kernel tells (`pvpanic`).
pub(super) const PANIC_PORT: u16 = 0x505;
/// It panicked; it panicked, and a crash kernel takes over.
const PANICKED: u8 = 1 << 0;
const CRASH_LOADED: u8 = 1 << 1;

/// How a guest came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestEnd {
    /// It powered itself off.
    PowerOff,
    /// It asked to be started again, and was not.
    Reboot,
    /// Its kernel said that it panicked.
    Panic,
    /// A CPU of it stopped on a fault inside a fault, as on real hardware where it resets.
    TripleFault,
    /// It touched what a window could not give it.
    Fault(Report),
    /// KVM could not run it on.
    Broken(String),
    /// Somebody outside ended it: Ctrl-A x, or a signal.
    Left,
}

impl GuestEnd {
    /// The exit code of `vm-remap run`.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::PowerOff => 0,
            Self::Reboot => 3,
            Self::Panic | Self::TripleFault => 4,
            Self::Fault(_) | Self::Broken(_) => 5,
            Self::Left => 6,
        }
    }
}

impl std::fmt::Display for GuestEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PowerOff => f.write_str("the guest powered off"),
            Self::Reboot => f.write_str("the guest asked for a reboot; start it again for one"),
            Self::Panic => f.write_str("the guest's kernel panicked"),
            Self::TripleFault => f.write_str("the guest stopped with a triple fault"),
            Self::Fault(report) => report.fmt(f),
            Self::Broken(why) => f.write_str(why),
            Self::Left => f.write_str("the guest was ended from outside"),
        }
    }
}

/// Where the first end is kept, and what wakes the loop that waits for it.
#[derive(Debug)]
pub struct Ending {
    first: Mutex<Option<GuestEnd>>,
    wakes: EventFd,
}

impl Ending {
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            first: Mutex::new(None),
            wakes: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).context("cannot create an event")?,
        })
    }

    /// Ends the guest, unless it has ended.
    pub fn end(&self, how: GuestEnd) {
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(how);
        if let Err(error) = self.wakes.write(1) {
            log::error!("cannot wake the main loop: {error}");
        }
    }

    /// How the guest ended, if it has.
    #[must_use]
    pub fn ended(&self) -> Option<GuestEnd> {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        first.clone()
    }

    /// Becomes readable when the guest ends.
    pub(super) fn wakes(&self) -> &EventFd {
        &self.wakes
    }
}

/// The registers by which the guest ends itself.
#[derive(Debug)]
pub(super) struct Power {
    ending: std::sync::Arc<Ending>,
}

impl Power {
    pub(super) fn new(ending: std::sync::Arc<Ending>) -> Self {
        Self { ending }
    }
}

impl MutDevicePio for Power {
    fn pio_read(&mut self, _: PioAddress, _: PioAddressOffset, data: &mut [u8]) {
        data.fill(0);
    }

    fn pio_write(&mut self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        let Some(&value) = data.first() else { return };
        let sleep = OFF << SLEEP_TYPE_SHIFT | SLEEP_ENABLE;
        match base.0.wrapping_add(offset) {
            SLEEP_PORT if value == sleep => self.ending.end(GuestEnd::PowerOff),
            RESET_PORT if value == RESET_VALUE => self.ending.end(GuestEnd::Reboot),
            port => log::debug!("the guest wrote {value:#x} to the power port {port:#x}"),
        }
    }
}

/// The device that a panicking kernel tells.
#[derive(Debug)]
pub(super) struct Panics {
    ending: std::sync::Arc<Ending>,
}

impl Panics {
    pub(super) fn new(ending: std::sync::Arc<Ending>) -> Self {
        Self { ending }
    }
}

impl MutDevicePio for Panics {
    fn pio_read(&mut self, _: PioAddress, _: PioAddressOffset, data: &mut [u8]) {
        data.fill(PANICKED | CRASH_LOADED);
    }

    fn pio_write(&mut self, _: PioAddress, _: PioAddressOffset, data: &[u8]) {
        if data.first().is_some_and(|value| value & PANICKED != 0) {
            self.ending.end(GuestEnd::Panic);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn written(port: u16, value: u8) -> Option<GuestEnd> {
        let ending = Arc::new(Ending::new().unwrap());
        let mut power = Power::new(Arc::clone(&ending));
        power.pio_write(PioAddress(port), 0, &[value]);
        ending.ended()
    }

    #[test]
    fn the_registers_end_the_guest_and_nothing_else_does() {
        assert_eq!(written(SLEEP_PORT, 0x34), Some(GuestEnd::PowerOff));
        assert_eq!(written(RESET_PORT, RESET_VALUE), Some(GuestEnd::Reboot));
        for (port, value) in [(SLEEP_PORT, 0x14), (SLEEP_PORT, 0), (STATUS_PORT, 0x34)] {
            assert_eq!(written(port, value), None);
        }
    }

    #[test]
    fn the_first_end_wins_and_wakes() {
        let ending = Arc::new(Ending::new().unwrap());
        Panics::new(Arc::clone(&ending)).pio_write(PioAddress(PANIC_PORT), 0, &[PANICKED]);
        ending.end(GuestEnd::Left);
        assert_eq!(ending.ended(), Some(GuestEnd::Panic));
        assert_eq!(ending.wakes().read().unwrap(), 2);
    }

    #[test]
    fn a_crash_kernel_is_left_to_its_work() {
        let ending = Arc::new(Ending::new().unwrap());
        let mut panics = Panics::new(Arc::clone(&ending));
        panics.pio_write(PioAddress(PANIC_PORT), 0, &[CRASH_LOADED]);
        panics.pio_write(PioAddress(PANIC_PORT), 0, &[]);
        assert_eq!(ending.ended(), None);
    }
}
