//! Owns the socket end of a backend that does not keep to the protocol: bytes and descriptors, as
//! they are told. Never reads a message but an answer.

use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vhost::vhost_user::message::VhostUserMMap;
use vm_memory::ByteValued;

pub const MAP: u32 = 9;
pub const UNMAP: u32 = 10;
/// Version 1, an answer is wanted.
pub const WANTS_ANSWER: u32 = 1 | 8;

pub struct Raw(UnixStream);

impl Raw {
    pub fn new(end: UnixStream) -> Self {
        end.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        Self(end)
    }

    /// Bytes that leave in one piece, with descriptors.
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        self.try_send(bytes, fds).unwrap();
    }

    pub fn try_send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> rustix::io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent = sendmsg(&self.0, &[IoSlice::new(bytes)], &mut control, flags)?;
        assert_eq!(sent, bytes.len());
        Ok(())
    }

    /// The request that was answered, and the number: 0, or a negated error number.
    pub fn answer(&mut self) -> (u32, i64) {
        let mut answer = [0; 20];
        self.0.read_exact(&mut answer).unwrap();
        let (fields, number) = answer.split_at(12);
        let mut fields = fields.chunks(4).map(|field| field.try_into().unwrap());
        let mut field = || u32::from_ne_bytes(fields.next().unwrap());
        let (request, flags, size) = (field(), field(), field());
        assert_eq!((flags, size), (1 | 4, 8), "no answer's header");
        (request, i64::from_ne_bytes(number.try_into().unwrap()))
    }

    /// Whether there is nothing to read.
    pub fn is_silent(&self) -> bool {
        rustix::io::ioctl_fionread(&self.0).unwrap() == 0
    }

    pub fn hang_up(&self) {
        self.0.shutdown(std::net::Shutdown::Both).unwrap();
    }
}

pub fn header(request: u32, flags: u32, size: u32) -> Vec<u8> {
    let fields = [request, flags, size];
    fields
        .iter()
        .flat_map(|field| field.to_ne_bytes())
        .collect()
}

/// A whole message.
pub fn message(request: u32, body: &VhostUserMMap) -> Vec<u8> {
    let mut bytes = header(request, WANTS_ANSWER, 40);
    bytes.extend(body.as_slice());
    bytes
}
