//! Owns how long a daemon may take. Never asks it anything itself.
//!
//! `vhost` waits for an answer for as long as it takes, whatever timeout the socket has. So whoever
//! waits has a second thread beside it for as long, which shuts the socket when time is up; the wait
//! then ends as it does when the daemon is gone.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread::{Builder, scope};
use std::time::Duration;

use super::error::VhostUserError;

/// Does `ask`, which waits for the daemon at the other end of `stream`, and shuts `stream` when that
/// takes longer than `limit`.
pub(super) fn bounded<T>(
    stream: &UnixStream,
    limit: Duration,
    ask: impl FnOnce() -> Result<T, VhostUserError>,
) -> Result<T, VhostUserError> {
    scope(|threads| {
        let (done, ended) = channel::<()>();
        let watch = move || {
            let late = ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
            if late {
                // It fails where the socket is shut already.
                stream.shutdown(Shutdown::Both).unwrap_or_default();
            }
            late
        };
        let watch = Builder::new()
            .name("vhost-user watch".into())
            .spawn_scoped(threads, watch)
            .map_err(|source| VhostUserError::Host {
                what: "a thread",
                source,
            })?;
        let answer = ask();
        drop(done);
        match (answer, watch.join()) {
            (Err(_), Ok(true)) => Err(VhostUserError::Late { limit }),
            (answer, _) => answer,
        }
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn bounded_ends_a_wait_for_an_answer_that_does_not_come() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut waits = ours.try_clone().unwrap();
        let asked = bounded(&ours, Duration::from_millis(1), || {
            let read = waits.read(&mut [0]).unwrap();
            assert_eq!(read, 0);
            Err::<(), _>(VhostUserError::Lacks { what: "an answer" })
        });
        assert_eq!(
            asked.unwrap_err().to_string(),
            "cannot wait for the daemon any longer: it has not answered for 1ms; look what it is \
             doing"
        );
    }

    #[test]
    fn bounded_leaves_an_answer_alone() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        assert_eq!(bounded(&ours, Duration::MAX, || Ok(7)).unwrap(), 7);
        drop(ours);
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
    }
}
