//! Owns the plan by which system calls of the arena fail in tests, thread by thread: which call,
//! with which error, and what the kernel has done by then. Never compiled into the library.

// UNSAFETY: a kernel that fails half-way has unmapped something, and so must who plays it.
#![expect(
    unsafe_code,
    reason = "it does to the arena what a failing kernel does"
)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::c_void;

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::calls::{Call, Covered};
use crate::range::PAGE_SIZE;

/// What a call that fails has done before it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing.
    Nothing,
    /// It has unmapped what it was to cover.
    Unmapped,
    /// The same, and another thread has been given the first page of it since.
    Taken,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) errno: Errno,
    pub(crate) effect: Effect,
}

/// Which calls fail, counted from 0, and how.
pub(crate) type Plan = BTreeMap<u64, Fault>;

/// A call that was made or refused.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Made {
    call: Call,
    covered: Covered,
    pub(crate) fault: Option<Fault>,
}

impl Made {
    /// Whether the kernel could fail this call with that effect.
    pub(crate) fn can_have(&self, effect: Effect) -> bool {
        match (effect, self.covered) {
            (Effect::Nothing, _) => true,
            (Effect::Unmapped, covered) => covered.is_some(),
            // A stranger that fills all of a gap before anyone looks is not seen: a known limit.
            (Effect::Taken, covered) => covered.is_some_and(|(_, len)| len as u64 > PAGE_SIZE),
        }
    }

    /// Whether it asks for the same as another, wherever that is.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        let len = |made: &Self| made.covered.map(|(_, len)| len);
        (self.call, len(self)) == (other.call, len(other))
    }

    /// Whether it is a call that gives address space back.
    pub(crate) fn is_unmap(&self) -> bool {
        self.call == Call::Unmap
    }

    /// Whether it is a call that fills a gap.
    pub(crate) fn is_filling(&self) -> bool {
        self.call == Call::MapHole && self.covered.is_none()
    }
}

#[derive(Debug, Default)]
struct State {
    plan: Plan,
    made: Vec<Made>,
    strangers: Vec<usize>,
}

thread_local! {
    static STATE: RefCell<State> = RefCell::default();
}

/// Follows `plan` in this thread, from the next call on.
pub(crate) fn follow(plan: &Plan) {
    STATE.with_borrow_mut(|state| {
        state.plan.clone_from(plan);
        state.made.clear();
    });
}

/// The calls of this thread since `follow`.
pub(crate) fn made() -> Vec<Made> {
    STATE.with_borrow(|state| state.made.clone())
}

/// The strangers' pages in arenas of this thread, each full of [`CANARY`]; forgets them.
pub(crate) fn take_strangers() -> Vec<usize> {
    STATE.with_borrow_mut(|state| std::mem::take(&mut state.strangers))
}

/// The byte of a stranger's page.
pub(crate) const CANARY: u8 = 0x5a;

pub(super) fn through<T>(
    call: Call,
    covered: Covered,
    make: impl FnOnce() -> rustix::io::Result<T>,
) -> rustix::io::Result<T> {
    let fault = STATE.with_borrow_mut(|state| {
        let fault = state.plan.get(&(state.made.len() as u64)).copied();
        let made = Made {
            call,
            covered,
            fault,
        };
        state.made.push(made);
        fault
    });
    let Some(Fault { errno, effect }) = fault else {
        return make();
    };
    let (Some((address, len)), Effect::Unmapped | Effect::Taken) = (covered, effect) else {
        return Err(errno);
    };
    // SAFETY: the call that fails was about to unmap this range, so its caller owns it and has
    // seen that nobody refers to it.
    unsafe { munmap(address as *mut c_void, len) }.unwrap();
    if effect == Effect::Taken {
        settle_a_stranger(address);
    }
    Err(errno)
}

/// Does what another thread's `mmap(NULL)` can do to a gap.
fn settle_a_stranger(address: usize) {
    let (flags, access) = (
        MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE,
        ProtFlags::READ | ProtFlags::WRITE,
    );
    let page = PAGE_SIZE as usize;
    // SAFETY: with FIXED_NOREPLACE nothing is replaced.
    let mapped = unsafe { mmap_anonymous(address as *mut c_void, page, access, flags) }.unwrap();
    // SAFETY: the page was made above for this, can be written, and nobody else knows of it.
    unsafe { mapped.cast::<u8>().write_bytes(CANARY, page) };
    STATE.with_borrow_mut(|state| state.strangers.push(address));
}
