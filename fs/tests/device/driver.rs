//! Owns the driver's side of one virtqueue in guest memory. Never knows what a request means.

use std::os::fd::AsRawFd as _;

use vhost::vhost_user::{Frontend, VhostUserFrontend as _};
use vhost::{VhostBackend as _, VringConfigData};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::daemon::PATIENCE;

/// Where the frontend claims to have guest memory mapped: any number will do.
pub(crate) const USER_BASE: u64 = 0x7000_0000_0000;

const SIZE: u16 = 64;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// One queue: each has 16 MiB of guest memory for its rings and buffers.
pub(crate) struct Queue {
    base: u64,
    kick: EventFd,
    call: EventFd,
    epoll: Epoll,
    submitted: u16,
    pub(crate) indirect: bool,
}

impl Queue {
    pub(crate) const SPAN: u64 = 16 << 20;

    /// Sets up the queue `index` with the backend.
    pub(crate) fn connect(frontend: &mut Frontend, index: usize) -> Self {
        let base = u64::try_from(index).unwrap() * Self::SPAN;
        let queue = Self {
            base,
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
            call: EventFd::new(EFD_NONBLOCK).unwrap(),
            epoll: Epoll::new().unwrap(),
            submitted: 0,
            indirect: false,
        };
        let used = EpollEvent::new(EventSet::IN, 0);
        let call = queue.call.as_raw_fd();
        queue.epoll.ctl(ControlOperation::Add, call, used).unwrap();
        let rings = VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: USER_BASE + base,
            avail_ring_addr: USER_BASE + queue.avail(),
            used_ring_addr: USER_BASE + queue.used(),
            log_addr: None,
        };
        frontend.set_vring_num(index, SIZE).unwrap();
        frontend.set_vring_addr(index, &rings).unwrap();
        queue.begin(frontend, index, 0);
        queue
    }

    /// Starts the queue, also once more, from the request `base` on.
    pub(crate) fn begin(&self, frontend: &mut Frontend, index: usize, base: u32) {
        let base = u16::try_from(base).unwrap();
        frontend.set_vring_base(index, base).unwrap();
        frontend.set_vring_call(index, &self.call).unwrap();
        frontend.set_vring_kick(index, &self.kick).unwrap();
        frontend.set_vring_enable(index, true).unwrap();
    }

    /// How many requests there have been.
    pub(crate) fn submitted(&self) -> u16 {
        self.submitted
    }

    fn avail(&self) -> u64 {
        self.base + 0x2000
    }

    fn used(&self) -> u64 {
        self.base + 0x3000
    }

    fn request(&self) -> u64 {
        self.base + 0x10_0000
    }

    fn answer(&self) -> u64 {
        self.base + 0x80_0000
    }

    /// Puts a request into the queue, in two pieces, with room for an answer, in two pieces.
    pub(crate) fn submit(&mut self, memory: &GuestMemoryMmap, request: &[u8], room: usize) {
        memory
            .write_slice(request, GuestAddress(self.request()))
            .unwrap();
        let half = request.len() / 2;
        let mut pieces = vec![
            (self.request(), half, 0),
            (self.request() + half as u64, request.len() - half, 0),
        ];
        if room > 0 {
            pieces.push((self.answer(), 16.min(room), WRITE));
        }
        if room > 16 {
            pieces.push((self.answer() + 16, room - 16, WRITE));
        }
        if self.indirect {
            let table = self.base + 0x4000;
            let len = pieces.len() * 16;
            descriptors(memory, table, &pieces);
            descriptors(memory, self.base, &[(table, len, INDIRECT)]);
        } else {
            descriptors(memory, self.base, &pieces);
        }
        self.offer(memory, 0);
    }

    /// Makes the chain that begins at `head` available.
    pub(crate) fn offer(&mut self, memory: &GuestMemoryMmap, head: u16) {
        let slot = self.avail() + 4 + u64::from(self.submitted % SIZE) * 2;
        memory.write_obj(head, GuestAddress(slot)).unwrap();
        // With event indices: tell me of this one.
        let event = self.avail() + 4 + u64::from(SIZE) * 2;
        memory
            .write_obj(self.submitted, GuestAddress(event))
            .unwrap();
        self.submitted = self.submitted.wrapping_add(1);
        self.publish(memory, self.submitted);
    }

    /// Writes the index of the available ring, right or wrong, and notifies.
    pub(crate) fn publish(&self, memory: &GuestMemoryMmap, index: u16) {
        memory
            .write_obj(index, GuestAddress(self.avail() + 2))
            .unwrap();
        self.kick.write(1).unwrap();
    }

    /// Offers the last chain again, as soon as there is room in the ring for it.
    pub(crate) fn stay_ahead(&mut self, memory: &GuestMemoryMmap) {
        let used = GuestAddress(self.used() + 2);
        while self.submitted.wrapping_sub(memory.read_obj(used).unwrap()) >= SIZE {
            std::hint::spin_loop();
        }
        self.offer(memory, 0);
    }

    /// Waits until the request has been used, and gives what was written.
    pub(crate) fn wait(&self, memory: &GuestMemoryMmap) -> Vec<u8> {
        while !self.is_done(memory) {
            let patience = i32::try_from(PATIENCE.as_millis()).unwrap();
            let mut events = [EpollEvent::default()];
            let ready = self.epoll.wait(patience, &mut events).unwrap();
            assert_eq!(ready, 1, "no answer to a request");
            self.call.read().unwrap();
        }
        let slot = self.used() + 4 + u64::from(self.submitted.wrapping_sub(1) % SIZE) * 8;
        let len: u32 = memory.read_obj(GuestAddress(slot + 4)).unwrap();
        let mut answer = vec![0; usize::try_from(len).unwrap()];
        memory
            .read_slice(&mut answer, GuestAddress(self.answer()))
            .unwrap();
        answer
    }

    pub(crate) fn is_done(&self, memory: &GuestMemoryMmap) -> bool {
        let index: u16 = memory.read_obj(GuestAddress(self.used() + 2)).unwrap();
        index == self.submitted
    }
}

/// Writes a chain of descriptors into a table.
fn descriptors(memory: &GuestMemoryMmap, table: u64, pieces: &[(u64, usize, u16)]) {
    for (index, &(address, len, flags)) in pieces.iter().enumerate() {
        let last = index + 1 == pieces.len();
        let next = u16::try_from(index + 1).unwrap();
        let flags = if last { flags } else { flags | NEXT };
        let at = table + index as u64 * 16;
        memory.write_obj(address, GuestAddress(at)).unwrap();
        let len = u32::try_from(len).unwrap();
        memory.write_obj(len, GuestAddress(at + 8)).unwrap();
        memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
        memory.write_obj(next, GuestAddress(at + 14)).unwrap();
    }
}
