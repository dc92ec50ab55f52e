//! Owns what the guest's side of a device and its keeper share, and how a daemon comes and goes.
//! Never waits for the next daemon itself.

use std::error::Error;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use log::warn;
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;
use vm_remap::vhost_user::{BackendChannel, ShmemHandler};

use super::config_news::ConfigNews;
use super::connection::{Connection, Terms, clone};
use super::dial::reach;
use super::error::VhostUserError;
use super::keeper::Watched;
use super::options::{SharedMemory, StartDaemon};
use crate::run::virtio::mmio::Interrupt;

/// What both threads of a device know.
pub(super) struct Shared {
    pub(super) name: String,
    pub(super) socket: PathBuf,
    pub(super) shared_memory: SharedMemory,
    pub(super) patience: Duration,
    pub(super) terms: Terms,
    pub(super) interrupt: Arc<Interrupt>,
    pub(super) handler: Arc<ShmemHandler<ConfigNews>>,
    pub(super) link: Mutex<Link>,
    /// Its daemon ends when the connection does, so it goes last.
    pub(super) starter: Option<Arc<dyn StartDaemon>>,
}

/// The daemon there is, and what the guest has been told of it.
#[derive(Default)]
pub(super) struct Link {
    pub(super) connection: Option<Connection>,
    /// The guest's driver has started the device, and not reset it since.
    pub(super) started: bool,
    /// The queues that the daemon of `connection` works on.
    pub(super) running: Option<Vec<u16>>,
    /// Why the connection was ended from this side.
    blame: Option<VhostUserError>,
}

impl Link {
    /// The daemon, if there is one.
    pub(super) fn connection(&mut self) -> Option<&mut Connection> {
        self.connection.as_mut()
    }

    /// Gives the daemon up, for `why`. The keeper finds that out.
    pub(super) fn give_up(&mut self, why: VhostUserError) {
        self.running = None;
        if let Some(connection) = self.connection.take() {
            connection.end();
        }
        self.blame.get_or_insert(why);
    }
}

impl Shared {
    pub(super) fn link(&self) -> MutexGuard<'_, Link> {
        // Each step leaves a state that can be gone on from.
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a daemon on that has agreed to the terms: from now on it can be asked to work.
    pub(super) fn take_on(&self, mut connection: Connection) -> Result<Watched, VhostUserError> {
        let mut channel = None;
        if connection.protocol.contains(Protocol::BACKEND_REQ) {
            let acks = connection.protocol.contains(Protocol::REPLY_ACK);
            let opened = BackendChannel::new(Arc::clone(&self.handler), acks);
            let (ours, theirs) = opened.map_err(VhostUserError::Channel)?;
            connection.open_channel(&theirs)?;
            channel = Some(ours);
        }
        let stream = clone(&connection.stream)?;
        let mut link = self.link();
        link.connection = Some(connection);
        link.running = None;
        link.blame = None;
        Ok(Watched { channel, stream })
    }

    /// Looks for a daemon, once.
    pub(super) fn look(&self) -> Result<Watched, VhostUserError> {
        let stream = reach(self.starter.as_deref(), &self.socket, Duration::ZERO)?;
        let queues = Some(self.terms.queues);
        let (connection, terms) =
            Connection::negotiate(stream, queues, self.shared_memory, self.patience)?;
        self.terms.allow(&terms)?;
        let watched = self.take_on(connection)?;
        let waits = self.link().started;
        let until = if waits {
            "; the device works again once the guest resets it"
        } else {
            ""
        };
        warn!("{}: there is a daemon again{until}", self.name);
        Ok(watched)
    }

    /// The daemon is gone: it hung up, or `cause` is why nobody can go on with it.
    pub(super) fn lost(&self, cause: Option<&dyn Error>) {
        let mut link = self.link();
        link.running = None;
        drop(link.connection.take());
        let blame = link.blame.take();
        let why = match (&blame, cause) {
            (Some(blame), _) => chain(blame),
            (None, Some(cause)) => chain(cause),
            (None, None) => "it hung up".to_owned(),
        };
        let left = self.handler.reset().err();
        let holes = match left {
            None => String::new(),
            Some(left) => format!(" {}.", chain(&left)),
        };
        let guest = if link.started {
            self.interrupt.needs_reset();
            " The guest finds a device that needs a reset, and has to reset it once the daemon is \
             back: unbind its driver and bind it again."
        } else {
            ""
        };
        let next = if self.starter.is_some() {
            "It is started again."
        } else {
            "Start the daemon again: it is looked for every second."
        };
        warn!(
            "{}: the daemon is gone: {why}. The guest runs on; what was in its windows is gone.\
             {holes}{guest} {next}",
            self.name
        );
    }
}

/// An error with all that caused it.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        // A string takes whatever is written.
        write!(text, ": {cause}").unwrap_or_default();
        next = cause.source();
    }
    text
}
