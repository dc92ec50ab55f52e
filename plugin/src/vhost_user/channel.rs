//! Owns the channel on which a backend sends its requests: one wake-up of the VMM's loop at a time.
//! Never waits for the backend.
//!
//! It stands in the place of `vhost`'s `FrontendReqHandler`, which trusts the backend with more than
//! it should be. What that does in version 0.17:
//!
//! | message | `FrontendReqHandler` | here |
//! | --- | --- | --- |
//! | a map without a descriptor or with several, another request with one | refuses it before it has read the body: every later message is misread | `EINVAL` |
//! | more than 32 descriptors | reads on, and takes the body for the header | `EINVAL` |
//! | descriptors on the body | gives no answer | `EINVAL` |
//! | a request that it does not know | leaves the body in the socket | `ENOSYS` |
//! | a body of the wrong length, or one that is not valid | gives no answer, though the backend waits for one | `EINVAL` |
//! | half a message | waits for the rest, for ever | comes back later |
//! | requests whose answers nobody reads | waits, for ever | the channel is closed |
//! | a backend that is gone | is not seen: it holds the backend's end as well | the channel is closed |
//!
//! A look at a message with `MSG_PEEK` does not help: it shows the descriptors of a later message
//! together with the bytes of an earlier one (seen on Linux 6.18;
//! `net/unix/af_unix.c` `unix_stream_read_generic`).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use vhost::vhost_user::VhostUserFrontendReqHandler;

use super::closed::{ChannelError, Closed};
use super::closer::Closer;
use super::dispatch;
use super::handler::ShmemHandler;
use super::refusal::Refusal;
use super::wire::{self, Incoming};

/// The channel between one backend and its [`ShmemHandler`].
///
/// Watch its descriptor for readability, and call [`wake`](Self::wake) when it is. A refused request
/// is answered, and the channel goes on. It is closed when the backend is gone or has broken the
/// protocol, and the windows are holes then.
///
/// Watch the main socket for a hang-up as well, and call [`close`](Self::close) then: a backend can
/// leave a process behind that holds this channel. `BackendSubscriber` (feature `event-manager`)
/// does all of that.
///
/// Stop watching it before it is dropped: a thread keeps its socket open for as long as what the
/// backend has sent takes to be closed, for ever if the backend likes, and a loop that still watches it
/// is woken for its end again and again.
///
/// Dropping the channel changes nothing in the windows.
#[derive(Debug)]
pub struct BackendChannel<I> {
    handler: Arc<ShmemHandler<I>>,
    // Let go of before what is incoming, which leaves its end to a thread.
    socket: Arc<UnixStream>,
    incoming: Incoming,
    reply_ack: bool,
    closed: bool,
}

/// What a wake-up has done.
#[derive(Debug, Default)]
#[must_use]
pub struct Wake {
    /// How many requests were served.
    pub served: usize,
    /// Why others were refused. They are answered.
    pub refused: Vec<Refusal>,
    /// Whether it stopped because it was enough for one wake-up, so that there may be more. A loop
    /// that is woken for news alone has to come back by itself.
    pub more: bool,
}

impl<I: VhostUserFrontendReqHandler> BackendChannel<I> {
    /// Opens a channel, and gives the backend's end of it. Pass that on with
    /// `VhostUserFrontend::set_backend_request_fd` and drop it; while the VMM holds it, the channel
    /// does not see that the backend is gone.
    ///
    /// `reply_ack` is whether `REPLY_ACK` was negotiated; without it a backend never learns what
    /// became of its requests.
    ///
    /// # Errors
    /// [`ChannelError::Socket`] where no socket is to be had; [`ChannelError::Thread`] where no thread
    /// is, which a channel has for closing what the backend sends; [`ChannelError::Lingering`] where
    /// the handler's earlier channels have left so many of these threads waiting that it gets no
    /// further one.
    pub fn new(
        handler: Arc<ShmemHandler<I>>,
        reply_ack: bool,
    ) -> Result<(Self, UnixStream), ChannelError> {
        let (socket, backend) = UnixStream::pair().map_err(ChannelError::Socket)?;
        let socket = Arc::new(socket);
        let closer = Closer::new(Arc::clone(&socket), handler.closers())?;
        let channel = Self {
            handler,
            incoming: Incoming::new(closer),
            socket,
            reply_ack,
            closed: false,
        };
        Ok((channel, backend))
    }

    /// The handler.
    #[must_use]
    pub fn handler(&self) -> &Arc<ShmemHandler<I>> {
        &self.handler
    }

    /// Serves what lies in the socket, but no more requests than
    /// [`ShmemLimits::requests_per_wake`](super::ShmemLimits::requests_per_wake), and never waits
    /// for the backend. Half a message is kept until the rest comes.
    ///
    /// # Errors
    /// [`Closed`], when the backend is gone or has broken the protocol: the windows have been
    /// [reset](ShmemHandler::reset), and the backend's end is shut. Stop watching the channel.
    pub fn wake(&mut self) -> Result<Wake, Closed> {
        let mut wake = Wake::default();
        for _ in 0..self.handler.requests_per_wake() {
            match self.one() {
                Ok(None) => return Ok(wake),
                Ok(Some(Ok(()))) => wake.served = wake.served.saturating_add(1),
                Ok(Some(Err(refusal))) => wake.refused.push(refusal),
                Err(cause) => return Err(self.close(cause)),
            }
        }
        wake.more = true;
        Ok(wake)
    }

    /// Closes the channel, for a hang-up of the main socket for instance: shuts the backend's end,
    /// so that it does not wait for answers, and resets the windows.
    pub fn close(&mut self, cause: ChannelError) -> Closed {
        self.closed = true;
        self.incoming.forget();
        // It fails where nobody is connected any more, which is what it is for.
        self.socket
            .shutdown(std::net::Shutdown::Both)
            .unwrap_or_default();
        let left = self.handler.reset().err();
        Closed { cause, left }
    }

    /// Serves and answers the next message, if there is a whole one.
    fn one(&mut self) -> Result<Option<Result<(), Refusal>>, ChannelError> {
        if self.closed {
            return Err(ChannelError::Closed);
        }
        let Some(message) = self.incoming.next(self.socket.as_fd())? else {
            return Ok(None);
        };
        let served = dispatch::serve(&*self.handler, &message);
        let value = match &served {
            Ok(value) => *value,
            Err(refusal) => wire::negated(refusal.errno()),
        };
        let wants_answer = dispatch::wants_answer(&message, self.reply_ack);
        self.incoming.close(message.descriptors);
        if wants_answer {
            wire::answer(self.socket.as_fd(), message.header.request, value)?;
        }
        Ok(Some(
            served.map(drop).map_err(|refusal| self.explained(refusal)),
        ))
    }

    /// The refusal itself, where only its number went through the handler's trait.
    fn explained(&self, refusal: Refusal) -> Refusal {
        match refusal {
            Refusal::Other(_) => self.handler.take_refusal().unwrap_or(refusal),
            refusal => {
                self.handler.note(&refusal);
                refusal
            }
        }
    }
}

impl<I> Drop for BackendChannel<I> {
    fn drop(&mut self) {
        self.incoming.forget();
    }
}

impl<I> AsRawFd for BackendChannel<I> {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl<I> AsFd for BackendChannel<I> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
