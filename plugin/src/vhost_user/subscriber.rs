//! Owns the way of a channel into the loop of the crate `event-manager`. Never serves a request.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::io::Errno;
use vhost::vhost_user::VhostUserFrontendReqHandler;

use super::borrowed::borrow;
use super::channel::BackendChannel;
use super::closed::{ChannelError, Closed};
use super::refusal::Refusal;

/// What the VMM hears of a backend.
#[derive(Debug)]
pub enum BackendEvent {
    /// A request was refused, and answered.
    Refused(Refusal),
    /// The backend is gone or has broken the protocol. Nothing is watched any more.
    Closed(Closed),
}

/// Drives a [`BackendChannel`] in the loop of an `event_manager::EventManager`, and watches the main
/// socket of the backend for a hang-up.
///
/// A flood of requests or half a message keeps the loop from nobody: a wake-up serves no more than
/// [`ShmemLimits::requests_per_wake`](super::ShmemLimits::requests_per_wake), and what has come of a
/// message wakes the loop once.
pub struct BackendSubscriber<I, F> {
    channel: BackendChannel<I>,
    main: OwnedFd,
    tell: F,
}

impl<I: VhostUserFrontendReqHandler, F: FnMut(BackendEvent)> BackendSubscriber<I, F> {
    /// For `channel` of the backend that is connected with `main`, a `vhost::vhost_user::Frontend`
    /// for instance. `tell` is called in the loop.
    ///
    /// # Errors
    /// What duplicating the descriptor of `main` failed at.
    pub fn new<T: AsRawFd>(channel: BackendChannel<I>, main: &T, tell: F) -> io::Result<Self> {
        let main = borrow(main).ok_or(Errno::BADF)?;
        let main = rustix::io::fcntl_dupfd_cloexec(main, 0)?;
        Ok(Self {
            channel,
            main,
            tell,
        })
    }

    /// The channel.
    #[must_use]
    pub fn channel(&self) -> &BackendChannel<I> {
        &self.channel
    }

    fn requests(&self) -> Events {
        Events::new(&self.channel, EventSet::IN)
    }

    fn hang_up(&self) -> Events {
        let news = EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        Events::new(&self.main, news)
    }

    fn serve(&mut self) -> Result<(), Closed> {
        for refusal in self.channel.wake()?.refused {
            (self.tell)(BackendEvent::Refused(refusal));
        }
        Ok(())
    }

    fn end(&mut self, closed: Closed, ops: &mut EventOps<'_>) {
        for events in [self.requests(), self.hang_up()] {
            if let Err(error) = ops.remove(events) {
                log::error!("cannot stop watching the backend: {error}");
            }
        }
        (self.tell)(BackendEvent::Closed(closed));
    }
}

impl<I, F> MutEventSubscriber for BackendSubscriber<I, F>
where
    I: VhostUserFrontendReqHandler,
    F: FnMut(BackendEvent),
{
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let outcome = if events.fd() == self.main.as_raw_fd() {
            // Nothing else is watched there.
            Err(self.channel.close(ChannelError::Disconnected))
        } else {
            self.serve()
        };
        if let Err(closed) = outcome {
            self.end(closed, ops);
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        for events in [self.requests(), self.hang_up()] {
            if let Err(error) = ops.add(events) {
                log::error!("cannot watch the backend: {error}");
            }
        }
    }
}

impl<I: fmt::Debug, F> fmt::Debug for BackendSubscriber<I, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendSubscriber")
            .field("channel", &self.channel)
            .field("main", &self.main)
            .finish_non_exhaustive()
    }
}
