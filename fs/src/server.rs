//! Owns the virtio-fs device as vhost-user sees it: features, queues, configuration, the window's
//! size. Never reads a request.

use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use vhost::vhost_user::Backend;
use vhost::vhost_user::message::{
    VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserVirtioFeatures,
};
use vhost_user_backend::{VhostUserBackend, VringMutex};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use crate::cache::Cache;
use crate::config_space::ConfigSpace;
use crate::guest_memory::{FuseMemory, for_fuse};
use crate::queue::Requests;

/// Requests that can wait in one queue.
const QUEUE_SIZE: usize = 1024;

/// The queue that must not wait behind the others, for what the guest forgets and interrupts.
const URGENT_QUEUES: usize = 1;

/// The device.
#[derive(Debug)]
pub(crate) struct Device {
    requests: Requests,
    cache: Arc<Cache>,
    config: ConfigSpace,
    queues: usize,
    memory: RwLock<Arc<FuseMemory>>,
}

impl Device {
    /// A device with `queues` request queues, each with a thread of its own.
    pub(crate) fn new(requests: Requests, cache: Arc<Cache>, tag: &str, queues: u32) -> Self {
        Self {
            requests,
            cache,
            config: ConfigSpace::new(tag, queues),
            queues: usize::try_from(queues).unwrap_or(usize::MAX),
            memory: RwLock::default(),
        }
    }

    /// Has the threads of the queues end when they have answered what they are at.
    pub(crate) fn end(&self) {
        self.requests.end();
    }
}

impl VhostUserBackend for Device {
    type Bitmap = ();
    type Vring = VringMutex;

    fn num_queues(&self) -> usize {
        self.queues.saturating_add(URGENT_QUEUES)
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        let ring = [
            VIRTIO_F_VERSION_1,
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_RING_F_EVENT_IDX,
        ];
        ring.iter().filter_map(|&bit| 1u64.checked_shl(bit)).fold(
            VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits(),
            |all, bit| all | bit,
        )
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::BACKEND_SEND_FD
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::SHMEM
    }

    fn set_event_idx(&self, _enabled: bool) {
        // The rings know; nothing here depends on it.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        self.config.read(offset, size)
    }

    fn update_memory(&self, memory: GuestMemoryAtomic<GuestMemoryMmap>) -> io::Result<()> {
        let seen = for_fuse(&memory.memory())?;
        *self.memory.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(seen);
        Ok(())
    }

    fn set_backend_req_fd(&self, backend: Backend) {
        self.cache.attach(Box::new(backend));
    }

    fn get_shmem_config(&self) -> io::Result<VhostUserShMemConfig> {
        Ok(VhostUserShMemConfig::new(1, &[self.cache.size()]))
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        (0..self.num_queues())
            .filter_map(|queue| 1u64.checked_shl(u32::try_from(queue).ok()?))
            .collect()
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::CLOEXEC | EventFlag::NONBLOCK)
            .inspect_err(|error| log::error!("cannot make an event for the end: {error}"))
            .ok()
    }

    fn handle_event(
        &self,
        event: u16,
        _set: EventSet,
        vrings: &[VringMutex],
        _thread: usize,
    ) -> io::Result<()> {
        let Some(vring) = vrings.get(usize::from(event)) else {
            return Ok(());
        };
        let memory = Arc::clone(&self.memory.read().unwrap_or_else(PoisonError::into_inner));
        // An error that was handed on would end the thread, and with it the queue, for what the
        // guest wrote into its ring.
        self.requests.serve(vring, &memory);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::Counters;
    use crate::share::{CachePolicyOption, Share, Terms};

    #[test]
    fn each_queue_has_a_thread_and_the_window_its_size() {
        let counters = Arc::<Counters>::default();
        let cache = Arc::new(Cache::new(4 << 20, Arc::clone(&counters)));
        let terms = Terms {
            readonly: false,
            cache: CachePolicyOption::Auto,
        };
        let share = Arc::new(Share::new("/", terms, Arc::clone(&cache)).unwrap());
        let requests = Requests::new(share, Arc::clone(&cache), counters);
        let device = Device::new(requests, cache, "home", 2);
        assert_eq!(device.num_queues(), 3);
        assert_eq!(device.queues_per_thread(), [1, 2, 4]);
        let window = device.get_shmem_config().unwrap();
        assert_eq!((window.nregions, window.memory_sizes[0]), (1, 4 << 20));
        assert_eq!(device.features(), 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28);
        assert!(device.exit_event(0).is_some());
    }
}
