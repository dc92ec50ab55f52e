//! Owns the main loop of a guest: what is typed, signals, the serial port's timer, and the end.
//! Never runs a vCPU.

use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps as _};
use rustix::io::Errno;
use rustix::stdio::{stdin, stdout};
use signal_hook::SigId;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use vmm_sys_util::epoll::EventSet;

use super::escape::Escape;
use super::power::{Ending, GuestEnd};
use super::serial::Uart;
use super::sink::Sink;

/// Whatever takes part in the main loop.
pub type Subscriber = Arc<Mutex<dyn MutEventSubscriber + Send>>;

/// What a file or the like holds is typed at once, up to this.
const TYPED_AT_ONCE: usize = 64 << 10;

/// The main loop.
pub(super) struct Loop {
    manager: EventManager<Subscriber>,
    ending: Arc<Ending>,
    signals: Vec<SigId>,
    /// Readable once there was a signal.
    leave: UnixStream,
}

impl Loop {
    /// A loop that ends with the guest, and that signals can end.
    pub(super) fn new(ending: Arc<Ending>) -> Result<Self> {
        let mut manager = EventManager::new().context("cannot create the main loop")?;
        let (signals, theirs) = UnixStream::pair().context("cannot create a socket pair")?;
        let mut handled = Vec::new();
        for signal in [SIGTERM, SIGINT, SIGHUP, SIGQUIT] {
            let theirs = theirs.try_clone().context("cannot copy a socket")?;
            let id = signal_hook::low_level::pipe::register(signal, theirs)
                .with_context(|| format!("cannot handle signal {signal}"))?;
            handled.push(id);
        }
        let leave = signals.try_clone().context("cannot copy a socket")?;
        let outside: Subscriber = Arc::new(Mutex::new(Outside {
            signals,
            ending: Arc::clone(&ending),
        }));
        manager.add_subscriber(outside);
        Ok(Self {
            manager,
            ending,
            signals: handled,
            leave,
        })
    }

    /// Standard output, which keeps nobody from leaving.
    pub(super) fn output(&self) -> Result<Sink> {
        let leave = self.leave.try_clone().context("cannot copy a socket")?;
        Sink::new(stdout(), leave, Arc::clone(&self.ending))
    }

    /// Adds whatever waits for events of its own.
    pub(super) fn add(&mut self, subscriber: Subscriber) {
        self.manager.add_subscriber(subscriber);
    }

    /// Runs until the guest ends. `idle` is called whenever something happened, and after each
    /// `pause` of milliseconds in which nothing did; -1 for no such pauses.
    pub(super) fn run(&mut self, pause: i32, mut idle: impl FnMut()) -> Result<GuestEnd> {
        loop {
            idle();
            if let Some(end) = self.ending.ended() {
                return Ok(end);
            }
            self.manager
                .run_with_timeout(pause)
                .context("cannot wait for events")?;
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        for id in self.signals.drain(..) {
            signal_hook::low_level::unregister(id);
        }
    }
}

/// What ends the guest: itself, or a signal.
struct Outside {
    signals: UnixStream,
    ending: Arc<Ending>,
}

impl MutEventSubscriber for Outside {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        add(ops, Events::new(&self.signals, EventSet::IN));
        add(ops, Events::new(self.ending.wakes(), EventSet::IN));
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        // Either comes once: what it says stays true.
        if events.fd() == self.signals.as_raw_fd() {
            self.ending.end(GuestEnd::Left);
        }
        remove(ops, events);
    }
}

/// Standard input, standard output, and the serial port between them and the guest.
pub(super) struct Console {
    uart: Arc<Mutex<Uart<Sink>>>,
    escape: Escape,
    ending: Arc<Ending>,
    /// It is watched.
    watched: bool,
}

impl Console {
    pub(super) fn new(uart: Arc<Mutex<Uart<Sink>>>, ending: Arc<Ending>) -> Self {
        Self {
            uart,
            escape: Escape::default(),
            ending,
            watched: false,
        }
    }

    fn uart(&self) -> MutexGuard<'_, Uart<Sink>> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The serial port's timer, and its wish for more input.
    fn descriptors(&self) -> (RawFd, RawFd) {
        let uart = self.uart();
        (uart.timer(), uart.room().as_raw_fd())
    }

    /// Watches standard input. One that cannot be watched (a regular file, `/dev/null`) is typed
    /// at once; one that is closed is nothing.
    fn watch(&mut self, ops: &mut EventOps<'_>) {
        let events = Events::new(&stdin(), EventSet::IN);
        self.watched = ops.add(events).is_ok();
        let mut typed = 0_usize;
        while !self.watched && typed < TYPED_AT_ONCE {
            match self.read() {
                0 => break,
                more => typed = typed.saturating_add(more),
            }
        }
    }

    /// Reads once and types that; returns 0 at the end.
    fn read(&mut self) -> usize {
        let mut bytes = [0; 1024];
        let count = match rustix::io::read(stdin().as_fd(), &mut bytes) {
            Ok(count) => count,
            Err(Errno::INTR | Errno::AGAIN) => return bytes.len(),
            Err(_) => 0,
        };
        let typed = self.escape.take(bytes.get(..count).unwrap_or_default());
        if typed.leave {
            self.ending.end(GuestEnd::Left);
        }
        let room = self.uart().type_in(&typed.input);
        if room || !self.watched { count } else { 0 }
    }
}

impl MutEventSubscriber for Console {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let (timer, room) = self.descriptors();
        add(ops, Events::new_raw(timer, EventSet::IN));
        add(ops, Events::new_raw(room, EventSet::IN));
        self.watch(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let fd = events.fd();
        let (timer, room) = self.descriptors();
        if fd == timer {
            self.uart().fired();
        } else if fd == room {
            // Only `type_in` below asks for it, so standard input is not watched now.
            self.uart().room().read().unwrap_or_default();
            self.watch(ops);
        } else if self.read() == 0 {
            remove(ops, events);
            self.watched = false;
        }
    }
}

fn add(ops: &mut EventOps<'_>, events: Events) {
    if let Err(error) = ops.add(events) {
        log::error!("cannot wait for an event: {error}");
    }
}

fn remove(ops: &mut EventOps<'_>, events: Events) {
    if let Err(error) = ops.remove(events) {
        log::debug!("cannot stop waiting for an event: {error}");
    }
}
