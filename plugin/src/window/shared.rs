//! Owns what all calls on a window share without a lock: arena, backend, budget and counting.
//! Never changes while the window lives.

use super::counters::Tally;
use crate::arena::Arena;
use crate::arena::areas::Areas;
use crate::backend::{Backend, Geometry};

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) geometry: Geometry,
    pub(super) arena: Arena,
    pub(super) backend: Box<dyn Backend>,
    pub(super) areas: Areas,
    pub(super) tally: Tally,
    pub(super) fallback: bool,
}
