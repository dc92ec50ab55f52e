//! Owns the closing of what a backend has sent. Never waits for it.
//!
//! Who sends a descriptor can decide how long its last close takes: a TCP socket for as long as its
//! `SO_LINGER` says, a file on FUSE for ever (Linux: `fs/fuse/file.c` `fuse_flush`). So what is not
//! plain memory is closed by a thread of its own, which is started for the first of them. What
//! lies unread in the socket is closed with it, so the thread has the last hold of that as well.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use rustix::fs::fcntl_get_seals;

/// How many descriptors may wait to be closed before the backend is sent away.
const MOST: usize = 256;

#[derive(Debug)]
pub(super) struct Closer {
    // Let go of before the thread hears that it is over.
    socket: Arc<UnixStream>,
    waiting: Arc<AtomicUsize>,
    thread: Option<Sender<OwnedFd>>,
}

impl Closer {
    pub(super) fn new(socket: Arc<UnixStream>) -> Self {
        Self {
            socket,
            waiting: Arc::default(),
            thread: None,
        }
    }

    /// Closes `fd`, here or there.
    pub(super) fn close(&mut self, fd: OwnedFd) {
        // Shared memory alone has seals (Linux: `mm/memfd.c` `memfd_file_seals_ptr`), and nothing
        // waits where it is closed.
        if fcntl_get_seals(&fd).is_ok() {
            return;
        }
        if let Some(thread) = self.started() {
            // It ends when there is no sender any more, and not before.
            self.waiting.fetch_add(1, Ordering::AcqRel);
            thread.send(fd).unwrap_or_default();
        }
    }

    /// Whether the backend has sent too much that does not close.
    pub(super) fn is_full(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > MOST
    }

    /// Leaves the closing of the socket to the thread, where something lies in it.
    pub(super) fn leave_unread(&mut self) {
        if rustix::io::ioctl_fionread(&self.socket) != Ok(0) {
            self.started();
        }
    }

    fn started(&mut self) -> Option<Sender<OwnedFd>> {
        if self.thread.is_none() {
            let (sender, receiver) = channel();
            let (socket, waiting) = (Arc::clone(&self.socket), Arc::clone(&self.waiting));
            let started = thread::Builder::new()
                .name("vm-remap-close".to_owned())
                .spawn(move || close_all(&receiver, &waiting, socket));
            match started {
                Ok(_) => self.thread = Some(sender),
                Err(error) => log::warn!("cannot start a thread that closes descriptors: {error}"),
            }
        }
        self.thread.clone()
    }
}

fn close_all(all: &Receiver<OwnedFd>, waiting: &AtomicUsize, socket: Arc<UnixStream>) {
    for fd in all {
        drop(fd);
        waiting.fetch_sub(1, Ordering::AcqRel);
    }
    drop(socket);
}
