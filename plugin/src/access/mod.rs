//! Owns the VMM's own access to what a window maps. Never changes what is mapped.

#[cfg(feature = "vm-memory")]
mod bounce;
#[cfg(feature = "vm-memory")]
mod bytes;
pub(crate) mod copy;
#[cfg(feature = "vm-memory")]
pub(crate) mod mixed;
pub(crate) mod pin;
#[cfg(feature = "vm-memory")]
pub(crate) mod region;
#[cfg(feature = "vm-memory")]
mod slice;
#[cfg(feature = "vm-memory")]
pub(crate) mod tracking;
