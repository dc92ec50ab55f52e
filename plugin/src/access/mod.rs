//! Owns the VMM's own access to what a window maps. Never changes what is mapped.

pub(crate) mod copy;
pub(crate) mod pin;
