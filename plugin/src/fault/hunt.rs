//! Owns the hunt for an address that neither the hypervisor nor the instruction tells: holes are
//! armed, a part at a time, until the instruction runs into them. Never deals with what it finds.

use std::sync::{Arc, Weak};

use rustix::io::Errno;

use super::sigbus::{self, Guarded};
use super::tally::count;
use super::vcpu::FaultedVcpu;
use super::vcpu_faults::VcpuFaults;
use super::{FaultResolver, Watched};
use crate::window::Window;
use crate::window::armed::Mark;

/// How often holes are armed for one access. With 64 MiB each time, 4 GiB of holes.
const ROUNDS: u32 = 64;
/// How often all windows are gone through: another vCPU can have disarmed the very page.
const PASSES: u32 = 16;

/// How far a vCPU's hunt has come.
#[derive(Debug, Default)]
pub(super) struct Hunt {
    /// Whether touches during this vCPU's runs come back as addresses: the process would die of them.
    pub(super) listens: bool,
    /// A vCPU that does not leave the guest keeps no window open.
    armed: Option<(Weak<Window>, Mark)>,
    /// Where it was armed last, and where it goes on: which window, and from which byte on.
    last: (usize, u64),
    next: (usize, u64),
    rounds: u32,
    passes: u32,
    /// The resolver's number of changes when it went on.
    changes: u64,
}

impl Hunt {
    /// A touch was told: the next one of the same instruction is most likely near.
    pub(super) fn found(&mut self) {
        *self = Self {
            listens: self.listens,
            armed: self.armed.take(),
            next: self.last,
            last: self.last,
            changes: self.changes,
            ..Self::default()
        };
    }

    /// A change can have disarmed the very page, again and again: what was looked for before it does
    /// not count.
    fn mind_changes(&mut self, changes: u64) {
        if std::mem::replace(&mut self.changes, changes) != changes {
            self.restart();
        }
    }

    /// Another instruction.
    pub(super) fn restart(&mut self) {
        self.rounds = 0;
        self.passes = 0;
    }

    /// What is armed for this vCPU becomes holes again.
    pub(super) fn disarm(&mut self) {
        if let Some((window, mark)) = self.armed.take()
            && let Some(window) = window.upgrade()
        {
            window.disarm(mark);
        }
    }
}

impl<V: FaultedVcpu> VcpuFaults<V> {
    /// Promises, for a VMM that calls [`after_run`](Self::after_run) and has said
    /// [`SigbusHook::own`](super::SigbusHook::own), that its handler remembers the address of each
    /// SIGBUS (`BUS_MCEERR_AR`) that comes in a run of any of its vCPUs, and that it is passed on as
    /// [`Exit::HostFault`](super::Exit::HostFault). `run` needs no such promise.
    pub fn expect_host_faults(&mut self) {
        self.hunt.listens = true;
    }

    /// Makes a run of the vCPU, for a VMM that calls [`after_run`](Self::after_run), and tells the
    /// host address that it has touched, if a [`SigbusHook`](super::SigbusHook) took one: the run
    /// has ended by that signal then, and the address goes on as
    /// [`Exit::HostFault`](super::Exit::HostFault). `run` does it by itself.
    pub fn listen<R>(&mut self, run: impl FnOnce() -> R) -> (R, Option<u64>) {
        self.hunt.listens = true;
        sigbus::listen(run)
    }

    /// Arms the next holes, if somebody hears of a touch. Tells whether it is worth another run.
    pub(super) fn hunt(&mut self) -> bool {
        if !self.hunt.listens || !sigbus::is_heard() {
            return false;
        }
        let changes = self.resolver.changes();
        let windows = self.resolver.watched();
        let hunt = &mut self.hunt;
        hunt.mind_changes(changes);
        while hunt.rounds < ROUNDS && hunt.passes < PASSES {
            let (at, from) = hunt.next;
            let Some((watched, window)) = windows.get(at) else {
                hunt.next = (0, 0);
                hunt.passes = hunt.passes.saturating_add(1);
                continue;
            };
            let armed = match watched.guards(window) {
                true => window.arm(from),
                false => Ok(None),
            };
            match armed {
                Ok(Some((mark, end))) => {
                    count(&self.resolver.tally.armed);
                    hunt.rounds = hunt.rounds.saturating_add(1);
                    (hunt.last, hunt.next) = (hunt.next, (at, end));
                    hunt.armed = Some((Arc::downgrade(window), mark));
                    return true;
                }
                // Others were faster: perhaps that was all.
                Err(Errno::AGAIN) => {
                    hunt.rounds = hunt.rounds.saturating_add(1);
                    return true;
                }
                Ok(None) => hunt.next = (at.saturating_add(1), 0),
                Err(errno) => {
                    log::warn!(
                        "cannot arm holes of the window at {}: {errno}",
                        window.base()
                    );
                    hunt.next = (at.saturating_add(1), 0);
                }
            }
        }
        false
    }
}

impl FaultResolver {
    /// A number that grows with every change of a window.
    pub(super) fn changes(&self) -> u64 {
        let windows = self.watched();
        let changes = windows.iter().map(|(_, window)| window.changes());
        changes.fold(0, u64::wrapping_add)
    }

    fn watched(&self) -> Vec<(Arc<Watched>, Arc<Window>)> {
        let windows = self.windows.read();
        let windows = windows.unwrap_or_else(std::sync::PoisonError::into_inner);
        let open = |watched: &Arc<Watched>| Some((Arc::clone(watched), watched.window.upgrade()?));
        windows.iter().filter_map(open).collect()
    }
}

impl Watched {
    /// Whether touches of `window`, which is its own, are taken.
    fn guards(&self, window: &Window) -> bool {
        let guard = || Guarded::new(window.host_base(), window.len());
        self.guarded.get_or_init(guard).is_some()
    }
}
