//! Owns loom's stand-ins for what the library's `sync` re-exports. Time has no length here: a
//! deadline is an event of its own, which can come between any two steps of the threads.

use std::cell::RefCell;
use std::time::Duration;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};

pub use loom::sync::{Condvar, Mutex, MutexGuard};
pub use loom::thread::{ThreadId, current};

loom::thread_local! {
    /// The deadline that the thread's next wait gets.
    static NEXT: RefCell<Option<Arc<AtomicBool>>> = RefCell::new(None);
}

/// Gives the thread's next wait a deadline that passes when `passed` is set.
pub fn set_deadline(passed: Arc<AtomicBool>) {
    NEXT.with(|next| *next.borrow_mut() = Some(passed));
}

#[derive(Clone, Debug)]
pub struct Deadline(Option<Arc<AtomicBool>>);

impl Deadline {
    pub fn after(_: Duration) -> Self {
        Self(NEXT.with(|next| next.borrow_mut().take()))
    }

    pub fn has_passed(&self) -> bool {
        let passed = self.0.as_ref();
        passed.is_some_and(|passed| passed.load(Ordering::SeqCst))
    }

    pub fn wait<'a, T>(&self, moved: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        moved.wait(guard).unwrap()
    }
}
