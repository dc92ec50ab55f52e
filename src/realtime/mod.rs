//! Owns real-time threads: how a thread gets to go first, and a timer that is such a thread. Never
//! knows what they are for.

pub(crate) mod scheduling;
pub(crate) mod timer;
