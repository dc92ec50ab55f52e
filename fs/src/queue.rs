//! Owns the way of one request: from the available ring to the share and back into the used ring.
//! Never knows what a request means, but for its header.
//!
//! The ring belongs to vhost-user, the request to the FUSE library, and each has its own version of
//! virtio-queue; see [`guest_memory`](crate::guest_memory). So the version that the FUSE library
//! knows takes requests out of the available ring, and the other does everything else.

use std::io::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fuse_backend_rs::abi::fuse_abi::{InHeader, Opcode, OutHeader};
use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::transport::{Reader, VirtioFsWriter, Writer};
use fuse_virtio_queue::{DescriptorChain, Queue, QueueState, QueueT as _};
use fuse_vm_memory::ByteValued as _;
use vhost_user_backend::{VringMutex, VringT as _};
use virtio_queue::QueueT as _;

use crate::cache::Cache;
use crate::counters::Counters;
use crate::guest_memory::FuseMemory;
use crate::session::NO_SESSION;
use crate::share::{Mapper, Share};

/// A request of the guest, not yet read.
type Chain<'a> = DescriptorChain<&'a FuseMemory>;

/// Answers the requests of the guest.
pub(crate) struct Requests {
    server: Server<Arc<Share>>,
    share: Arc<Share>,
    cache: Arc<Cache>,
    counters: Arc<Counters>,
    ending: AtomicBool,
}

impl Requests {
    pub(crate) fn new(share: Arc<Share>, cache: Arc<Cache>, counters: Arc<Counters>) -> Self {
        Self {
            server: Server::new(Arc::clone(&share)),
            share,
            cache,
            counters,
            ending: AtomicBool::new(false),
        }
    }

    /// Has no more requests taken, also where a guest asks faster than it is answered.
    pub(crate) fn end(&self) {
        self.ending.store(true, Ordering::Release);
    }

    /// Answers what is in a queue until it is empty, and has the guest notify from then on. A ring
    /// that does not lie in guest memory is left alone until the guest notifies again.
    pub(crate) fn serve(&self, vring: &VringMutex, memory: &FuseMemory) {
        if let Err(error) = self.drain(vring, memory) {
            self.counters.complain(format_args!(
                "cannot go on with a queue until the guest notifies: {error}"
            ));
        }
    }

    fn drain(&self, vring: &VringMutex, memory: &FuseMemory) -> io::Result<()> {
        loop {
            vring.disable_notification().map_err(io::Error::other)?;
            let mut answered = false;
            while let Some(chain) = pop(vring, memory)? {
                if self.ending.load(Ordering::Acquire) {
                    return Ok(());
                }
                answered = true;
                let head = chain.head_index();
                let len = self.answer(memory, chain);
                push(vring, head, len)?;
            }
            // A ring that claims to have more, and has nothing to take, is broken.
            if !vring.enable_notification().map_err(io::Error::other)? || !answered {
                return Ok(());
            }
        }
    }

    /// Answers one request and gives the length of the answer, in bytes.
    fn answer(&self, memory: &FuseMemory, chain: Chain<'_>) -> u32 {
        self.counters.request();
        match self.reply(memory, chain) {
            Ok(len) => u32::try_from(len).unwrap_or(u32::MAX),
            Err(error) => {
                self.counters.complain(format_args!(
                    "cannot answer a request of the guest: {error}"
                ));
                0
            }
        }
    }

    fn reply(&self, memory: &FuseMemory, chain: Chain<'_>) -> io::Result<usize> {
        let reader =
            Reader::from_descriptor_chain(memory, chain.clone()).map_err(io::Error::other)?;
        let writer = VirtioFsWriter::new(memory, chain).map_err(io::Error::other)?;
        let header: InHeader = reader.clone().read_obj()?;
        if !self.share.is_open() && header.opcode != Opcode::Init as u32 {
            return refuse(writer, &header, NO_SESSION);
        }
        let mut mapper = Mapper::new(Arc::clone(&self.cache));
        let answered = self.server.handle_message(
            reader,
            Writer::from(writer.clone()),
            Some(&mut mapper),
            None,
        );
        match answered {
            // The library does not count the answer to the end of a session.
            Ok(_) if header.opcode == Opcode::Destroy as u32 => {
                Ok(size_of::<OutHeader>().min(writer.available_bytes()))
            }
            Ok(len) => Ok(len),
            Err(error) => {
                log::debug!("cannot make sense of {header:?}: {error}");
                refuse(writer, &header, libc::EIO)
            }
        }
    }
}

impl std::fmt::Debug for Requests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Requests")
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

/// Answers with an error, unless the request has no room for an answer: to forget needs none.
fn refuse(mut writer: VirtioFsWriter<'_>, header: &InHeader, number: i32) -> io::Result<usize> {
    let answer = OutHeader {
        len: u32::try_from(size_of::<OutHeader>()).map_err(io::Error::other)?,
        error: number.saturating_neg(),
        unique: header.unique,
    };
    if writer.available_bytes() < size_of::<OutHeader>() {
        return Ok(0);
    }
    writer.write_all(answer.as_slice())?;
    Ok(size_of::<OutHeader>())
}

/// Takes the next request, if the ring runs and has one.
fn pop<'a>(vring: &VringMutex, memory: &'a FuseMemory) -> io::Result<Option<Chain<'a>>> {
    let mut state = vring.get_mut();
    let ring = state.get_queue_mut();
    if !ring.ready() {
        return Ok(None);
    }
    let now = ring.state();
    let mut taker = Queue::try_from(QueueState {
        max_size: now.max_size,
        next_avail: now.next_avail,
        next_used: now.next_used,
        event_idx_enabled: now.event_idx_enabled,
        size: now.size,
        ready: now.ready,
        desc_table: now.desc_table,
        avail_ring: now.avail_ring,
        used_ring: now.used_ring,
    })
    .map_err(io::Error::other)?;
    let chain = taker.pop_descriptor_chain(memory);
    ring.set_next_avail(taker.next_avail());
    Ok(chain)
}

/// Gives a request back and tells the guest, unless the ring has been stopped meanwhile.
fn push(vring: &VringMutex, head: u16, len: u32) -> io::Result<()> {
    let mut state = vring.get_mut();
    if !state.get_queue().ready() {
        return Ok(());
    }
    state.add_used(head, len).map_err(io::Error::other)?;
    if state.needs_notification().map_err(io::Error::other)? {
        state.signal_used_queue()?;
    }
    Ok(())
}
