//! Owns a small vhost-user daemon: it answers requests in a queue, has a configuration, and maps
//! into a shared memory region what it is asked for. Never knows the frontend's code.

use std::fs::File;
use std::io::{Result, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, RwLock};
use std::thread::JoinHandle;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use vhost::vhost_user::message::{
    VhostUserMMap, VhostUserMMapFlags, VhostUserProtocolFeatures, VhostUserShMemConfig,
};
use vhost::vhost_user::{Backend, Listener, VhostUserFrontendReqHandler};
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringRwLock, VringT};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

/// The shared memory region that the daemon has, and its length.
pub const REGION: u8 = 3;
pub const REGION_LEN: u64 = 2 << 20;
/// The device's own features that it offers, beside version 1 and one that no transport here has.
pub const OWN_FEATURES: u64 = 0b101;

/// What a driver can ask for in a queue: 32 bytes, of which each eight are a number.
#[derive(Clone, Copy, Debug)]
pub enum Request {
    /// Is answered with the number and one.
    Add(u64),
    /// Maps `len` bytes that are all `fill` at `offset` of the region.
    Map { offset: u64, len: u64, fill: u8 },
    /// Unmaps it.
    Unmap { offset: u64, len: u64 },
}

impl Request {
    pub fn words(self) -> [u64; 4] {
        match self {
            Self::Add(number) => [0, number, 0, 0],
            Self::Map { offset, len, fill } => [1, offset, len, fill.into()],
            Self::Unmap { offset, len } => [2, offset, len, 0],
        }
    }
}

/// What a daemon is to be like.
#[derive(Clone, Debug)]
pub struct Manner {
    pub queues: usize,
    pub region_len: u64,
    pub lacks: VhostUserProtocolFeatures,
    /// It lets go of the channel for its requests.
    pub never_asks: bool,
}

impl Default for Manner {
    fn default() -> Self {
        Self {
            queues: 2,
            region_len: REGION_LEN,
            lacks: VhostUserProtocolFeatures::empty(),
            never_asks: false,
        }
    }
}

/// What the test looks at.
#[derive(Debug, Default)]
pub struct Notes {
    pub resets: usize,
    pub features: u64,
    pub config: Vec<u8>,
}

pub struct Worker {
    manner: Manner,
    memory: Option<GuestMemoryAtomic<GuestMemoryMmap>>,
    frontend: Option<Backend>,
    notes: Arc<Mutex<Notes>>,
}

impl Worker {
    fn serve(&self, words: [u64; 4]) -> u64 {
        let [what, offset, len, fill] = words;
        let message = VhostUserMMap {
            shmid: REGION,
            shm_offset: offset,
            len,
            flags: VhostUserMMapFlags::WRITABLE.bits(),
            ..VhostUserMMap::default()
        };
        let frontend = || self.frontend.as_ref().expect("no channel");
        let done = match what {
            0 => return offset + 1,
            1 => frontend().shmem_map(&message, &blob(len, fill as u8)),
            _ => frontend().shmem_unmap(&message),
        };
        u64::from(done.is_err())
    }
}

/// A memfd that is sealed as the library asks of a peer's.
fn blob(len: u64, fill: u8) -> File {
    let fd = memfd_create("blob", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    let mut file = File::from(fd);
    file.write_all(&vec![fill; len as usize]).unwrap();
    fcntl_add_seals(&file, SealFlags::SHRINK).unwrap();
    file
}

impl VhostUserBackendMut for Worker {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        self.manner.queues
    }

    fn max_queue_size(&self) -> usize {
        256
    }

    fn features(&self) -> u64 {
        // Bit 30 is the protocol's, bit 38 is what doorbells cannot do.
        1 << 32 | 1 << 30 | 1 << 38 | OWN_FEATURES
    }

    fn acked_features(&mut self, features: u64) {
        self.notes.lock().unwrap().features = features;
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        let all = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::BACKEND_SEND_FD
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::SHMEM;
        all - self.manner.lacks
    }

    fn reset_device(&mut self) {
        self.notes.lock().unwrap().resets += 1;
    }

    fn set_event_idx(&mut self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let config = &self.notes.lock().unwrap().config;
        let bytes = config.get(offset as usize..(offset + size) as usize);
        bytes.unwrap_or_default().to_vec()
    }

    fn set_config(&mut self, offset: u32, bytes: &[u8]) -> Result<()> {
        let config = &mut self.notes.lock().unwrap().config;
        let Some(old) = config.get_mut(offset as usize..offset as usize + bytes.len()) else {
            return Err(std::io::ErrorKind::InvalidInput.into());
        };
        old.copy_from_slice(bytes);
        Ok(())
    }

    fn update_memory(&mut self, memory: GuestMemoryAtomic<GuestMemoryMmap>) -> Result<()> {
        self.memory = Some(memory);
        Ok(())
    }

    fn set_backend_req_fd(&mut self, frontend: Backend) {
        self.frontend = (!self.manner.never_asks).then_some(frontend);
    }

    /// Without one its threads would outlive it.
    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::empty()).ok()
    }

    fn handle_event(
        &mut self,
        queue: u16,
        _events: EventSet,
        vrings: &[VringRwLock],
        _thread: usize,
    ) -> Result<()> {
        let vring = &vrings[usize::from(queue)];
        let memory = self.memory.as_ref().unwrap().memory();
        loop {
            let chain = vring
                .get_mut()
                .get_queue_mut()
                .pop_descriptor_chain(memory.clone());
            let Some(chain) = chain else { break };
            let head = chain.head_index();
            let parts: Vec<_> = chain.collect();
            let words: [u64; 4] = memory.read_obj(parts[0].addr()).unwrap();
            let answer = self.serve(words);
            memory.write_obj(answer, parts[1].addr()).unwrap();
            vring.add_used(head, 8).unwrap();
            vring.signal_used_queue()?;
        }
        Ok(())
    }

    fn get_shmem_config(&self) -> Result<VhostUserShMemConfig> {
        let mut sizes = [0; 256];
        sizes[usize::from(REGION)] = self.manner.region_len;
        Ok(VhostUserShMemConfig::new(1, &sizes))
    }
}

/// A daemon that listens; it serves one frontend.
pub struct Daemon {
    thread: JoinHandle<VhostUserDaemon<Arc<RwLock<Worker>>>>,
    pub notes: Arc<Mutex<Notes>>,
}

impl Daemon {
    /// Listens at `socket` as soon as this returns.
    pub fn listen(socket: &Path, manner: &Manner) -> Self {
        let notes = Arc::new(Mutex::new(Notes {
            config: (0..16).collect(),
            ..Notes::default()
        }));
        let worker = Arc::new(RwLock::new(Worker {
            manner: manner.clone(),
            memory: None,
            frontend: None,
            notes: Arc::clone(&notes),
        }));
        let mut listener = Listener::new(socket, true).unwrap();
        let thread = std::thread::spawn(move || {
            let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
            let mut daemon = VhostUserDaemon::new("worker".into(), worker, memory).unwrap();
            daemon.start(&mut listener).unwrap();
            daemon
        });
        Self { thread, notes }
    }

    /// Ends it as a signal would, once somebody has connected.
    pub fn kill(self) {
        let mut daemon = self.thread.join().unwrap();
        daemon.request_shutdown();
        daemon.wait().unwrap_or_default();
    }
}
