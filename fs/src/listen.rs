//! Owns the socket that the frontend connects to, and its path. Never accepts a connection.

use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, sockopt};
use rustix::process::{PidfdFlags, PidfdGetfdFlags};

use crate::error::ServeError;
use crate::options::Options;

/// A path that is removed when this goes.
#[derive(Debug)]
pub(crate) struct SocketPath(PathBuf);

impl Drop for SocketPath {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            log::warn!("cannot remove {}: {error}", self.0.display());
        }
    }
}

/// Listens where the options say, with the path to remove if there is one.
///
/// # Errors
/// A path at which something is that no dead daemon left, a descriptor that is no listening socket,
/// and what the kernel says.
pub(crate) fn listen(options: &Options) -> Result<(UnixListener, Option<SocketPath>), ServeError> {
    match (&options.socket, options.fd) {
        (Some(path), _) => bind(path).map(|listener| (listener, Some(SocketPath(path.clone())))),
        (None, Some(fd)) => inherit(fd).map(|listener| (listener, None)),
        (None, None) => Err(ServeError::Listen {
            name: "nothing: name a socket or a descriptor".to_owned(),
            source: io::ErrorKind::InvalidInput.into(),
        }),
    }
}

fn bind(path: &Path) -> Result<UnixListener, ServeError> {
    let failed = |source| ServeError::Listen {
        name: path.display().to_string(),
        source,
    };
    let taken = |found| ServeError::SocketTaken {
        path: path.to_owned(),
        found,
    };
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(taken("something else")),
        Ok(_) => {
            // A daemon that was killed leaves its socket, and nobody answers there.
            if UnixStream::connect(path).is_ok() {
                return Err(taken("the socket of a daemon that runs"));
            }
            std::fs::remove_file(path).map_err(failed)?;
        }
        Err(_) => {}
    }
    UnixListener::bind(path).map_err(failed)
}

fn inherit(fd: i32) -> Result<UnixListener, ServeError> {
    let failed = |errno: rustix::io::Errno| ServeError::Listen {
        name: format!("descriptor {fd}"),
        source: errno.into(),
    };
    // The number is only a word of the command line; the kernel says whether it is a descriptor.
    let me = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())
        .map_err(failed)?;
    let socket = rustix::process::pidfd_getfd(me, fd, PidfdGetfdFlags::empty()).map_err(failed)?;
    let is_unix = sockopt::socket_domain(&socket) == Ok(AddressFamily::UNIX);
    if !is_unix || sockopt::socket_acceptconn(&socket) != Ok(true) {
        return Err(ServeError::NotListening { fd });
    }
    Ok(UnixListener::from(socket))
}
