//! Owns what can be wrong with a daemon, and how that is said. Never talks to one.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;
use vm_remap::vhost_user::{ChannelError, ConfigError};

/// Why a window was not opened.
pub type OpenWindowError = Box<dyn StdError + Send + Sync>;

/// What keeps a vhost-user device from working.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum VhostUserError {
    /// Nobody listens at the socket.
    #[error(
        "cannot connect to the daemon at {}: start it first, and look whether it listens there",
        socket.display()
    )]
    Connect {
        /// The path.
        socket: PathBuf,
        /// What the last attempt failed at.
        source: io::Error,
    },
    /// The VMM's own daemon did not start.
    #[error("cannot start the daemon of {}", socket.display())]
    Start {
        /// What it serves.
        socket: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The daemon refused something, or does not speak the protocol.
    #[error("cannot {step}")]
    Ask {
        /// What was asked of it.
        step: &'static str,
        /// What came instead of an answer.
        source: vhost::Error,
    },
    /// The daemon keeps the VMM waiting.
    #[error(
        "cannot wait for the daemon any longer: it has not answered for {limit:?}; look what it is \
         doing"
    )]
    Late {
        /// How long it was waited for.
        limit: Duration,
    },
    /// The daemon is gone, and nobody has come in its place.
    #[error(
        "cannot reach the daemon at {}: it is gone; start it again, and reset the device in the \
         guest",
        socket.display()
    )]
    Gone {
        /// Where the VMM looks for it.
        socket: PathBuf,
    },
    /// The daemon lacks a feature.
    #[error("cannot use the daemon: it does not offer {what}, which a device here needs")]
    Lacks {
        /// The name of the feature.
        what: &'static str,
    },
    /// More queues than there are.
    #[error(
        "cannot use {asked} queues: the daemon has {has}, and a device here can have {most}; \
         leave the number out for those there are"
    )]
    Queues {
        /// How many were asked for.
        asked: u16,
        /// How many the daemon has.
        has: u64,
        /// How many a device can have.
        most: u16,
    },
    /// A size that no queue can have.
    #[error("cannot use queues of {size} descriptors: it must be a power of two up to 32768")]
    QueueSize {
        /// The size asked for.
        size: u16,
    },
    /// The daemon's shared memory regions make no sense, or are too large.
    #[error("cannot use the shared memory of the daemon")]
    Shmem(#[source] ConfigError),
    /// The machine has no window for a region.
    #[error("cannot open a window of {len:#x} bytes for the shared memory region {region}")]
    OpenWindow {
        /// The region.
        region: u8,
        /// Its length in bytes.
        len: u64,
        /// What the machine answered.
        source: OpenWindowError,
    },
    /// A daemon that is not what the device was made from.
    #[error(
        "cannot put this daemon in the place of the one before: it has other {what}; start the \
         one with the arguments that it had, or the machine anew"
    )]
    Other {
        /// What differs.
        what: &'static str,
    },
    /// The guest's memory cannot be given to a daemon.
    #[error("cannot share the guest's memory: it needs a descriptor for each region, 32 at most")]
    Memory(#[source] vhost::Error),
    /// The channel for the daemon's requests did not open.
    #[error("cannot open a channel for the daemon's requests")]
    Channel(#[source] ChannelError),
    /// The host has no thread or no event left.
    #[error("cannot get {what} for the device")]
    Host {
        /// What there is none of.
        what: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
}
