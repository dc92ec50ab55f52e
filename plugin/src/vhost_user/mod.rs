//! Owns the shared memory of vhost-user devices, for the crate `vhost`. Never runs a device.
//!
//! A backend announces shared memory regions, and later asks with `SHMEM_MAP` and `SHMEM_UNMAP` to
//! have files mapped into them: blobs of a GPU, the DAX window of a file system. Each region is a
//! [`Window`](crate::Window) here, so a map costs no memslot.
//!
//! ```no_run
//! use std::collections::BTreeMap;
//! use std::sync::Arc;
//! use vhost::vhost_user::{Frontend, VhostUserFrontend};
//! use vm_remap::vhost_user::{BackendChannel, ShmemConfig, ShmemHandler, ShmemLimits};
//! use vm_remap::{GuestAddress, SlotNumbers, SlotProvider, WindowOptions};
//!
//! /// After the features have been negotiated, `SHMEM`, `BACKEND_REQ`, `BACKEND_SEND_FD` and
//! /// `REPLY_ACK` among them.
//! fn connect(
//!     frontend: &mut Frontend,
//!     vm: &Arc<dyn SlotProvider>,
//! ) -> Result<(), Box<dyn std::error::Error>> {
//!     let (mut windows, mut base) = (BTreeMap::new(), GuestAddress(64 << 30));
//!     for (region, size) in ShmemConfig::ask(frontend, 16 << 30)?.iter() {
//!         let numbers = SlotNumbers::new(16..32);
//!         let window = WindowOptions::new(base, size).open(Arc::clone(vm), numbers)?;
//!         base = base.checked_add(size.next_multiple_of(1 << 30)).ok_or("no room")?;
//!         windows.insert(region, Arc::new(window));
//!     }
//!     let handler = ShmemHandler::new(windows).limits(ShmemLimits::default().mappings(1024));
//!     let (mut channel, backend) = BackendChannel::new(Arc::new(handler), true)?;
//!     frontend.set_backend_request_fd(&backend)?;
//!     drop(backend);
//!
//!     // In the VMM's loop, whenever the channel's descriptor is readable:
//!     for refusal in channel.wake()?.refused {
//!         log::warn!("{refusal}");
//!     }
//!     // When the guest resets the device:
//!     channel.handler().reset()?;
//!     Ok(())
//! }
//! ```
//!
//! **Answers.** The answer to a request goes out when the new memory is visible to every vCPU and
//! the old is out of reach, or with the number of the error, negated as the specification has it. A
//! refused request is answered and no more; the channel goes on.
//!
//! **Gone.** A device that is reset, and a backend that is gone or breaks the protocol, leave holes:
//! [`ShmemHandler::reset`], which [`BackendChannel`] calls by itself in the second case.
//!
//! **Feature bit.** `SHMEM` is bit 22 in `vhost` 0.17, in crosvm and in the specification, and was
//! bit 21 in `vhost` 0.16. Two that differ do not negotiate it. `docs/vhost-user.md` has more.

mod book;
mod borrowed;
mod channel;
mod closed;
mod closer;
mod config;
mod dispatch;
mod handler;
mod quota;
mod refusal;
mod request;
mod reset;
#[cfg(feature = "event-manager")]
mod subscriber;
mod tally;
mod wire;

pub use self::channel::{BackendChannel, Wake};
pub use self::closed::{ChannelError, Closed};
pub use self::config::{ConfigError, ShmemConfig};
pub use self::handler::{NoOtherRequests, Overlap, ShmemHandler};
pub use self::quota::ShmemLimits;
pub use self::refusal::Refusal;
pub use self::reset::ResetError;
#[cfg(feature = "event-manager")]
pub use self::subscriber::{BackendEvent, BackendSubscriber};
pub use self::tally::ShmemCounters;
