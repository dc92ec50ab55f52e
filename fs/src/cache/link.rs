//! Owns the way to the frontend: one message for each piece, and what its answer means. Never keeps
//! what is mapped.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vhost::vhost_user::VhostUserFrontendReqHandler;
use vhost::vhost_user::message::{VhostUserMMap, VhostUserMMapFlags};

use super::table::{Piece, Range, Wish};
use crate::counters::Counters;

/// The only shared memory region of the device.
const REGION: u8 = 0;

/// What takes the messages: `vhost::vhost_user::Backend`, or what a test puts in its place.
pub(crate) type Frontend = dyn VhostUserFrontendReqHandler + Send + Sync;

/// The frontend, once there is one.
pub(super) struct Link {
    frontend: Option<Box<Frontend>>,
    counters: Arc<Counters>,
}

impl Link {
    pub(super) fn new(counters: Arc<Counters>) -> Self {
        Self {
            frontend: None,
            counters,
        }
    }

    pub(super) fn attach(&mut self, frontend: Box<Frontend>) {
        self.frontend = Some(frontend);
    }

    /// Maps a piece with the protection of its wish, and waits until the frontend has done so.
    pub(super) fn map(&self, wish: &Wish, piece: &Piece, file: &dyn AsRawFd) -> io::Result<()> {
        let mut message = message(piece);
        message.fd_offset = piece.file;
        if wish.writable {
            message.flags = VhostUserMMapFlags::WRITABLE.bits();
        }
        self.frontend()?
            .shmem_map(&message, file)
            .map_err(|error| self.refused("map", piece, &error))?;
        self.counters.mapped(piece.len);
        Ok(())
    }

    /// Unmaps all pieces of a range, also behind one that the frontend refuses to unmap.
    pub(super) fn unmap(&self, range: &Range) -> io::Result<()> {
        range
            .pieces
            .iter()
            .map(|piece| self.unmap_piece(piece))
            .reduce(Result::and)
            .unwrap_or(Ok(()))
    }

    /// Unmaps what may be gone already: a VMM empties the window when the guest resets the device,
    /// and does not say so. What is there after all will be in the way of the next map.
    pub(super) fn discard(&self, range: &Range) {
        for piece in &range.pieces {
            let unmapped = self
                .frontend()
                .and_then(|frontend| frontend.shmem_unmap(&message(piece)));
            match unmapped {
                Ok(_) => self.counters.unmapped(),
                Err(error) => log::debug!("cannot unmap {piece:x?}: {error}"),
            }
        }
    }

    fn unmap_piece(&self, piece: &Piece) -> io::Result<()> {
        self.frontend()?
            .shmem_unmap(&message(piece))
            .map_err(|error| self.refused("unmap", piece, &error))?;
        self.counters.unmapped();
        Ok(())
    }

    fn frontend(&self) -> io::Result<&Frontend> {
        self.frontend.as_deref().ok_or_else(|| {
            self.counters.complain(format_args!(
                "cannot map files into the guest: the frontend gave no channel for it; \
                 use one that knows SHMEM_MAP, or mount without dax"
            ));
            io::Error::from_raw_os_error(libc::EOPNOTSUPP)
        })
    }

    /// What the guest is told. The vhost crate keeps the frontend's number to itself, so a refusal
    /// that carries none is an I/O error.
    fn refused(&self, verb: &str, piece: &Piece, error: &io::Error) -> io::Error {
        self.counters.refused();
        self.counters.complain(format_args!(
            "cannot {verb} {:#x} bytes at {:#x} of the window: {error}",
            piece.len, piece.window
        ));
        io::Error::from_raw_os_error(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

fn message(piece: &Piece) -> VhostUserMMap {
    VhostUserMMap {
        shmid: REGION,
        shm_offset: piece.window,
        len: piece.len,
        ..VhostUserMMap::default()
    }
}
