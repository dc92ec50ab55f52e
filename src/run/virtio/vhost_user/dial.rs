//! Owns the way to a daemon's socket. Never says a word on it.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::error::VhostUserError;
use super::options::StartDaemon;

const PAUSE: Duration = Duration::from_millis(20);

/// A connection with the daemon: with the one that `starter` starts, else with whoever listens at
/// `socket` within `wait`.
pub(super) fn reach(
    starter: Option<&dyn StartDaemon>,
    socket: &Path,
    wait: Duration,
) -> Result<UnixStream, VhostUserError> {
    let Some(starter) = starter else {
        return dial(socket, wait);
    };
    starter.start().map_err(|source| {
        let socket = socket.to_owned();
        match source.kind() {
            io::ErrorKind::WouldBlock => VhostUserError::Connect { socket, source },
            _ => VhostUserError::Start { socket, source },
        }
    })
}

/// Connects to `socket`, and tries again for `wait` where nobody listens there yet.
fn dial(socket: &Path, wait: Duration) -> Result<UnixStream, VhostUserError> {
    let end = Instant::now().checked_add(wait);
    loop {
        let error = match try_once(socket) {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        // No file, nobody listening, or nobody who has time yet.
        let soon = matches!(error, Errno::NOENT | Errno::CONNREFUSED | Errno::AGAIN);
        if !soon || end.is_some_and(|end| Instant::now() >= end) {
            return Err(VhostUserError::Connect {
                socket: socket.to_owned(),
                source: error.into(),
            });
        }
        std::thread::sleep(PAUSE);
    }
}

/// It does not wait, as connecting to a listener that is busy does otherwise.
fn try_once(socket: &Path) -> Result<UnixStream, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&stream, &SocketAddrUnix::new(socket)?)?;
    let stream = UnixStream::from(stream);
    let blocks = stream.set_nonblocking(false);
    blocks.map_err(|error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dial_says_where_nobody_listens() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("no-such");
        let refused = dial(&path, Duration::ZERO).unwrap_err();
        let text = format!(
            "cannot connect to the daemon at {}: start it first, and look whether it listens there",
            path.display()
        );
        assert_eq!(refused.to_string(), text);
        // A path that no socket can have is no reason to wait.
        let long = dir.path().join("x".repeat(200));
        dial(&long, Duration::MAX).unwrap_err();
    }
}
