//! Owns the thread of a device: it serves what the daemon asks for, notices when the daemon is gone,
//! and looks for the next one. Never talks to the guest.

use std::error::Error;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use log::{debug, warn};
use vm_remap::vhost_user::{BackendChannel, ChannelError, Closed};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::config_news::ConfigNews;
use super::error::VhostUserError;
use super::shared::{Shared, chain};
use super::waiter::Waiter;

/// How long the keeper waits before it looks for a daemon again, in milliseconds.
const PAUSE: i32 = 1000;

/// How many refused requests of one daemon are logged.
const MOST_REFUSALS: usize = 32;

/// What the keeper waits for.
const STOPPED: u64 = 1;
const GONE: u64 = 2;
const REQUESTS: u64 = 4;

/// What the keeper watches of a daemon.
pub(super) struct Watched {
    pub(super) channel: Option<BackendChannel<ConfigNews>>,
    /// The main socket, for its hang-up.
    pub(super) stream: UnixStream,
}

/// The keeper's thread; it ends with this.
#[derive(Debug)]
pub(super) struct Keeper {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

/// Why serving a daemon came to its end.
enum End {
    /// The device goes.
    Stopped,
    /// The daemon is gone.
    Gone(Option<Box<dyn Error>>),
}

impl Keeper {
    /// Starts a thread that keeps `first`, and those that come after it.
    pub(super) fn start(shared: Arc<Shared>, first: Watched) -> Result<Self, VhostUserError> {
        let host = |what| move |source| VhostUserError::Host { what, source };
        let stop = Arc::new(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(host("an event"))?);
        let stopped = Arc::clone(&stop);
        let thread = Builder::new()
            .name("vhost-user".into())
            .spawn(move || keep(&shared, first, &stopped))
            .map_err(host("a thread"))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // It is refused only where 2^64 - 1 of them wait already.
        self.stop.write(1).unwrap_or_default();
        if let Some(thread) = self.thread.take() {
            // It panics with a bug only, and that has been told.
            thread.join().unwrap_or_default();
        }
    }
}

fn keep(shared: &Shared, first: Watched, stop: &EventFd) {
    let mut watched = first;
    loop {
        match serve(shared, &mut watched, stop) {
            End::Stopped => return,
            End::Gone(cause) => {
                // Nobody is to wait for it any more; it fails where the socket is shut already.
                watched.stream.shutdown(Shutdown::Both).unwrap_or_default();
                drop(watched);
                shared.lost(cause.as_deref());
            }
        }
        let Some(next) = wait_for_next(shared, stop) else {
            return;
        };
        watched = next;
    }
}

/// The next daemon, unless the device goes first. What is wrong with those that come is told once.
fn wait_for_next(shared: &Shared, stop: &EventFd) -> Option<Watched> {
    let mut told = String::new();
    let mut tell = |error: &dyn Error| {
        let text = chain(error);
        if text != told {
            warn!("{}: {text}", shared.name);
            told = text;
        }
    };
    loop {
        // Also before the first look: daemons that hang up at once would fill the log.
        match pause(stop) {
            Ok(false) => {}
            Ok(true) => return None,
            Err(error) => {
                tell(&error);
                return None;
            }
        }
        match shared.look() {
            Ok(watched) => return Some(watched),
            Err(VhostUserError::Connect { .. }) => {}
            Err(error) => tell(&error),
        }
    }
}

/// Waits until it is time to look again; says whether the device goes instead.
fn pause(stop: &EventFd) -> io::Result<bool> {
    let waiter = Waiter::new()?;
    waiter.add(stop, EventSet::IN, STOPPED)?;
    Ok(waiter.wait(PAUSE)? != 0)
}

/// Serves a daemon until it is gone.
fn serve(shared: &Shared, watched: &mut Watched, stop: &EventFd) -> End {
    let waiter = match watched.waiter(stop) {
        Ok(waiter) => waiter,
        Err(error) => return End::Gone(Some(Box::new(error))),
    };
    let mut refusals: usize = 0;
    let mut more = false;
    loop {
        let ready = match waiter.wait(if more { 0 } else { -1 }) {
            Ok(ready) => ready,
            Err(error) => return End::Gone(Some(Box::new(error))),
        };
        if ready & STOPPED != 0 {
            return End::Stopped;
        }
        let served = if more || ready & REQUESTS != 0 {
            watched.serve_requests(shared, &mut refusals)
        } else {
            Ok(false)
        };
        more = match served {
            _ if ready & GONE != 0 => return End::Gone(None),
            Err(closed) => return End::Gone(Some(Box::new(closed))),
            Ok(more) => more,
        };
    }
}

impl Watched {
    fn waiter(&self, stop: &EventFd) -> io::Result<Waiter> {
        let waiter = Waiter::new()?;
        waiter.add(stop, EventSet::IN, STOPPED)?;
        waiter.add(&self.stream, EventSet::READ_HANG_UP, GONE)?;
        if let Some(channel) = &self.channel {
            // News alone: half a message may lie there for ever.
            let news = EventSet::IN | EventSet::EDGE_TRIGGERED;
            waiter.add(channel, news, REQUESTS)?;
        }
        Ok(waiter)
    }

    /// Says whether there may be more.
    fn serve_requests(&mut self, shared: &Shared, refusals: &mut usize) -> Result<bool, Closed> {
        let Some(channel) = &mut self.channel else {
            return Ok(false);
        };
        let wake = match channel.wake() {
            Err(closed) if matches!(closed.cause, ChannelError::Disconnected) => {
                // A daemon that asks for nothing closes its end, and works on.
                self.channel = None;
                return Ok(false);
            }
            woken => woken?,
        };
        for refusal in wake.refused {
            *refusals = refusals.saturating_add(1);
            let text = chain(&refusal);
            if *refusals <= MOST_REFUSALS {
                warn!("{}: a request of the daemon: {text}", shared.name);
            } else {
                debug!("{}: a request of the daemon: {text}", shared.name);
            }
        }
        Ok(wake.more)
    }
}
