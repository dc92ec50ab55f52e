//! Owns the virtio devices of the reference VMM: what the guest's drivers see of them, and whoever
//! does their work. Never places a device in the guest's address space; that is the machine's.

pub(super) mod attach;
pub mod mmio;
mod own_daemon;
pub mod vhost_user;
