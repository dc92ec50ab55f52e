//! Owns what all calls on a window share without a lock: arena, backend, budget and counting.
//! Never changes while the window lives.

use std::sync::Arc;

use super::counters::Tally;
#[cfg(feature = "fault")]
use super::holes::{HolePolicy, ReadOnlyWrites};
use super::pins::{OnPinned, Turnstile};
use crate::arena::Arena;
use crate::arena::areas::Areas;
use crate::backend::{Backend, Geometry};
use crate::slots::SlotProvider;

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) geometry: Geometry,
    pub(super) arena: Arena,
    pub(super) backend: Box<dyn Backend>,
    pub(super) areas: Arc<Areas>,
    pub(super) tally: Tally,
    pub(super) fallback: bool,
    #[cfg(feature = "fault")]
    pub(super) holes: HolePolicy,
    #[cfg(feature = "fault")]
    pub(super) read_only_writes: ReadOnlyWrites,
    pub(super) provider: Arc<dyn SlotProvider>,
    /// Whether it said that it can fill the guest's translations.
    pub(super) guest_prefault: bool,
    pub(super) on_pinned: OnPinned,
    pub(super) turnstile: Turnstile,
}
