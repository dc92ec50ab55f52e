//! Owns the device as a front-end sees it: an entropy source with one shared-memory region. Never
//! asks for anything itself: it hands the channel on which that can be done to whoever plays.

use std::io;
use std::io::Write;
use std::sync::mpsc::Sender;
use std::sync::{Mutex, PoisonError};

use vhost::vhost_user::Backend;
use vhost::vhost_user::message::{
    VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserVirtioFeatures,
};
use vhost_user_backend::{VhostUserBackend, VringRwLock, VringT};
use virtio_queue::QueueOwnedT;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// `VIRTIO_F_VERSION_1`.
const VERSION_1: u64 = 1 << 32;
/// At most so many bytes are given at once.
const MOST: usize = 4096;

/// An entropy source whose bytes are pseudo-random.
pub struct Device {
    region: u64,
    channel: Mutex<Sender<Backend>>,
    memory: Mutex<Option<Memory>>,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device")
            .field("region", &self.region)
            .finish_non_exhaustive()
    }
}

impl Device {
    /// A device whose region has so many bytes. The channel to the front-end is sent to `channel`,
    /// once more whenever the guest starts the device anew.
    #[must_use]
    pub const fn new(region: u64, channel: Sender<Backend>) -> Self {
        Self {
            region,
            channel: Mutex::new(channel),
            memory: Mutex::new(None),
        }
    }

    /// Fills every buffer of the queue.
    fn fill(&self, vring: &VringRwLock) -> io::Result<()> {
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(memory) = memory.as_ref().map(GuestAddressSpace::memory) else {
            return Ok(());
        };
        let chains: Vec<_> = {
            let mut state = vring.get_mut();
            let queue = state.get_queue_mut();
            queue.iter(&*memory).map_err(io::Error::other)?.collect()
        };
        for chain in chains {
            let head = chain.head_index();
            let mut writer = chain.writer(&memory).map_err(io::Error::other)?;
            let bytes = vec![fastrand::u8(..); writer.available_bytes().min(MOST)];
            writer.write_all(&bytes)?;
            let len = u32::try_from(bytes.len()).map_err(io::Error::other)?;
            vring.add_used(head, len).map_err(io::Error::other)?;
        }
        vring.signal_used_queue()
    }
}

impl VhostUserBackend for Device {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        1
    }

    fn max_queue_size(&self) -> usize {
        256
    }

    fn features(&self) -> u64 {
        VERSION_1 | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::BACKEND_SEND_FD
            | VhostUserProtocolFeatures::SHMEM
    }

    fn set_event_idx(&self, _enabled: bool) {}

    /// An entropy source has no configuration; what is asked for is answered with zeroes.
    fn get_config(&self, _offset: u32, size: u32) -> Vec<u8> {
        vec![0; usize::try_from(size).unwrap_or_default().min(MOST)]
    }

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        *self.memory.lock().unwrap_or_else(PoisonError::into_inner) = Some(memory);
        Ok(())
    }

    fn set_backend_req_fd(&self, backend: Backend) {
        let channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        if channel.send(backend).is_err() {
            log::warn!("the device was started once more; the script is run once only");
        }
    }

    fn handle_event(
        &self,
        _event: u16,
        _events: EventSet,
        vrings: &[VringRwLock],
        _thread: usize,
    ) -> io::Result<()> {
        vrings.first().map_or(Ok(()), |vring| self.fill(vring))
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
    }

    fn get_shmem_config(&self) -> io::Result<VhostUserShMemConfig> {
        Ok(VhostUserShMemConfig::new(1, &[self.region]))
    }
}
