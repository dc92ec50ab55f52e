//! Owns what is asked of one daemon, over one connection: features, configuration, regions. Never
//! starts a queue (`rings`), and never outlives its daemon.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use vhost::VhostBackend;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures as Protocol,
    VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Error as ProtocolError, Frontend, VhostUserFrontend};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_remap::vhost_user::ShmemConfig;

use super::error::VhostUserError;
use super::get_config::get_config;
use super::options::SharedMemory;
use super::patience::bounded;

/// How many queues a device can have.
pub(super) const MOST_QUEUES: u16 = 64;

/// What the VMM can use of the protocol.
const WANTED: Protocol = Protocol::MQ
    .union(Protocol::REPLY_ACK)
    .union(Protocol::CONFIG)
    .union(Protocol::BACKEND_REQ)
    .union(Protocol::BACKEND_SEND_FD)
    .union(Protocol::RESET_DEVICE)
    .union(Protocol::SHMEM);

/// What the guest's driver may take of what the daemon offers: what belongs to the kind of device
/// (bits 0 to 23 and 50 to 63), and of the rest what rings and transport here can do. Not packed
/// rings, and not notifications with data, which no doorbell would match.
const OFFERED: u64 = 0x00ff_ffff
    | (0x3fff << 50)
    | (1 << VIRTIO_RING_F_INDIRECT_DESC)
    | (1 << VIRTIO_RING_F_EVENT_IDX)
    | (1 << VIRTIO_F_VERSION_1);

/// What a device is made from. A daemon that comes in the place of another has to offer the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Terms {
    pub(super) features: u64,
    pub(super) queues: u16,
    pub(super) regions: ShmemConfig,
}

impl Terms {
    /// Whether a device that was made from `self` can go on with a daemon that offers `other`.
    pub(super) fn allow(&self, other: &Self) -> Result<(), VhostUserError> {
        let differ = |what| Err(VhostUserError::Other { what });
        if self.features & !other.features != 0 {
            return differ("features");
        }
        if self.queues != other.queues {
            return differ("queues");
        }
        if self.regions != other.regions {
            return differ("shared memory regions");
        }
        Ok(())
    }
}

/// A daemon that has answered the first questions.
pub(super) struct Connection {
    pub(super) frontend: Frontend,
    pub(super) stream: UnixStream,
    pub(super) protocol: Protocol,
    pub(super) patience: Duration,
}

impl Connection {
    /// Asks the daemon at the other end of `stream` what it offers. An answer may take `patience`.
    pub(super) fn negotiate(
        stream: UnixStream,
        queues: Option<u16>,
        shared_memory: SharedMemory,
        patience: Duration,
    ) -> Result<(Self, Terms), VhostUserError> {
        let watched = clone(&stream)?;
        let mut connection = Self {
            frontend: Frontend::from_stream(clone(&stream)?, queues.unwrap_or(1).into()),
            stream,
            protocol: Protocol::empty(),
            patience,
        };
        let terms = bounded(&watched, patience, || {
            connection.agree(queues, shared_memory)
        })?;
        Ok((connection, terms))
    }

    fn agree(
        &mut self,
        queues: Option<u16>,
        shared_memory: SharedMemory,
    ) -> Result<Terms, VhostUserError> {
        let frontend = &mut self.frontend;
        frontend.set_owner().map_err(ask("take the daemon"))?;
        let features = frontend.get_features();
        let features = features.map_err(ask("ask the daemon for its features"))?;
        let lacks = |what| Err(VhostUserError::Lacks { what });
        if features & (1 << VIRTIO_F_VERSION_1) == 0 {
            return lacks("VIRTIO_F_VERSION_1");
        }
        if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            return lacks("VHOST_USER_F_PROTOCOL_FEATURES");
        }
        let offered = frontend.get_protocol_features();
        let offered = offered.map_err(ask("ask the daemon for its protocol features"))?;
        self.protocol = wanted(offered, shared_memory);
        frontend
            .set_protocol_features(self.protocol)
            .map_err(ask("settle the protocol with the daemon"))?;
        if self.protocol.contains(Protocol::REPLY_ACK) {
            frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        Ok(Terms {
            features: features & OFFERED,
            queues: self.queues(queues)?,
            regions: self.regions(shared_memory)?,
        })
    }

    fn queues(&mut self, asked: Option<u16>) -> Result<u16, VhostUserError> {
        let most = MOST_QUEUES;
        let has = if self.protocol.contains(Protocol::MQ) {
            let has = self.frontend.get_queue_num();
            has.map_err(ask("ask the daemon how many queues it has"))?
        } else {
            // It does not say, and refuses a queue that it does not have.
            asked.unwrap_or(1).into()
        };
        let fits = u16::try_from(has).unwrap_or(most).min(most);
        let asked = asked.unwrap_or(fits);
        if asked == 0 || asked > fits {
            return Err(VhostUserError::Queues { asked, has, most });
        }
        Ok(asked)
    }

    fn regions(&mut self, shared_memory: SharedMemory) -> Result<ShmemConfig, VhostUserError> {
        if let Some(given) = shared_memory.given().map_err(VhostUserError::Shmem)? {
            if given.iter().count() > 0 && !self.protocol.contains(Protocol::SHMEM) {
                let what = "VHOST_USER_PROTOCOL_F_SHMEM";
                return Err(VhostUserError::Lacks { what });
            }
            return Ok(given);
        }
        if !self.protocol.contains(Protocol::SHMEM) {
            return Ok(ShmemConfig::default());
        }
        ShmemConfig::ask(&mut self.frontend, shared_memory.limit()).map_err(VhostUserError::Shmem)
    }

    /// Gives the daemon the socket for its requests. It is not waited for: the daemon may ask for
    /// something before it answers.
    pub(super) fn open_channel(&mut self, socket: &UnixStream) -> Result<(), VhostUserError> {
        self.frontend.set_hdr_flags(VhostUserHeaderFlag::empty());
        let sent = self.frontend.set_backend_request_fd(socket);
        if self.protocol.contains(Protocol::REPLY_ACK) {
            self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        sent.map_err(ask("open a channel for the daemon's requests"))
    }

    /// Fills `data` from the configuration space, as far as the daemon has one.
    pub(super) fn read_config(&self, offset: u32, data: &mut [u8]) -> Result<(), VhostUserError> {
        let answer = self.config(offset, data.len())?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = answer.as_deref().and_then(|bytes| bytes.get(start..));
        for (to, from) in data.iter_mut().zip(bytes.unwrap_or_default()) {
            *to = *from;
        }
        Ok(())
    }

    /// Writes to the configuration space, as far as the daemon has one. There are daemons that give
    /// up over a write beyond its end, so they never see one.
    pub(super) fn write_config(&mut self, offset: u32, data: &[u8]) -> Result<(), VhostUserError> {
        if self.config(offset, data.len())?.is_none() {
            return Ok(());
        }
        let flags = VhostUserConfigFlags::WRITABLE;
        bounded(&self.stream, self.patience, || {
            match self.frontend.set_config(offset, flags, data) {
                // A daemon that refuses goes on.
                Err(vhost::Error::VhostUserProtocol(ProtocolError::BackendInternalError)) => Ok(()),
                answer => answer.map_err(ask("write the configuration of the daemon")),
            }
        })
    }

    /// The configuration space from its start to `len` bytes after `offset`, if it has so many: there
    /// are daemons that know no other place to start from.
    fn config(&self, offset: u32, len: usize) -> Result<Option<Vec<u8>>, VhostUserError> {
        if !self.protocol.contains(Protocol::CONFIG) {
            return Ok(None);
        }
        let all = offset.saturating_add(u32::try_from(len).unwrap_or(u32::MAX));
        bounded(&self.stream, self.patience, || {
            get_config(&self.stream, all).map_err(|source| VhostUserError::Ask {
                step: "read the configuration from the daemon",
                source: vhost::Error::IOError(source),
            })
        })
    }

    /// Ends the connection; whoever waits for the daemon stops waiting.
    pub(super) fn end(&self) {
        // It fails where the socket is shut already.
        self.stream.shutdown(Shutdown::Both).unwrap_or_default();
    }
}

/// The same socket once more.
pub(super) fn clone(stream: &UnixStream) -> Result<UnixStream, VhostUserError> {
    stream.try_clone().map_err(|source| VhostUserError::Host {
        what: "a descriptor",
        source,
    })
}

/// A map for the errors of one step.
pub(super) fn ask(step: &'static str) -> impl Fn(vhost::Error) -> VhostUserError {
    move |source| VhostUserError::Ask { step, source }
}

fn wanted(offered: Protocol, shared_memory: SharedMemory) -> Protocol {
    let mut wanted = offered & WANTED;
    if shared_memory == SharedMemory::Off || !wanted.contains(Protocol::BACKEND_REQ) {
        wanted.remove(Protocol::SHMEM);
    }
    wanted
}
