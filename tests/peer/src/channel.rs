//! Owns the requests to the front-end and its answers. Never decides what to ask for.

use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use vhost::vhost_user::message::{VhostUserMMap, VhostUserMMapFlags};
use vhost::vhost_user::{Backend, Error as VhostError, VhostUserFrontendReqHandler};

use crate::PAGE;
use crate::script::{Piece, Place};

/// The shared-memory region of the device.
pub const REGION: u8 = 0;
/// What the front-end made of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It did it.
    Done,
    /// It refused.
    Refused,
}

/// The way on which the device asks the front-end.
pub struct Channel(Backend);

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Channel")
    }
}

impl Channel {
    /// Takes what the front-end gave.
    #[must_use]
    pub const fn new(backend: Backend) -> Self {
        Self(backend)
    }

    /// Asks for a mapping, and waits for the answer.
    pub fn map(&self, request: &VhostUserMMap, blob: &impl AsRawFd) -> Result<Reply> {
        reply(self.0.shmem_map(request, blob))
    }

    /// Asks for an unmap, and waits for the answer.
    pub fn unmap(&self, request: &VhostUserMMap) -> Result<Reply> {
        reply(self.0.shmem_unmap(request))
    }
}

/// The crate hands on that a request was refused, and not with which error.
fn reply(result: std::io::Result<u64>) -> Result<Reply> {
    let Err(error) = result else {
        return Ok(Reply::Done);
    };
    let inner = error.get_ref();
    let is_refusal = matches!(
        inner.and_then(|inner| inner.downcast_ref()),
        Some(VhostError::FrontendInternalError)
    );
    if is_refusal {
        return Ok(Reply::Refused);
    }
    Err(error).context("the channel to the front-end broke")
}

/// A request for a piece of memory.
#[must_use]
pub fn map_request(piece: &Piece) -> VhostUserMMap {
    let flags = if piece.writable {
        VhostUserMMapFlags::WRITABLE
    } else {
        VhostUserMMapFlags::empty()
    };
    VhostUserMMap {
        shmid: REGION,
        fd_offset: piece.skip.saturating_mul(PAGE),
        shm_offset: piece.place.page.saturating_mul(PAGE),
        len: piece.place.pages.saturating_mul(PAGE),
        flags: flags.bits(),
        ..VhostUserMMap::default()
    }
}

/// A request to unmap what lies at a place.
#[must_use]
pub fn unmap_request(place: Place) -> VhostUserMMap {
    map_request(&Piece {
        place,
        skip: 0,
        writable: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn refusal_is_told_from_a_channel_that_broke() {
        assert_eq!(reply(Ok(0)).unwrap(), Reply::Done);
        let refused = io::Error::other(VhostError::FrontendInternalError);
        assert_eq!(reply(Err(refused)).unwrap(), Reply::Refused);
        let broke = io::Error::other(VhostError::Disconnected);
        reply(Err(broke)).unwrap_err();
    }

    #[test]
    fn request_has_bytes_of_what_the_script_counts_in_pages() {
        let piece = Piece {
            place: Place { page: 3, pages: 2 },
            skip: 1,
            writable: true,
        };
        let wanted = map_request(&piece);
        let figures = (
            { wanted.shm_offset },
            { wanted.len },
            { wanted.fd_offset },
            { wanted.flags },
        );
        assert_eq!(figures, (3 * PAGE, 2 * PAGE, PAGE, 1));
    }
}
