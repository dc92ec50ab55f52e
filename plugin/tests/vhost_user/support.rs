//! Owns what the tests share: a device of two regions, files with known bytes, a thread that drives
//! the channel, and a backend of the crate `vhost`. Never writes a message by hand.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vhost::vhost_user::Backend;
use vhost::vhost_user::message::VhostUserMMap;
use vm_remap::vhost_user::{BackendChannel, Closed, NoOtherRequests, Refusal, ShmemHandler};
use vm_remap::{GuestAddress, PageRange, SlotNumbers, Window, WindowOptions};

use crate::recorder::Recorder;

pub const PAGE: u64 = vm_remap::PAGE_SIZE;
pub const PAGES: u64 = 64;
pub const SIZE: u64 = PAGES * PAGE;

pub type Channel = BackendChannel<NoOtherRequests>;

/// The windows of a device with the regions 0 and 5.
pub struct Device {
    pub windows: [Arc<Window>; 2],
    pub recorder: Arc<Recorder>,
}

impl Device {
    pub fn new() -> Self {
        let recorder = Arc::new(Recorder::default());
        let open = |base: u64, first: u32| {
            let options = WindowOptions::new(GuestAddress(base << 30), SIZE);
            let numbers = SlotNumbers::new(first..first + 8);
            let provider = Arc::clone(&recorder) as _;
            let options = options.segment_size(16 * PAGE);
            Arc::new(options.open(provider, numbers).unwrap())
        };
        let windows = [open(4, 8), open(8, 16)];
        Self { windows, recorder }
    }

    pub fn handler(&self) -> ShmemHandler {
        let [first, second] = &self.windows;
        ShmemHandler::new([(0, Arc::clone(first)), (5, Arc::clone(second))])
    }

    pub fn channel(&self) -> (Channel, UnixStream) {
        channel(self.handler())
    }

    pub fn window(&self) -> &Window {
        &self.windows[0]
    }

    /// What the guest reads at the start of each page of region 0 that is mapped.
    pub fn seen(&self) -> Vec<(u64, u8)> {
        let bytes = (0..PAGES).map(|page| Some((page, byte(self.window(), page)?)));
        bytes.flatten().collect()
    }
}

/// A channel, and the backend's end.
pub fn channel(handler: ShmemHandler) -> (Channel, UnixStream) {
    BackendChannel::new(Arc::new(handler), true).unwrap()
}

/// The first byte of a page, as the guest has it, or `None` for a hole.
pub fn byte(window: &Window, page: u64) -> Option<u8> {
    let pin = window.pin(range(page, 1)).ok()?;
    let mut byte = [0];
    pin.read(0, &mut byte).unwrap();
    Some(byte[0])
}

pub fn range(page: u64, pages: u64) -> PageRange {
    PageRange::new(page * PAGE, pages * PAGE).unwrap()
}

/// A memfd whose page `n` begins with `first + n`, sealed against shrinking.
pub fn blob(pages: u64, first: u8) -> File {
    let file = loose(pages, first);
    fcntl_add_seals(&file, SealFlags::SHRINK).unwrap();
    file
}

/// The same without a seal.
pub fn loose(pages: u64, first: u8) -> File {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(memfd_create("blob", flags).unwrap());
    ftruncate(&file, pages * PAGE).unwrap();
    for page in 0..pages {
        file.write_all_at(&[first + page as u8; 64], page * PAGE)
            .unwrap();
    }
    file
}

/// A request for pages of region 0; writable.
pub fn request(page: u64, pages: u64) -> VhostUserMMap {
    VhostUserMMap {
        shm_offset: page * PAGE,
        len: pages * PAGE,
        flags: 1,
        ..VhostUserMMap::default()
    }
}

/// A backend of the crate `vhost`, with everything negotiated.
pub fn backend(end: UnixStream) -> Backend {
    let backend = Backend::from_stream(end);
    backend.set_reply_ack_flag(true);
    backend.set_shmem_flag(true);
    backend
}

/// A thread that does what a VMM's loop does.
pub struct Vmm {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(Channel, Vec<Refusal>, Option<Closed>)>,
}

impl Vmm {
    pub fn run(mut channel: Channel) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut refused = Vec::new();
            let mut closed = None;
            while !told.load(Ordering::SeqCst) && closed.is_none() {
                let mut fds = [PollFd::new(&channel, PollFlags::IN)];
                let tick = Timespec {
                    tv_sec: 0,
                    tv_nsec: 1_000_000,
                };
                poll(&mut fds, Some(&tick)).unwrap();
                match channel.wake() {
                    Ok(wake) => refused.extend(wake.refused),
                    Err(error) => closed = Some(error),
                }
            }
            (channel, refused, closed)
        });
        Self { stop, thread }
    }

    /// Ends the loop: the channel, what was refused, and why it was closed, if it was.
    pub fn end(self) -> (Channel, Vec<Refusal>, Option<Closed>) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

/// How many descriptors this process has open that satisfy `which`, by what they are links to.
pub fn descriptors(which: impl Fn(&str) -> bool) -> usize {
    let all = std::fs::read_dir("/proc/self/fd").unwrap();
    let links = all.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    links.filter(|link| which(&link.to_string_lossy())).count()
}
