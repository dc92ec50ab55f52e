//! Owns the step from the bytes of a socket to whole messages, and the way of an answer. Never waits,
//! never reads past a message, and never judges what is in it.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, recvmsg, send,
};

use super::closed::ChannelError;
use super::closer::Closer;

/// Length of a header, in bytes: request, flags and length of the body, 32 bits each.
const HEADER: usize = 12;

/// The longest body, in bytes.
const MOST_BODY: usize = 4096;

const VERSION_MASK: u32 = 3;
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// How many descriptors of a message are kept: one more than any may have.
const TAKEN: usize = 2;

/// The most descriptors that a piece can come with (Linux: `include/net/scm.h` `SCM_MAX_FD`). There
/// is room for all: the kernel closes the others by itself, and waits for it.
const SENT: usize = 253;

/// The header of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) request: u32,
    flags: u32,
    body: usize,
}

impl Header {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut fields = bytes.chunks_exact(4);
        let mut field = || Some(u32::from_ne_bytes(fields.next()?.try_into().ok()?));
        Some(Self {
            request: field()?,
            flags: field()?,
            body: usize::try_from(field()?).ok()?,
        })
    }

    /// Refuses a header that does not say where the message ends, or that is no request's.
    fn check(self) -> Result<Self, ChannelError> {
        if self.flags & VERSION_MASK != VERSION {
            return Err(violation("a message of another version"));
        }
        if self.flags & REPLY != 0 {
            return Err(violation("an answer that nobody asked for"));
        }
        if self.body > MOST_BODY {
            return Err(violation("a message of more than 4096 bytes"));
        }
        Ok(self)
    }

    pub(super) fn needs_reply(self) -> bool {
        self.flags & NEED_REPLY != 0
    }

    /// Whether it has a flag that the protocol does not have.
    pub(super) fn has_unknown_flags(self) -> bool {
        self.flags & !(VERSION_MASK | REPLY | NEED_REPLY) != 0
    }
}

/// The descriptors of a message.
#[derive(Debug, Default)]
pub(super) struct Descriptors {
    /// At most one more than any message may have; the others are closed.
    pub(super) taken: Vec<OwnedFd>,
    /// There were some that the process has no number for.
    pub(super) lost: bool,
}

/// A whole message.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) header: Header,
    pub(super) body: Vec<u8>,
    pub(super) descriptors: Descriptors,
}

/// The message that is coming in. What has come of it is held here and not in the socket, so nobody
/// is woken for half a message again and again.
#[derive(Debug)]
pub(super) struct Incoming {
    header: Option<Header>,
    bytes: Vec<u8>,
    descriptors: Descriptors,
    closer: Closer,
}

impl Incoming {
    pub(super) fn new(closer: Closer) -> Self {
        Self {
            header: None,
            bytes: Vec::new(),
            descriptors: Descriptors::default(),
            closer,
        }
    }

    /// Closes the descriptors of a message.
    pub(super) fn close(&mut self, descriptors: Descriptors) {
        for fd in descriptors.taken {
            self.closer.close(fd);
        }
    }

    /// Forgets what has come of a message.
    pub(super) fn forget(&mut self) {
        self.header = None;
        self.bytes.clear();
        let descriptors = std::mem::take(&mut self.descriptors);
        self.close(descriptors);
    }

    /// The next message, if all of it is there.
    pub(super) fn next(&mut self, socket: BorrowedFd<'_>) -> Result<Option<Message>, ChannelError> {
        let header = match self.header {
            Some(header) => header,
            None => {
                if !self.fill(socket, HEADER)? {
                    return Ok(None);
                }
                let header = Header::parse(&self.bytes).ok_or_else(|| broken(Errno::INVAL))?;
                self.bytes.clear();
                *self.header.insert(header.check()?)
            }
        };
        if !self.fill(socket, header.body)? {
            return Ok(None);
        }
        self.header = None;
        Ok(Some(Message {
            header,
            body: std::mem::take(&mut self.bytes),
            descriptors: std::mem::take(&mut self.descriptors),
        }))
    }

    /// Reads until there are `len` bytes; false where they are not all there yet. A piece that has
    /// descriptors ends a call early (Linux: `net/unix/af_unix.c` `unix_stream_read_generic`).
    fn fill(&mut self, socket: BorrowedFd<'_>, len: usize) -> Result<bool, ChannelError> {
        let mut piece = [0; 512];
        while let Some(missing) = len.checked_sub(self.bytes.len()).filter(|left| *left > 0) {
            let (room, _) = piece
                .split_at_mut_checked(missing.min(512))
                .ok_or_else(|| broken(Errno::INVAL))?;
            if self.closer.is_full() {
                return Err(violation("its descriptors do not let themselves be closed"));
            }
            match self.descriptors.receive(socket, room, &self.closer) {
                Ok(0) | Err(Errno::CONNRESET) => return Err(ChannelError::Disconnected),
                Ok(count) => self.bytes.extend(room.iter().take(count)),
                Err(Errno::AGAIN) => return Ok(false),
                Err(errno) => return Err(broken(errno)),
            }
        }
        Ok(true)
    }
}

impl Descriptors {
    /// Receives some bytes, and the descriptors that come with them.
    fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        room: &mut [u8],
        closer: &Closer,
    ) -> Result<usize, Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SENT))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let mut room = [IoSliceMut::new(room)];
        let message = retry_on_intr(|| recvmsg(socket, &mut room, &mut control, flags))?;
        for rights in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = rights {
                for fd in rights {
                    if self.taken.len() < TAKEN {
                        self.taken.push(fd);
                    } else {
                        closer.close(fd);
                    }
                }
            }
        }
        let cut = message.flags.contains(ReturnFlags::CTRUNC);
        self.lost |= cut && self.taken.len() < TAKEN;
        Ok(message.bytes)
    }
}

/// Answers a request: 0, or an error number, negated as the protocol has it.
///
/// A unix socket takes as many answers as fit its buffer, some hundred. A backend that leaves so many
/// unread is not waited for.
pub(super) fn answer(socket: BorrowedFd<'_>, request: u32, value: u64) -> Result<(), ChannelError> {
    let mut bytes = Vec::with_capacity(20);
    for field in [request, VERSION | REPLY, 8] {
        bytes.extend(field.to_ne_bytes());
    }
    bytes.extend(value.to_ne_bytes());
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    match retry_on_intr(|| send(socket, &bytes, flags)) {
        Ok(sent) if sent == bytes.len() => Ok(()),
        Ok(_) | Err(Errno::AGAIN) => Err(violation("it leaves its answers unread")),
        Err(Errno::PIPE | Errno::CONNRESET) => Err(ChannelError::Disconnected),
        Err(errno) => Err(broken(errno)),
    }
}

/// How an error number is answered.
pub(super) fn negated(errno: i32) -> u64 {
    i64::from(errno).wrapping_neg().cast_unsigned()
}

fn broken(errno: Errno) -> ChannelError {
    ChannelError::Socket(errno.into())
}

fn violation(reason: &'static str) -> ChannelError {
    ChannelError::Violation { reason }
}
