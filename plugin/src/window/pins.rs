//! Owns which ranges of a window are pinned, and who waits for whom: a change waits until no pin
//! overlaps it, a new pin waits for a change that waits already. Never knows what is mapped.
//!
//! A change that waits holds new pins back, or devices that pin one buffer after the other would
//! keep it waiting for ever. It waits no longer than its own limit, so nor do they. A thread that
//! holds a pin of the window already gets further pins at once: nobody who is waited for waits, so
//! pins and changes never wait for each other in a circle. Only a thread that changes a window
//! while it has pins of it can be in one, or one that pins more while it has a pin that another
//! thread made: a pin counts for the thread that made it. The change's limit ends both.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::Duration;

use crate::range::PageRange;
use crate::sync::{Condvar, Deadline, Mutex, MutexGuard, ThreadId, current};

/// What a change does that meets a [`Pin`](crate::Pin).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OnPinned {
    /// It fails at once.
    Refuse,
    /// It waits until the pins are gone, and fails when that takes longer than this.
    ///
    /// A thread that changes a range which it has pinned itself waits in vain.
    Wait(Duration),
}

impl Default for OnPinned {
    /// Waits for a second: a copy is over long before.
    fn default() -> Self {
        Self::Wait(Duration::from_secs(1))
    }
}

/// A pin in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Blocked {
    /// The range of the change that it is in the way of.
    pub(crate) range: PageRange,
    /// The pin's own range.
    pub(crate) pinned: PageRange,
}

#[derive(Clone, Copy, Debug)]
struct Live {
    range: PageRange,
    thread: ThreadId,
}

/// The pins of a window, and the changes that wait for them; part of what the window's lock guards.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    live: BTreeMap<u64, Live>,
    waiting: BTreeMap<u64, Vec<PageRange>>,
    last: u64,
}

/// What has pins under its lock.
pub(crate) trait Pinned {
    fn pins(&mut self) -> &mut Pins;
}

impl Pins {
    /// Adds a pin of the calling thread; the number takes it away again.
    pub(crate) fn add(&mut self, range: PageRange) -> u64 {
        let (number, thread) = (self.number(), current().id());
        self.live.insert(number, Live { range, thread });
        number
    }

    /// How many pins there are.
    pub(crate) fn len(&self) -> usize {
        self.live.len()
    }

    fn number(&mut self) -> u64 {
        self.last = self.last.wrapping_add(1);
        self.last
    }

    /// The first pin that overlaps one of `ranges`.
    fn in_the_way(&self, ranges: &(impl Iterator<Item = PageRange> + Clone)) -> Option<Blocked> {
        self.live.values().find_map(|live| {
            let met = |range: &PageRange| range.intersection(live.range).is_some();
            let range = ranges.clone().find(met)?;
            Some(Blocked {
                range,
                pinned: live.range,
            })
        })
    }

    /// Whether `thread` has to wait for a change before it pins `range`.
    fn is_held_back(&self, range: PageRange, thread: ThreadId) -> bool {
        let overlaps = |own: &PageRange| own.intersection(range).is_some();
        let wanted = self.waiting.values().flatten().any(overlaps);
        wanted && self.live.values().all(|live| live.thread != thread)
    }
}

/// Where changes wait for pins, and pins for changes.
#[derive(Debug, Default)]
pub(crate) struct Turnstile {
    moved: Condvar,
}

impl Turnstile {
    /// Locks `state` at an instant at which no pin overlaps `ranges`.
    pub(crate) fn lock_unpinned<'a, T: Pinned>(
        &self,
        state: &'a Mutex<T>,
        ranges: &(impl Iterator<Item = PageRange> + Clone),
        on_pinned: OnPinned,
    ) -> Result<MutexGuard<'a, T>, Blocked> {
        let mut guard = lock(state);
        let Some(blocked) = guard.pins().in_the_way(ranges) else {
            return Ok(guard);
        };
        let OnPinned::Wait(limit) = on_pinned else {
            return Err(blocked);
        };
        let deadline = Deadline::after(limit);
        let number = guard.pins().number();
        guard
            .pins()
            .waiting
            .insert(number, ranges.clone().collect());
        let outcome = loop {
            match guard.pins().in_the_way(ranges) {
                None => break Ok(()),
                Some(blocked) if deadline.has_passed() => break Err(blocked),
                Some(_) => guard = deadline.wait(&self.moved, guard),
            }
        };
        guard.pins().waiting.remove(&number);
        // The pins that it has held back.
        self.wake();
        outcome.map(|()| guard)
    }

    /// Locks `state` at an instant at which no change holds the calling thread's pin of `range` back.
    pub(crate) fn lock_to_pin<'a, T: Pinned>(
        &self,
        state: &'a Mutex<T>,
        range: PageRange,
    ) -> MutexGuard<'a, T> {
        let thread = current().id();
        let mut guard = lock(state);
        while guard.pins().is_held_back(range, thread) {
            guard = self
                .moved
                .wait(guard)
                .unwrap_or_else(PoisonError::into_inner);
        }
        guard
    }

    /// Takes away the pin with this number.
    pub(crate) fn unpin<T: Pinned>(&self, state: &Mutex<T>, number: u64) {
        let mut guard = lock(state);
        let pins = guard.pins();
        pins.live.remove(&number);
        if !pins.waiting.is_empty() {
            self.wake();
        }
    }

    /// Has everybody who waits look again.
    pub(crate) fn wake(&self) {
        self.moved.notify_all();
    }
}

fn lock<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    // Pins are whole whatever panics elsewhere under the lock.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
