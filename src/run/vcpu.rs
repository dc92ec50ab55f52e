//! Owns the vCPU threads: each runs its vCPU, hands its exits to the devices, and stops when it is
//! told. Never decides what a device answers.

use std::io;
use std::os::raw::{c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};
use kvm_bindings::{KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_device::bus::{MmioAddress, PioAddress};
use vm_device::device_manager::{IoManager, MmioManager as _, PioManager as _};
use vm_remap::fault::VcpuFaults;
use vmm_sys_util::signal::{Killable as _, SIGRTMIN, register_signal_handler, unblock_signal};

use super::power::{Ending, GuestEnd};

/// The pauses between two kicks: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_micros(200);
const LONGEST_PAUSE: Duration = Duration::from_millis(10);

/// Interrupts `KVM_RUN`, which is all a kick is for.
extern "C" fn kicked(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {}

/// Why vCPUs came out of `KVM_RUN`, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Exits {
    /// An access to a port.
    pub(super) pio: u64,
    /// An access to a device's registers in memory.
    pub(super) mmio: u64,
    /// A signal to the thread.
    pub(super) signals: u64,
    /// All else.
    pub(super) other: u64,
}

impl Exits {
    pub(super) fn add(&mut self, more: Self) {
        self.pio = self.pio.saturating_add(more.pio);
        self.mmio = self.mmio.saturating_add(more.mmio);
        self.signals = self.signals.saturating_add(more.signals);
        self.other = self.other.saturating_add(more.other);
    }
}

/// A vCPU that is ready to run.
#[derive(Debug)]
pub(super) struct Vcpu {
    pub(super) id: u8,
    pub(super) fd: VcpuFd,
    pub(super) faults: VcpuFaults<VcpuFd>,
}

/// What all vCPU threads share.
pub(super) struct Shared {
    pub(super) devices: IoManager,
    pub(super) ending: Arc<Ending>,
}

/// The running vCPUs.
#[derive(Debug)]
pub(super) struct Threads {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Exits>>,
}

impl Threads {
    /// Starts a thread for each vCPU.
    pub(super) fn start(vcpus: Vec<Vcpu>, shared: &Arc<Shared>) -> Result<Self> {
        register_signal_handler(SIGRTMIN(), kicked)
            .map_err(io::Error::from)
            .context("cannot handle the signal that stops vCPUs")?;
        let mut threads = Self {
            stop: Arc::new(AtomicBool::new(false)),
            threads: Vec::new(),
        };
        for vcpu in vcpus {
            let (id, shared) = (vcpu.id, Arc::clone(shared));
            let stop = Arc::clone(&threads.stop);
            let thread = thread::Builder::new()
                .name(format!("vcpu{id}"))
                .spawn(move || {
                    let _watch = Watch {
                        ending: &shared.ending,
                        id,
                    };
                    vcpu.run(&shared, &stop)
                })
                .with_context(|| format!("cannot start the thread of vCPU {id}"))?;
            threads.threads.push(thread);
        }
        Ok(threads)
    }

    /// Stops all vCPUs, waits for that, and counts what they did.
    pub(super) fn stop(&mut self) -> Exits {
        self.stop.store(true, Ordering::SeqCst);
        let mut pause = FIRST_PAUSE;
        // A signal that comes just before `KVM_RUN` begins is lost; the next one is not.
        while self.kick() {
            thread::sleep(pause);
            pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
        }
        let mut exits = Exits::default();
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(more) => exits.add(more),
                Err(_) => log::error!("the thread of a vCPU panicked"),
            }
        }
        exits
    }

    /// Signals the threads that still run, and returns whether there are any.
    fn kick(&self) -> bool {
        let running = self.threads.iter().filter(|thread| !thread.is_finished());
        let kicked = running.map(|thread| {
            if let Err(error) = thread.kill(SIGRTMIN()) {
                log::debug!("cannot signal the thread of a vCPU: {error}");
            }
        });
        kicked.count() > 0
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Ends the guest if the thread of a vCPU panics, so that nobody waits for it.
struct Watch<'a> {
    ending: &'a Ending,
    id: u8,
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let why = format!(
                "cannot run the guest on: the thread of vCPU {} panicked",
                self.id
            );
            self.ending.end(GuestEnd::Broken(why));
        }
    }
}

impl Vcpu {
    fn run(mut self, shared: &Shared, stop: &AtomicBool) -> Exits {
        let mut exits = Exits::default();
        // A caller that blocks signals passes its mask on to us.
        if let Err(error) = unblock_signal(SIGRTMIN()) {
            let why = format!("cannot stop vCPU {} once it runs: {error}", self.id);
            shared.ending.end(GuestEnd::Broken(why));
            return exits;
        }
        while !stop.load(Ordering::SeqCst) {
            let ran = self.faults.run(&mut self.fd, |exit| {
                answer(exit, &shared.devices, &mut exits)
            });
            let end = match ran {
                Ok(None) => continue,
                Ok(Some(end)) => end,
                Err(report) => GuestEnd::Fault(report),
            };
            shared.ending.end(self.explained(end));
            break;
        }
        exits
    }

    /// Where the guest stood, for an end that needs it.
    fn explained(&self, end: GuestEnd) -> GuestEnd {
        match (end, self.fd.get_regs()) {
            (GuestEnd::Broken(why), Ok(regs)) => {
                GuestEnd::Broken(format!("{why} (vCPU {}, rip {:#x})", self.id, regs.rip))
            }
            (end, _) => end,
        }
    }
}

/// Deals with one exit. Reads of what is not there give ones, and writes to it are dropped.
///
/// All ports here have one byte. More than one at a time is a repeating instruction, which stays at
/// its port: as one access it would reach past the device and be nobody's.
fn answer(
    exit: io::Result<VcpuExit<'_>>,
    devices: &IoManager,
    exits: &mut Exits,
) -> Option<GuestEnd> {
    let (count, end) = match exit {
        Ok(VcpuExit::IoIn(port, data)) => {
            for byte in data.chunks_mut(1) {
                if devices.pio_read(PioAddress(port), byte).is_err() {
                    byte.fill(0xff);
                }
            }
            (&mut exits.pio, None)
        }
        Ok(VcpuExit::IoOut(port, data)) => {
            for byte in data.chunks(1) {
                // Nobody there: dropped.
                devices
                    .pio_write(PioAddress(port), byte)
                    .unwrap_or_default();
            }
            (&mut exits.pio, None)
        }
        Ok(VcpuExit::MmioRead(address, data)) => {
            if devices.mmio_read(MmioAddress(address), data).is_err() {
                data.fill(0xff);
            }
            (&mut exits.mmio, None)
        }
        Ok(VcpuExit::MmioWrite(address, data)) => {
            devices
                .mmio_write(MmioAddress(address), data)
                .unwrap_or_default();
            (&mut exits.mmio, None)
        }
        Ok(exit) => (&mut exits.other, rare(&exit)),
        Err(error) => match error.kind() {
            io::ErrorKind::Interrupted => (&mut exits.signals, None),
            // A vCPU that no other has started yet.
            io::ErrorKind::WouldBlock => (&mut exits.other, None),
            _ => {
                let why = format!("cannot run the guest on: KVM_RUN failed with {error}");
                (&mut exits.other, Some(GuestEnd::Broken(why)))
            }
        },
    };
    *count = count.saturating_add(1);
    end
}

/// An exit that is no access to a device.
fn rare(exit: &VcpuExit<'_>) -> Option<GuestEnd> {
    match exit {
        VcpuExit::Hlt | VcpuExit::Intr | VcpuExit::IrqWindowOpen => None,
        VcpuExit::Shutdown => Some(GuestEnd::TripleFault),
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => Some(GuestEnd::PowerOff),
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _) => Some(GuestEnd::Reboot),
        exit => Some(GuestEnd::Broken(format!(
            "cannot run the guest on: KVM_RUN ended with {exit:?}, which nothing here answers; \
             the kernel log may say more"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use vm_device::MutDevicePio;
    use vm_device::bus::{PioAddressOffset, PioRange};

    use super::*;

    /// Eight ports that keep what is written to them, and read as their number.
    struct Ports(Vec<u8>);

    impl MutDevicePio for Ports {
        fn pio_read(&mut self, _: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
            data.fill(u8::try_from(offset).unwrap());
        }

        fn pio_write(&mut self, _: PioAddress, _: PioAddressOffset, data: &[u8]) {
            self.0.extend(data);
        }
    }

    #[test]
    fn a_repeating_instruction_stays_at_its_port_however_long_it_is() {
        let ports = Arc::new(Mutex::new(Ports(Vec::new())));
        let mut devices = IoManager::new();
        let range = PioRange::new(PioAddress(0x3f8), 8).unwrap();
        devices
            .register_pio(range, Arc::clone(&ports) as _)
            .unwrap();
        let mut exits = Exits::default();
        let text = b"more than there are ports";
        assert_eq!(
            answer(Ok(VcpuExit::IoOut(0x3f8, text)), &devices, &mut exits),
            None
        );
        assert_eq!(ports.lock().unwrap().0, text);
        let mut read = [0; 12];
        answer(Ok(VcpuExit::IoIn(0x3fd, &mut read)), &devices, &mut exits);
        assert_eq!(read, [5; 12]);
        answer(Ok(VcpuExit::IoIn(0xffff, &mut read)), &devices, &mut exits);
        assert_eq!(read, [0xff; 12]);
        assert_eq!(exits.pio, 3);
    }
}
