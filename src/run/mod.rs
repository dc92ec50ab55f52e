//! Owns the reference VMM of the command. Never changes a mapping itself.

pub mod virtio;
