//! Owns the handler of SIGBUS, which a VMM installs by its own word only, and what it tells a
//! vCPU's thread: the address that a run has touched. Never resolves it.

// UNSAFETY: no crate at hand hands a signal on to the handler that was there before only where it
// is not its own; those that always do would let the handler of Rust's runtime put itself aside.
#![expect(unsafe_code, reason = "a signal handler that chains is made by hand")]

mod ranges;

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering, compiler_fence};

pub(super) use self::ranges::Guarded;

use crate::arena::poison::can_poison;
use crate::range::PAGE_SIZE;

/// `si_code` of memory that is broken, or poisoned, and was touched by the thread itself.
const TOUCHED: c_int = libc::BUS_MCEERR_AR;

/// Whether somebody catches what poison raises.
static READY: AtomicBool = AtomicBool::new(false);
/// What was there before [`SigbusHook::install`].
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

thread_local! {
    /// Whether the thread is inside a run of a vCPU.
    static RUNS: Cell<bool> = const { Cell::new(false) };
    /// What the run has touched.
    static TOUCH: Cell<Option<u64>> = const { Cell::new(None) };
}

/// What lets a [`FaultResolver`](super::FaultResolver) find addresses that it cannot compute: those
/// of a gather, for instance.
///
/// The resolver *arms* holes for such an access: it puts pages there that cannot be touched
/// (`UFFDIO_POISON`, Linux 6.6), 64 MiB at once, and runs the instruction again. The touch raises a
/// SIGBUS on the vCPU's thread, with the address; then the holes are holes again. So somebody has to
/// catch SIGBUS, and that is for the VMM to say: without a hook nothing is ever armed, and such an
/// access stops the vCPU with [`Obstacle::Unknown`](crate::Obstacle::Unknown).
///
/// Whoever runs a vCPU that can reach a window of the resolver then does it by `VcpuFaults::run`, by
/// [`VcpuFaults::listen`](super::VcpuFaults::listen), or with a handler of its own, on a thread that does not block SIGBUS, also not by
/// `KVM_SET_SIGNAL_MASK`: what another thread touches is not taken, and ends the process. Where a
/// filter limits system calls, the vCPU threads need `userfaultfd` and `rt_sigprocmask`.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct SigbusHook;

impl SigbusHook {
    /// Installs a handler of SIGBUS for the whole process. Signals that are not the resolver's go
    /// to the handler that is there now, or end the process if there is none. Install it early: a
    /// handler that comes later has to hand on to this one.
    ///
    /// # Errors
    /// What the kernel said; nothing is installed then. `EINVAL` from a kernel that cannot poison
    /// memory.
    pub fn install() -> io::Result<()> {
        can_poison(PAGE_SIZE)?;
        if BEFORE.get().is_some() {
            return Ok(());
        }
        let mut before = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: a null pointer asks for what is there, and the other one can be written.
        check(unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), before.as_mut_ptr()) })?;
        // SAFETY: the kernel has filled it in; zeroes are a value of it, too.
        let before = unsafe { before.assume_init() };
        // The handler looks there, so it is filled in first.
        if BEFORE.set(before).is_err() {
            return Ok(());
        }
        let mut ours = before;
        ours.sa_sigaction = caught as *const () as usize;
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        // SAFETY: the structure is a whole one, and its handler calls only what a signal handler
        // may call.
        check(unsafe { libc::sigaction(libc::SIGBUS, &raw const ours, ptr::null_mut()) })?;
        READY.store(true, Ordering::Release);
        Ok(())
    }

    /// For a VMM with a handler of its own: it promises to call [`took`](Self::took) in it from now
    /// on.
    ///
    /// # Errors
    /// As [`install`](Self::install).
    pub fn own() -> io::Result<()> {
        can_poison(PAGE_SIZE)?;
        READY.store(true, Ordering::Release);
        Ok(())
    }

    /// Takes a SIGBUS with this `si_code` and `si_addr`, which the calling thread has got, if it is
    /// the resolver's. A handler of signals may call it: it takes no lock and allocates nothing.
    #[must_use]
    pub fn took(code: i32, address: u64) -> bool {
        let ours = code == TOUCHED && RUNS.get() && ranges::contain(address);
        if ours {
            TOUCH.set(Some(address));
        }
        ours
    }
}

/// Whether the calling thread would hear of a touch of armed memory.
pub(super) fn is_heard() -> bool {
    READY.load(Ordering::Acquire) && !is_blocked()
}

/// Makes a run of a vCPU, and tells what of armed memory it has touched.
pub(super) fn listen<R>(run: impl FnOnce() -> R) -> (R, Option<u64>) {
    TOUCH.set(None);
    RUNS.set(true);
    // For the handler, which runs on this thread.
    compiler_fence(Ordering::SeqCst);
    let ran = run();
    compiler_fence(Ordering::SeqCst);
    RUNS.set(false);
    (ran, TOUCH.take())
}

/// A thread that blocks the signal would fault in the kernel for ever.
fn is_blocked() -> bool {
    let mut mask = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: a null pointer asks for the mask that is there, and the other one can be written.
    let asked = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), mask.as_mut_ptr()) };
    // SAFETY: the kernel has filled it in; zeroes are a value of it, too.
    let mask = unsafe { mask.assume_init() };
    // SAFETY: the set is a whole one.
    asked != 0 || unsafe { libc::sigismember(&raw const mask, libc::SIGBUS) } != 0
}

extern "C" fn caught(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel hands a handler with SA_SIGINFO a whole structure, and nobody writes to it
    // before the handler has returned or handed it on.
    let told = unsafe { &*info };
    // SAFETY: any bytes are an address; with codes that leave none there it is not looked at.
    let address = unsafe { told.si_addr() };
    if !SigbusHook::took(told.si_code, address.addr() as u64) {
        hand_on(signal, info, context);
    }
}

/// Does what would have been done without the hook.
fn hand_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let before = BEFORE.get();
    let handler = before.map_or(libc::SIG_DFL, |before| before.sa_sigaction);
    let with_info = before.is_some_and(|before| before.sa_flags & libc::SA_SIGINFO != 0);
    match handler {
        // Ignored or not, what the thread itself has touched it cannot get past.
        libc::SIG_DFL | libc::SIG_IGN => end_by(signal),
        handler if with_info => {
            type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
            // SAFETY: with SA_SIGINFO that is what a handler is.
            let handler: Handler = unsafe { std::mem::transmute::<usize, Handler>(handler) };
            handler(signal, info, context);
        }
        handler => {
            type Handler = extern "C" fn(c_int);
            // SAFETY: without SA_SIGINFO that is what a handler is.
            let handler: Handler = unsafe { std::mem::transmute::<usize, Handler>(handler) };
            handler(signal);
        }
    }
}

/// Ends the process by the signal, once its handler has returned.
fn end_by(signal: c_int) {
    // SAFETY: both are calls that a handler may make.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    // SAFETY: as above. The signal waits until the handler is over.
    unsafe { libc::raise(signal) };
}

fn check(answer: c_int) -> io::Result<()> {
    match answer {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_touch_of_a_guarded_range_inside_a_run_is_taken() {
        let (start, len) = (0x7000_0000_0000, 0x10_0000);
        let guarded = Guarded::new(start, len).unwrap();
        assert!(!SigbusHook::took(TOUCHED, start));
        let (taken, touched) = listen(|| {
            [
                SigbusHook::took(libc::BUS_ADRERR, start),
                SigbusHook::took(TOUCHED, start.wrapping_sub(1)),
                SigbusHook::took(TOUCHED, start.wrapping_add(len)),
                SigbusHook::took(TOUCHED, start.wrapping_add(0x1000)),
            ]
        });
        assert_eq!(taken, [false, false, false, true]);
        assert_eq!(touched, Some(start.wrapping_add(0x1000)));
        assert_eq!(listen(|| ()).1, None, "told once");
        // One that comes late still finds its range.
        drop(guarded);
        assert!(listen(|| SigbusHook::took(TOUCHED, start)).0);
    }
}
