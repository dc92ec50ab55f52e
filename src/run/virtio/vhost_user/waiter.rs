//! Owns waiting for one of several descriptors. Never reads one.

use std::io;
use std::os::fd::AsRawFd;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// How many descriptors are waited for at most.
const MOST: usize = 4;

/// Waits until something is to be done, each marked by a bit of the caller's.
#[derive(Debug)]
pub(super) struct Waiter(Epoll);

impl Waiter {
    pub(super) fn new() -> io::Result<Self> {
        Epoll::new().map(Self)
    }

    /// Has `events` of `fd` end the wait with `bit`, until `fd` is closed.
    pub(super) fn add(&self, fd: &impl AsRawFd, events: EventSet, bit: u64) -> io::Result<()> {
        let event = EpollEvent::new(events, bit);
        self.0.ctl(ControlOperation::Add, fd.as_raw_fd(), event)
    }

    /// The bits of what is ready; none after `limit` milliseconds, and -1 waits for ever.
    pub(super) fn wait(&self, limit: i32) -> io::Result<u64> {
        let mut events = [EpollEvent::default(); MOST];
        let ready = loop {
            match self.0.wait(limit, &mut events) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                answer => break answer?,
            }
        };
        let ready = events.iter().take(ready);
        Ok(ready.fold(0, |bits, event| bits | event.data()))
    }
}
