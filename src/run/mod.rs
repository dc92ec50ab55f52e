//! Owns the reference VMM: a small machine on KVM that boots a stock Linux kernel to a serial
//! console. Never deals with a command line; [`Launch`] says what to run.
//!
//! ```no_run
//! use vm_remap::spec::MemorySpec;
//! use vm_remap_cli::run::{GuestEnd, Launch};
//!
//! # fn main() -> anyhow::Result<()> {
//! let launch = Launch {
//!     kernel: "vmlinuz".into(),
//!     initramfs: Some("initrd.img".into()),
//!     cmdline: None,
//!     cpus: 2,
//!     memory: "size=512M".parse::<MemorySpec>()?,
//!     vhost_user: Vec::new(),
//!     fs: Vec::new(),
//! };
//! let end = vm_remap_cli::run::run(&launch)?;
//! assert_eq!(end, GuestEnd::PowerOff, "{end}");
//! # Ok(())
//! # }
//! ```
//!
//! The machine has what a guest of a window needs, and no more: RAM in one shared descriptor, KVM's
//! own interrupt controllers, ACPI of the hardware-reduced kind, a 16550, a place for virtio-mmio
//! devices, and windows above RAM. A device is added in between:
//!
//! ```no_run
//! # use std::sync::{Arc, Mutex};
//! # use vm_device::{MutDeviceMmio, bus::{MmioAddress, MmioAddressOffset}};
//! # use vm_remap_cli::run::{Launch, Machine};
//! # struct Device;
//! # impl MutDeviceMmio for Device {
//! #     fn mmio_read(&mut self, _: MmioAddress, _: MmioAddressOffset, _: &mut [u8]) {}
//! #     fn mmio_write(&mut self, _: MmioAddress, _: MmioAddressOffset, _: &[u8]) {}
//! # }
//! # fn start(launch: &Launch) -> anyhow::Result<()> {
//! let mut machine = Machine::new(launch)?;
//! let window = machine.open_window(1 << 30, &launch.memory.window)?;
//! let interrupt = vmm_sys_util::eventfd::EventFd::new(0)?;
//! machine.add_virtio_mmio(Arc::new(Mutex::new(Device)), &interrupt)?;
//! let end = machine.run(launch)?;
//! # drop((window, end));
//! # Ok(())
//! # }
//! ```

mod acpi;
mod cpuid;
mod entry;
mod escape;
mod events;
pub mod flags;
mod host;
mod kernel;
pub mod launch;
mod layout;
mod lost_pages;
mod machine;
mod machine_check;
mod memory;
mod output;
mod power;
mod serial;
mod sink;
mod slots;
mod terminal;
mod vcpu;
pub mod virtio;

pub use self::acpi::VirtioPlace;
pub use self::events::Subscriber;
pub use self::launch::Launch;
pub use self::machine::Machine;
pub use self::power::{Ending, GuestEnd};

/// Runs the guest that `launch` asks for to its end.
///
/// Standard input and output are its serial console; a terminal there is raw while it runs.
///
/// # Errors
/// The host cannot run it, or something cannot be loaded; the text says what to do. Nothing is left
/// behind.
pub fn run(launch: &Launch) -> anyhow::Result<GuestEnd> {
    let mut machine = Machine::new(launch)?;
    virtio::attach::devices(&mut machine, launch)?;
    machine.run(launch)
}
