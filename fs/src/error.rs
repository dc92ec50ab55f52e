//! Owns what can go wrong before and around serving. Never what goes wrong for a guest: that is an
//! errno in an answer.

use std::io;
use std::path::PathBuf;

/// Why the daemon cannot serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// `source` is no directory that can be opened.
    #[error("cannot share {}: name a directory that exists and can be read", path.display())]
    Source {
        /// What was named.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The path of the socket is taken.
    #[error("cannot listen on {}: {found} is there; remove it or name another path", path.display())]
    SocketTaken {
        /// What was named.
        path: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// The socket cannot be made or taken over.
    #[error("cannot listen on {name}")]
    Listen {
        /// The path, or the number of the descriptor.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The inherited descriptor is something else.
    #[error("cannot listen on descriptor {fd}: it is no listening unix socket")]
    NotListening {
        /// Its number.
        fd: i32,
    },
    /// The daemon cannot be kept inside the directory.
    #[error("cannot keep the daemon inside the directory: {reason}")]
    Confine {
        /// What is missing, and what to do.
        reason: String,
    },
    /// A step of confining failed.
    #[error("cannot {step} to keep the daemon inside the directory")]
    ConfineStep {
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// `/proc` is not there, or not as it should be.
    #[error("cannot open /proc/self/fd: mount /proc")]
    Proc {
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel does not let the daemon wait or be stopped.
    #[error("cannot wait for a frontend or a signal")]
    Wait {
        /// What the kernel said.
        source: io::Error,
    },
    /// The frontend sent what no frontend should, or the device could not start.
    #[error("cannot go on with the frontend")]
    Frontend {
        /// What vhost-user said.
        source: io::Error,
    },
}
