//! Owns the test of the whole way: a daemon of `vhost-user-backend` on a unix socket, a frontend of
//! `vhost` in the VMM. Never uses code of ours on the daemon's side.

use std::io;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use vhost::VhostBackend;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserShMemConfig};
use vhost::vhost_user::{
    Backend, Frontend, Listener, VhostUserFrontend, VhostUserFrontendReqHandler,
};
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringRwLock};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vm_remap::vhost_user::{ChannelError, ConfigError, ShmemConfig};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use crate::support::*;

/// A device with the regions 0 and 5 that hands out the way back to its frontend.
pub struct SharesMemory {
    pub to_test: Sender<Backend>,
    pub config: VhostUserShMemConfig,
}

const PROTOCOL_FEATURES: VhostUserProtocolFeatures = VhostUserProtocolFeatures::SHMEM
    .union(VhostUserProtocolFeatures::BACKEND_REQ)
    .union(VhostUserProtocolFeatures::BACKEND_SEND_FD)
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::MQ);

impl VhostUserBackendMut for SharesMemory {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        1
    }

    fn max_queue_size(&self) -> usize {
        64
    }

    fn features(&self) -> u64 {
        // VHOST_USER_F_PROTOCOL_FEATURES
        1 << 30
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        PROTOCOL_FEATURES
    }

    fn set_event_idx(&mut self, _: bool) {}

    fn update_memory(&mut self, _: GuestMemoryAtomic<GuestMemoryMmap>) -> io::Result<()> {
        Ok(())
    }

    fn set_backend_req_fd(&mut self, backend: Backend) {
        self.to_test.send(backend).unwrap();
    }

    fn handle_event(&mut self, _: u16, _: EventSet, _: &[VringRwLock], _: usize) -> io::Result<()> {
        Ok(())
    }

    fn exit_event(&self, _: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
    }

    fn get_shmem_config(&self) -> io::Result<VhostUserShMemConfig> {
        Ok(self.config)
    }
}

pub fn config() -> VhostUserShMemConfig {
    let mut sizes = [0; 256];
    (sizes[0], sizes[5]) = (SIZE, SIZE);
    VhostUserShMemConfig::new(2, &sizes)
}

/// A daemon that runs, and the frontend that is connected with it, everything negotiated.
pub struct Connected {
    pub frontend: Frontend,
    pub backends: std::sync::mpsc::Receiver<Backend>,
    pub daemon: thread::JoinHandle<()>,
}

pub fn connect(config: VhostUserShMemConfig) -> Connected {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("device");
    let mut listener = Listener::new(&path, true).unwrap();
    let (to_test, backends) = channel();
    let device = Arc::new(Mutex::new(SharesMemory { to_test, config }));
    let daemon = thread::spawn(move || {
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let mut daemon = VhostUserDaemon::new("shares".to_owned(), device, memory).unwrap();
        daemon.start(&mut listener).unwrap();
        // It says how the frontend went away.
        daemon.wait().ok();
    });
    let mut frontend = Frontend::connect(&path, 1).unwrap();
    frontend.set_owner().unwrap();
    let features = frontend.get_features().unwrap();
    frontend.set_features(features & (1 << 30)).unwrap();
    let offered = frontend.get_protocol_features().unwrap();
    assert!(offered.contains(PROTOCOL_FEATURES));
    frontend.set_protocol_features(PROTOCOL_FEATURES).unwrap();
    Connected {
        frontend,
        backends,
        daemon,
    }
}

#[test]
fn daemon_announces_its_regions_and_maps_into_them() {
    let Connected {
        mut frontend,
        backends,
        daemon,
    } = connect(config());
    let regions = ShmemConfig::ask(&mut frontend, 1 << 30).unwrap();
    let announced: Vec<_> = regions.iter().collect();
    assert_eq!(announced, [(0, SIZE), (5, SIZE)]);

    let device = Device::new();
    let (channel, end) = device.channel();
    frontend.set_backend_request_fd(&end).unwrap();
    drop(end);
    let backend = backends.recv().unwrap();
    let vmm = Vmm::run(channel);

    let mut other = request(7, 1);
    other.shmid = 5;
    backend.shmem_map(&request(2, 3), &blob(3, 10)).unwrap();
    backend.shmem_map(&other, &blob(1, 20)).unwrap();
    assert_eq!(device.seen(), [(2, 10), (3, 11), (4, 12)]);
    assert_eq!(byte(&device.windows[1], 7), Some(20));
    backend.shmem_map(&request(4, 1), &blob(1, 30)).unwrap_err();
    backend.shmem_map(&request(5, 1), &blob(1, 30)).unwrap();
    backend.shmem_unmap(&request(2, 3)).unwrap();
    assert_eq!(device.seen(), [(5, 30)]);

    let (mut channel, refused, closed) = vmm.end();
    assert!(closed.is_none());
    assert_eq!(refused.len(), 1);
    // The VMM lets go of the device.
    let closed = channel.close(ChannelError::Disconnected);
    assert!(closed.left.is_none());
    assert_eq!(device.seen(), []);
    assert!(device.windows[1].mappings().is_empty());
    backend.shmem_map(&request(0, 1), &blob(1, 1)).unwrap_err();
    drop((frontend, channel));
    daemon.join().unwrap();
}

#[test]
fn regions_that_make_no_sense_are_refused_before_a_window_is_opened() {
    let Connected {
        mut frontend,
        daemon,
        ..
    } = connect(VhostUserShMemConfig::new(2, &[PAGE]));
    let error = ShmemConfig::ask(&mut frontend, 1 << 30).unwrap_err();
    assert!(matches!(error, ConfigError::Count { .. }), "{error}");
    drop(frontend);
    daemon.join().unwrap();
    let Connected {
        mut frontend,
        daemon,
        ..
    } = connect(VhostUserShMemConfig::new(1, &[1 << 40]));
    let error = ShmemConfig::ask(&mut frontend, 1 << 30).unwrap_err();
    assert!(matches!(error, ConfigError::TooLarge { .. }), "{error}");
    drop(frontend);
    daemon.join().unwrap();
}
