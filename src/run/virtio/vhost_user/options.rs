//! Owns what device is asked for, and of which daemon. Never connects to it.

use std::fmt;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use vhost::vhost_user::message::VhostUserShMemConfig;
use vm_remap::DescriptorPolicy;
use vm_remap::vhost_user::{ConfigError, ShmemConfig, ShmemLimits};

use super::device_type::DeviceType;
use super::error::VhostUserError;

/// The size of queues that every daemon can be expected to have. None says what it has, one that is
/// asked for more refuses to start, and Linux takes all that it is offered.
const USUAL_SIZE: u16 = 256;

/// The greatest size of a queue in virtio.
const MOST: u16 = 32768;

/// What device to make, and of which daemon.
#[derive(Clone, Debug)]
pub struct VhostUserOptions {
    /// Where the daemon listens; with `starter`, only what it is called.
    pub socket: PathBuf,
    /// Who starts the daemon, where it is the VMM's own.
    pub starter: Option<Arc<dyn StartDaemon>>,
    /// What the device is.
    pub device_type: DeviceType,
    /// Its queues.
    pub queues: Queues,
    /// Its shared memory regions.
    pub shared_memory: SharedMemory,
    /// Which descriptors of the daemon may be mapped.
    pub policy: DescriptorPolicy,
    /// How much of the VMM its mappings may take.
    pub limits: ShmemLimits,
    /// How long to wait for somebody to listen at the socket.
    pub wait: Duration,
    /// How long the daemon may take to answer what belongs together: to start the device or to stop
    /// it, or a single access to its configuration. A vCPU waits for that long.
    pub patience: Duration,
}

/// Starts a daemon that belongs to this process.
pub trait StartDaemon: fmt::Debug + Send + Sync {
    /// Starts it and gives the frontend's end of a connection with it. It is asked again each second
    /// once the daemon is gone.
    ///
    /// # Errors
    /// It cannot be started. Where the error is of the kind `WouldBlock`, it is only too early.
    fn start(&self) -> io::Result<UnixStream>;
}

/// How many queues a device has, and of what size: powers of two up to 32768.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Queues {
    /// As many as the daemon says, 64 at most, of so many descriptors, but not of more than 256.
    AtMost(u16),
    /// One for each entry, of so many descriptors. The daemon has to have them.
    Sizes(Vec<u16>),
}

/// Which shared memory regions a device has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedMemory {
    /// What the daemon announces, of so many bytes in all at most.
    Announced(u64),
    /// Region 0, of so many bytes, for a daemon that maps into it and does not announce it.
    Given(u64),
    /// None.
    Off,
}

impl VhostUserOptions {
    /// A device of the daemon at `socket`: the queues that it has, of up to 256 descriptors, shared
    /// memory of up to 16 GiB, the library's own policy for a peer and its limits, and 10 s for the
    /// daemon to listen and for each answer.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>, device_type: DeviceType) -> Self {
        Self {
            socket: socket.into(),
            starter: None,
            device_type,
            queues: Queues::AtMost(USUAL_SIZE),
            shared_memory: SharedMemory::Announced(16 << 30),
            policy: DescriptorPolicy::peer(),
            limits: ShmemLimits::default(),
            wait: Duration::from_secs(10),
            patience: Duration::from_secs(10),
        }
    }
}

impl Queues {
    /// How many were asked for.
    pub(super) fn count(&self) -> Option<u16> {
        match self {
            Self::AtMost(_) => None,
            Self::Sizes(sizes) => Some(u16::try_from(sizes.len()).unwrap_or(u16::MAX)),
        }
    }

    /// The size of each of `count` queues.
    pub(super) fn sizes(&self, count: u16) -> Result<Vec<u16>, VhostUserError> {
        let sizes = match self {
            Self::AtMost(most) => vec![*most; count.into()],
            Self::Sizes(sizes) => sizes.clone(),
        };
        let bad = |size: &&u16| !size.is_power_of_two() || **size > MOST;
        if let Some(size) = sizes.iter().find(bad) {
            return Err(VhostUserError::QueueSize { size: *size });
        }
        Ok(match self {
            Self::AtMost(_) => sizes.into_iter().map(|size| size.min(USUAL_SIZE)).collect(),
            Self::Sizes(_) => sizes,
        })
    }
}

impl SharedMemory {
    /// The regions of a device whose daemon is not asked for them, if it is not.
    pub(super) fn given(self) -> Result<Option<ShmemConfig>, ConfigError> {
        match self {
            Self::Announced(_) => Ok(None),
            Self::Off => Ok(Some(ShmemConfig::default())),
            Self::Given(len) => {
                let one = VhostUserShMemConfig::new(1, &[len]);
                ShmemConfig::check(&one, u64::MAX).map(Some)
            }
        }
    }

    /// The most bytes that a daemon may announce.
    pub(super) fn limit(self) -> u64 {
        match self {
            Self::Announced(limit) => limit,
            Self::Given(_) | Self::Off => 0,
        }
    }
}
