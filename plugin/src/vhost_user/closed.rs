//! Owns why a channel came to its end, and what it left. Never ends one.

use super::reset::ResetError;

/// Why a channel cannot be used any more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelError {
    /// The backend has closed its end, or the VMM says that it is gone.
    #[error("the backend is gone")]
    Disconnected,
    /// Bytes that are no message, so that nobody knows where the next one begins; or answers that
    /// the backend does not read.
    #[error("the backend broke the protocol: {reason}")]
    Violation {
        /// What it did.
        reason: &'static str,
    },
    /// A socket that failed.
    #[error("cannot use the channel's socket")]
    Socket(#[source] std::io::Error),
    /// No thread could be started, or its process may start none.
    #[error("cannot start the thread that closes what a backend sends")]
    Thread(#[source] std::io::Error),
    /// What the device's backends have sent over earlier channels does not let itself be closed, so
    /// there are no further channels until it does.
    #[error(
        "cannot open a channel: {channels} earlier ones still close what their backends have sent; \
         end the device, or whoever lets these descriptors wait"
    )]
    Lingering {
        /// How many channels there are that have not come to their end.
        channels: usize,
    },
    /// It was closed before.
    #[error("the channel is closed")]
    Closed,
}

/// A channel that is of no use any more. The windows are holes, but for what `left` tells.
#[derive(Debug, thiserror::Error)]
#[error("cannot go on with the backend")]
pub struct Closed {
    /// Why it is closed.
    #[source]
    pub cause: ChannelError,
    /// What a pin or the kernel has kept in a window; see
    /// [`ShmemHandler::reset`](super::ShmemHandler::reset).
    pub left: Option<ResetError>,
}
