//! Owns devices whose work a daemon does that speaks vhost-user: any kind of device, and any daemon.
//! Never does a device's work, and never maps: shared memory is the library's
//! ([`vm_remap::vhost_user`]).
//!
//! **What goes where.** The guest's notifications and the daemon's interrupts go from one to the
//! other through KVM and do not wake the VMM. Accesses to registers come through the transport; what
//! of them the daemon has to answer waits for it, on the vCPU's thread. A thread for each device
//! serves what the daemon asks, so that it is served while a vCPU waits for the daemon.
//!
//! **Interrupts.** virtio-mmio has a register that says why an interrupt came, and the daemon cannot
//! set it. While the device works, the register always says that buffers were used
//! ([`Interrupt::set_always_used`](super::mmio::Interrupt::set_always_used)). A driver then looks at
//! queues that have nothing new, when the configuration changes for instance, and finds that out by
//! itself. To set the bit only when it is true, a thread of the VMM would have to pass on every
//! interrupt.
//!
//! **Shared memory.** The daemon announces regions, and each becomes a window that is open for as
//! long as the machine runs. The memory of windows is not in the table of memory that the daemon
//! gets: a driver cannot use it for buffers.
//!
//! **A daemon that is gone**, because it ended, broke the protocol or has not answered for
//! [`VhostUserOptions::patience`]: its windows become holes, the guest runs on and finds a device that needs a reset.
//! The VMM looks for the daemon every second, and the device works again as soon as the daemon is
//! back and the guest has reset the device. Linux does not reset by itself: unbinding the driver and
//! binding it again does. Requests that the old daemon had taken are lost; whoever waits for them in
//! the guest waits on.

mod config_news;
mod connection;
mod device;
mod device_type;
mod dial;
mod error;
mod get_config;
mod keeper;
mod options;
mod patience;
mod rings;
mod shared;
mod waiter;

pub use device::VhostUserDevice;
pub use device_type::{DeviceType, UnknownDeviceType};
pub use error::{OpenWindowError, VhostUserError};
pub use options::{Queues, SharedMemory, StartDaemon, VhostUserOptions};
