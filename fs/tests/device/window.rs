//! Owns the frontend's side of the window: it keeps each message with a descriptor of its own, and
//! refuses what it is told to refuse. Never maps.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Mutex;

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use vhost::vhost_user::message::VhostUserMMap;
use vhost::vhost_user::{HandlerResult, VhostUserFrontendReqHandler};

/// What the daemon asked for.
#[derive(Debug)]
pub(crate) enum Asked {
    Map {
        file: File,
        offset: u64,
        window: u64,
        len: u64,
        writable: bool,
    },
    Unmap {
        window: u64,
        len: u64,
    },
}

impl Asked {
    /// File offset, window offset, length, writable.
    pub(crate) fn map(&self) -> (u64, u64, u64, bool) {
        match self {
            Self::Map {
                offset,
                window,
                len,
                writable,
                ..
            } => (*offset, *window, *len, *writable),
            Self::Unmap { .. } => panic!("not a map: {self:?}"),
        }
    }

    /// Window offset, length.
    pub(crate) fn unmap(&self) -> (u64, u64) {
        match self {
            Self::Unmap { window, len } => (*window, *len),
            Self::Map { .. } => panic!("not an unmap: {self:?}"),
        }
    }

    pub(crate) fn file(&self) -> &File {
        match self {
            Self::Map { file, .. } => file,
            Self::Unmap { .. } => panic!("no file: {self:?}"),
        }
    }
}

/// A window that nobody looks into.
#[derive(Debug, Default)]
pub(crate) struct Notebook {
    asked: Mutex<Vec<Asked>>,
    refusal: Mutex<Option<i32>>,
}

impl Notebook {
    /// What was asked since the last time.
    pub(crate) fn take(&self) -> Vec<Asked> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    /// Refuses everything from now on, with this number.
    pub(crate) fn refuse(&self, number: Option<i32>) {
        *self.refusal.lock().unwrap() = number;
    }

    fn note(&self, asked: Asked) -> HandlerResult<u64> {
        self.asked.lock().unwrap().push(asked);
        match *self.refusal.lock().unwrap() {
            Some(number) => Err(io::Error::from_raw_os_error(number)),
            None => Ok(0),
        }
    }
}

impl VhostUserFrontendReqHandler for Notebook {
    fn shmem_map(&self, req: &VhostUserMMap, fd: &dyn AsRawFd) -> HandlerResult<u64> {
        assert_eq!(req.shmid, 0);
        let me = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
        let file = pidfd_getfd(me, fd.as_raw_fd(), PidfdGetfdFlags::empty()).unwrap();
        self.note(Asked::Map {
            file: File::from(file),
            offset: req.fd_offset,
            window: req.shm_offset,
            len: req.len,
            writable: req.flags & 1 == 1,
        })
    }

    fn shmem_unmap(&self, req: &VhostUserMMap) -> HandlerResult<u64> {
        assert_eq!(req.shmid, 0);
        self.note(Asked::Unmap {
            window: req.shm_offset,
            len: req.len,
        })
    }
}
