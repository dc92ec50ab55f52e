//! Owns the VMM's own access to what a window maps. Never changes what is mapped.

#[cfg_attr(not(test), expect(dead_code, reason = "until pins use it"))]
pub(crate) mod copy;
