//! Owns the closing of what a backend has sent. Never waits for it.
//!
//! Who sends a descriptor can decide how long its last close takes: a TCP socket for as long as its
//! `SO_LINGER` says, a file on FUSE for ever (Linux: `fs/fuse/file.c` `fuse_flush`). So what is not
//! plain memory is closed by a thread of its own. What lies unread in the socket is closed with it, so
//! the thread has the last hold of that as well. It starts with the channel, and not when a backend
//! first makes it necessary: a seccomp filter that has no room for it shows then, and not under
//! attack.
//!
//! A thread that does not come to its end stays with what waits for it. A backend that is sent away
//! can come again, so a device has a bounded number of threads.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use rustix::fs::fcntl_get_seals;

use super::closed::ChannelError;

/// How many descriptors may wait to be closed before the backend is sent away.
const MOST: usize = 256;

/// How many closing threads a device may have: that of its channel, and those of channels before.
const MOST_THREADS: usize = 8;

/// The closing threads of a device that have not ended.
#[derive(Clone, Debug, Default)]
pub(super) struct Threads(Arc<AtomicUsize>);

/// One of them, from before its start until its end.
struct Place(Threads);

impl Threads {
    fn take(&self) -> Result<Place, ChannelError> {
        let more = |there: usize| (there < MOST_THREADS).then(|| there.saturating_add(1));
        match self
            .0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, more)
        {
            Ok(_) => Ok(Place(self.clone())),
            Err(channels) => Err(ChannelError::Lingering { channels }),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[derive(Debug)]
pub(super) struct Closer {
    // Let go of before the thread hears that it is over.
    _socket: Arc<UnixStream>,
    waiting: Arc<AtomicUsize>,
    thread: Sender<OwnedFd>,
}

impl Closer {
    /// Starts the thread, as one of `threads`.
    pub(super) fn new(socket: Arc<UnixStream>, threads: &Threads) -> Result<Self, ChannelError> {
        let place = threads.take()?;
        let (thread, all) = channel();
        let waiting = Arc::<AtomicUsize>::default();
        let (counter, last) = (Arc::clone(&waiting), Arc::clone(&socket));
        thread::Builder::new()
            .name("vm-remap-close".to_owned())
            .spawn(move || close_all(&all, &counter, last, place))
            .map_err(ChannelError::Thread)?;
        Ok(Self {
            _socket: socket,
            waiting,
            thread,
        })
    }

    /// Closes `fd`, here or there.
    pub(super) fn close(&self, fd: OwnedFd) {
        // Shared memory alone has seals (Linux: `mm/memfd.c` `memfd_file_seals_ptr`), and nothing
        // waits where it is closed.
        if fcntl_get_seals(&fd).is_ok() {
            return;
        }
        self.waiting.fetch_add(1, Ordering::AcqRel);
        // It ends when there is no sender any more, and not before.
        self.thread.send(fd).unwrap_or_default();
    }

    /// Whether the backend has sent too much that does not close.
    pub(super) fn is_full(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > MOST
    }
}

fn close_all(
    all: &Receiver<OwnedFd>,
    waiting: &AtomicUsize,
    socket: Arc<UnixStream>,
    place: Place,
) {
    for fd in all {
        drop(fd);
        waiting.fetch_sub(1, Ordering::AcqRel);
    }
    drop(socket);
    drop(place);
}
