//! `vm-remap-fs`: a virtio-fs device with a DAX window, for any VMM that speaks vhost-user.
//!
//! It shares a directory of the host with one guest. Linux mounts it by its tag:
//!
//! ```text
//! mount -t virtiofs -o dax TAG /mnt
//! ```
//!
//! With `dax` the guest does not copy what it reads and maps: the host's page cache is mapped into a
//! window of guest-physical memory, by the frontend, which the daemon asks with the vhost-user
//! message `SHMEM_MAP`. The frontend answers when the guest can see the file, and only then does
//! the guest get its answer.
//!
//! [`serve`] is the daemon, [`Options`] its command line. A VMM can start it as a child of its own,
//! with [`start`]. A frontend that disconnects ends it.
//!
//! # What holds
//! - The guest reaches nothing outside the directory: files are named by descriptor, links are not
//!   followed, `..` is refused, and a [`Sandbox`] stands behind that.
//! - A range of the window never reaches past the last page of its file, and is filled up before the
//!   guest is told that the file has grown.
//! - A guest that outlives its daemon gets `ENOTCONN` from the next one until it mounts anew, since
//!   its file numbers mean nothing there.
//! - A refused map is an errno for the one guest process that asked.

#![forbid(unsafe_code)]

mod cache;
mod child;
mod config_space;
mod counters;
mod daemon;
mod error;
mod guest_memory;
mod listen;
mod options;
mod queue;
mod sandbox;
mod server;
mod session;
mod share;

pub use child::start;
pub use daemon::serve;
pub use error::ServeError;
pub use options::Options;
pub use sandbox::Sandbox;
pub use share::CachePolicyOption;
