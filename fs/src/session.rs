//! Owns what this process knows of the guest's session: whether it has begun one here, and whether
//! a number that the guest names still means something. Never opens a file.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether a guest has begun a FUSE session with this process.
///
/// The numbers of files and handles that a guest got from an earlier process mean other files here,
/// or none. So nothing is done for a guest before it has begun anew.
#[derive(Debug, Default)]
pub(crate) struct Session {
    begun: AtomicBool,
}

impl Session {
    pub(crate) fn begin(&self) {
        self.begun.store(true, Ordering::Release);
    }

    pub(crate) fn end(&self) {
        self.begun.store(false, Ordering::Release);
    }

    /// Whether a guest has begun a session and not ended it.
    pub(crate) fn is_open(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }
}

/// What a guest without a session is told: `ENOTCONN`, "transport endpoint is not connected".
pub(crate) const NO_SESSION: i32 = libc::ENOTCONN;

/// Turns "bad file descriptor" into "stale file handle" where the file itself is unknown.
pub(crate) fn stale<T>(answer: io::Result<T>, is_known: impl FnOnce() -> bool) -> io::Result<T> {
    match answer {
        Err(error) if error.raw_os_error() == Some(libc::EBADF) && !is_known() => {
            Err(io::Error::from_raw_os_error(libc::ESTALE))
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_open_from_its_beginning_to_its_end() {
        let session = Session::default();
        assert!(!session.is_open());
        session.begin();
        assert!(session.is_open());
        session.end();
        assert!(!session.is_open());
    }

    #[test]
    fn only_an_unknown_file_is_stale() {
        let bad = || Err::<(), _>(io::Error::from_raw_os_error(libc::EBADF));
        let number = |answer: io::Result<()>| answer.unwrap_err().raw_os_error();
        assert_eq!(number(stale(bad(), || false)), Some(libc::ESTALE));
        assert_eq!(number(stale(bad(), || true)), Some(libc::EBADF));
        let full = Err(io::Error::from_raw_os_error(libc::ENOSPC));
        assert_eq!(number(stale(full, || false)), Some(libc::ENOSPC));
        stale(Ok(()), || false).unwrap();
    }
}
