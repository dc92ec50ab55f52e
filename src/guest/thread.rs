//! Owns the host's side of a vCPU thread: start it, command it, kick it out of
//! the guest, end it. Never touches the vCPU itself.

use std::io;
use std::os::raw::{c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvm_bindings::kvm_regs;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler, unblock_signal};

use super::error::GuestError;
use super::faults::Faults;
use super::ram::Ram;
use super::vcpu::{Access, Command, Ran, Reply, Runner};

/// The first pause between two kicks; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_micros(200);
const LONGEST_PAUSE: Duration = Duration::from_millis(10);
/// How long a kicked vCPU may take: far beyond any healthy host.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// How long a one-shot program may take, emulated hosts included.
const ONCE_LIMIT: Duration = Duration::from_secs(120);

/// Interrupts `KVM_RUN`, which is all a kick is for.
extern "C" fn kicked(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {}

/// A vCPU's thread, as the host sees it.
#[derive(Debug)]
pub(super) struct VcpuThread {
    index: usize,
    stop: Arc<AtomicBool>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Gone once the thread is asked to end.
    commands: Option<Sender<Command>>,
    replies: Receiver<Reply>,
    thread: Option<JoinHandle<()>>,
    /// An endless program was started, or a one-shot was given up, and its
    /// last reply was not taken yet.
    running: bool,
}

impl VcpuThread {
    /// Starts the thread; it waits for commands.
    pub(super) fn spawn(
        index: usize,
        fd: VcpuFd,
        ram: Arc<Ram>,
        doorbell: u64,
        faults: &Arc<Faults>,
    ) -> Result<Self, GuestError> {
        let failed = |what| move |source| thread_error(index, what, source);
        register_signal_handler(SIGRTMIN(), kicked)
            .map_err(io::Error::from)
            .map_err(failed("handle the stop signal"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (commands, their_commands) = channel();
        let (their_replies, replies) = channel();
        let runner = Runner {
            index,
            fd,
            ram,
            doorbell,
            all_faults: Arc::clone(faults),
            faults: None,
            stop: Arc::clone(&stop),
            commands: their_commands,
            replies: their_replies,
        };
        let thread = thread::Builder::new()
            .name(format!("vcpu{index}"))
            .spawn(move || {
                // A caller that blocks signals passes its mask on to us.
                match unblock_signal(SIGRTMIN()) {
                    Ok(()) => runner.serve(),
                    Err(error) => log::error!("vCPU {index} cannot be stopped: {error}"),
                }
            })
            .map_err(failed("start the thread"))?;
        Ok(Self {
            index,
            stop,
            state: Mutex::new(State {
                commands: Some(commands),
                replies,
                thread: Some(thread),
                running: false,
            }),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is consistent between any two statements here.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts an endless program; `prepare` runs first if the vCPU is idle.
    pub(super) fn start(
        &self,
        regs: kvm_regs,
        prepare: impl FnOnce() -> Result<(), GuestError>,
    ) -> Result<(), GuestError> {
        let mut state = self.idle()?;
        prepare()?;
        self.send(&state, Command::Endless(regs))?;
        match state.replies.recv() {
            Ok(Reply::Started) => {
                state.running = true;
                Ok(())
            }
            Ok(Reply::Ran(Err(error))) => Err(error),
            Ok(Reply::Ran(Ok(_)) | Reply::Once(_)) | Err(_) => Err(self.gone()),
        }
    }

    /// Stops an endless program and takes its figures.
    pub(super) fn stop(&self) -> Result<Ran, GuestError> {
        let vcpu = self.index;
        let mut state = self.state();
        if !state.running {
            return Err(GuestError::Idle { vcpu });
        }
        let reply = self.kick(&state)?;
        state.running = false;
        match reply {
            Reply::Ran(ran) => ran,
            // A one-shot that was given up has now ended.
            Reply::Once(_) | Reply::Started => Err(GuestError::Idle { vcpu }),
        }
    }

    /// Runs a one-shot program to its end.
    pub(super) fn once(&self, regs: kvm_regs) -> Result<Access<u64>, GuestError> {
        self.once_after(regs, || Ok(()))
    }

    /// Runs a one-shot program to its end; `prepare` runs first if the vCPU is idle.
    pub(super) fn once_after(
        &self,
        regs: kvm_regs,
        prepare: impl FnOnce() -> Result<(), GuestError>,
    ) -> Result<Access<u64>, GuestError> {
        let vcpu = self.index;
        let mut state = self.idle()?;
        prepare()?;
        self.send(&state, Command::Once(regs))?;
        match state.replies.recv_timeout(ONCE_LIMIT) {
            Ok(Reply::Once(access)) => access,
            Ok(Reply::Ran(_) | Reply::Started) | Err(RecvTimeoutError::Disconnected) => {
                Err(self.gone())
            }
            Err(RecvTimeoutError::Timeout) => {
                state.running = true;
                self.kick(&state)?;
                state.running = false;
                let seconds = ONCE_LIMIT.as_secs();
                Err(GuestError::Timeout { vcpu, seconds })
            }
        }
    }

    fn idle(&self) -> Result<MutexGuard<'_, State>, GuestError> {
        let state = self.state();
        if state.running {
            return Err(GuestError::Busy { vcpu: self.index });
        }
        self.stop.store(false, Ordering::SeqCst);
        Ok(state)
    }

    fn send(&self, state: &State, command: Command) -> Result<(), GuestError> {
        let commands = state.commands.as_ref().ok_or_else(|| self.gone())?;
        commands.send(command).map_err(|_| self.gone())
    }

    const fn gone(&self) -> GuestError {
        GuestError::ThreadGone { vcpu: self.index }
    }

    /// Signals the thread until it replies. A signal that comes just before
    /// `KVM_RUN` begins is lost; the next one is not.
    fn kick(&self, state: &State) -> Result<Reply, GuestError> {
        let vcpu = self.index;
        let thread = state.thread.as_ref().ok_or_else(|| self.gone())?;
        self.stop.store(true, Ordering::SeqCst);
        let begun = Instant::now();
        let mut pause = FIRST_PAUSE;
        let mut kicks = 0_u64;
        loop {
            thread
                .kill(SIGRTMIN())
                .map_err(|e| thread_error(vcpu, "signal the thread", e.into()))?;
            kicks = kicks.saturating_add(1);
            match state.replies.recv_timeout(pause) {
                Ok(reply) => return Ok(reply),
                Err(RecvTimeoutError::Disconnected) => return Err(self.gone()),
                Err(RecvTimeoutError::Timeout) if begun.elapsed() > STOP_LIMIT => {
                    let seconds = STOP_LIMIT.as_secs();
                    return Err(GuestError::Stuck {
                        vcpu,
                        kicks,
                        seconds,
                    });
                }
                Err(RecvTimeoutError::Timeout) => {
                    pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
                }
            }
        }
    }
}

fn thread_error(vcpu: usize, what: &'static str, source: io::Error) -> GuestError {
    GuestError::Thread { vcpu, what, source }
}

impl Drop for VcpuThread {
    fn drop(&mut self) {
        let running = self.state().running;
        let stopped = !running || !matches!(self.stop(), Err(GuestError::Stuck { .. }));
        let mut state = self.state();
        state.commands = None;
        let thread = state.thread.take();
        drop(state);
        if !stopped {
            // The thread keeps guest memory alive, so leaving it is harmless.
            log::warn!("cannot stop vCPU {}: its thread is left behind", self.index);
        } else if thread.is_some_and(|t| t.join().is_err()) {
            log::error!("the thread of vCPU {} panicked", self.index);
        }
    }
}
