//! Owns a guest that is nothing but memory, queues and a FUSE session, and its VMM. Never starts the
//! daemon.

use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::thread;

use vhost::VhostBackend as _;
use vhost::VhostUserMemoryRegionInfo;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{
    Error as VhostUserError, Frontend, FrontendReqHandler, VhostUserFrontend as _,
};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use super::daemon::Daemon;
use super::driver::{Queue, USER_BASE};
use super::fuse::{self, Answer};
use super::window::Notebook;

const QUEUES: usize = 2;

/// A guest in front of a daemon.
pub(crate) struct Guest<W = Notebook> {
    pub(crate) frontend: Frontend,
    pub(crate) memory: GuestMemoryMmap,
    pub(crate) urgent: Queue,
    pub(crate) queue: Queue,
    pub(crate) window: Arc<W>,
    unique: u64,
}

impl Guest {
    /// Connects, sets up the device, and begins a FUSE session.
    pub(crate) fn mount(daemon: &Daemon) -> Self {
        let mut guest = Self::connect(daemon);
        guest.begin();
        guest
    }

    /// The same without a session: a guest that thinks it has one already.
    pub(crate) fn connect(daemon: &Daemon) -> Self {
        Self::connect_with(daemon, |frontend| {
            let window = Arc::new(Notebook::default());
            serve(frontend, Arc::clone(&window));
            window
        })
    }
}

impl<W> Guest<W> {
    /// The same, with whatever answers the daemon's requests on the channel that `attach` makes.
    pub(crate) fn connect_with(
        daemon: &Daemon,
        attach: impl FnOnce(&mut Frontend) -> Arc<W>,
    ) -> Self {
        let queues = u64::try_from(QUEUES).unwrap();
        let mut frontend = Frontend::connect(daemon.socket(), queues).unwrap();
        frontend.set_owner().unwrap();
        let offered = frontend.get_features().unwrap();
        let wanted =
            1 << 32 | 1 << 29 | 1 << 28 | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        assert_eq!(offered & wanted, wanted);
        let protocol = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::BACKEND_SEND_FD
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::SHMEM;
        assert_eq!(frontend.get_protocol_features().unwrap(), protocol);
        frontend.set_protocol_features(protocol).unwrap();
        frontend.set_features(wanted).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        let window = attach(&mut frontend);
        let memory = share_memory(&mut frontend);
        let urgent = Queue::connect(&mut frontend, 0);
        let queue = Queue::connect(&mut frontend, 1);
        Self {
            frontend,
            memory,
            urgent,
            queue,
            window,
            unique: 1,
        }
    }

    /// Begins a FUSE session.
    pub(crate) fn begin(&mut self) {
        let answer = self.ask(fuse::INIT, 0, &fuse::init());
        assert_eq!(answer.error, 0);
    }

    /// Asks and waits for the answer.
    pub(crate) fn ask(&mut self, opcode: u32, node: u64, body: &[u8]) -> Answer {
        self.unique += 2;
        let request = fuse::request(opcode, self.unique, node, body);
        self.queue.submit(&self.memory, &request, 1 << 20);
        let answer = Answer::new(&self.queue.wait(&self.memory));
        assert_eq!(answer.unique, self.unique);
        answer
    }

    /// The number that a file of the root directory has, and its size.
    pub(crate) fn look_up(&mut self, name: &str) -> (u64, u64) {
        let answer = self.ask(fuse::LOOKUP, fuse::ROOT, &fuse::name(name));
        assert_eq!(answer.error, 0, "{name}");
        (answer.u64_at(0), answer.u64_at(48))
    }

    pub(crate) fn open(&mut self, node: u64, flags: i32) -> u64 {
        let answer = self.ask(fuse::OPEN, node, &fuse::open(flags));
        assert_eq!(answer.error, 0);
        answer.u64_at(0)
    }

    /// Asks for 2 MiB of a file to be mapped, and gives the error.
    pub(crate) fn map(&mut self, node: u64, file: u64, window: u64, writable: bool) -> i32 {
        let body = fuse::setup_mapping(file, 2 << 20, writable, window);
        self.ask(fuse::SETUPMAPPING, node, &body).error
    }

    pub(crate) fn configuration(&mut self, offset: u32, size: u32) -> Vec<u8> {
        let zeros = vec![0; usize::try_from(size).unwrap()];
        let flags = VhostUserConfigFlags::empty();
        let (_, bytes) = self
            .frontend
            .get_config(offset, size, flags, &zeros)
            .unwrap();
        bytes
    }
}

/// Answers the daemon's requests on a thread, until the daemon goes.
fn serve(frontend: &mut Frontend, window: Arc<Notebook>) {
    let mut requests = FrontendReqHandler::new(window).unwrap();
    requests.set_reply_ack_flag(true);
    frontend
        .set_backend_request_fd(&requests.get_tx_raw_fd())
        .unwrap();
    thread::spawn(move || {
        // A refusal has been answered; anything else ends the channel.
        while let Ok(_) | Err(VhostUserError::ReqHandlerError(_)) = requests.handle_request() {}
    });
}

fn share_memory(frontend: &mut Frontend) -> GuestMemoryMmap {
    let size = Queue::SPAN * u64::try_from(QUEUES).unwrap();
    let file = tempfile::tempfile().unwrap();
    file.set_len(size).unwrap();
    let region = VhostUserMemoryRegionInfo {
        guest_phys_addr: 0,
        memory_size: size,
        userspace_addr: USER_BASE,
        mmap_offset: 0,
        mmap_handle: file.as_raw_fd(),
    };
    frontend.set_mem_table(&[region]).unwrap();
    let len = usize::try_from(size).unwrap();
    let backing = Some(FileOffset::new(file, 0));
    GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), len, backing)]).unwrap()
}
