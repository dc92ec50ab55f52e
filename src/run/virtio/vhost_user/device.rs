//! Owns the device that the guest sees, and what happens to its daemon when the guest starts it,
//! resets it or looks at its configuration. Never serves a daemon's request (`keeper`).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use log::warn;
use vm_memory::GuestMemoryMmap;
use vm_remap::Window;
use vm_remap::vhost_user::{Overlap, ShmemHandler};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::config_news::ConfigNews;
use super::connection::{Connection, Terms};
use super::device_type::DeviceType;
use super::dial::reach;
use super::error::{OpenWindowError, VhostUserError};
use super::keeper::Keeper;
use super::options::VhostUserOptions;
use super::rings::QueueEvents;
use super::shared::{Shared, chain};
use crate::run::virtio::mmio::{
    ActiveQueue, DeviceError, Interrupt, SharedMemoryRegion, VirtioDevice,
};

/// A virtio device whose work a daemon does.
pub struct VhostUserDevice {
    // The thread goes first: it uses the rest.
    _keeper: Keeper,
    shared: Arc<Shared>,
    device_type: DeviceType,
    memory: GuestMemoryMmap,
    windows: BTreeMap<u8, Arc<Window>>,
    queue_sizes: Vec<u16>,
    events: Vec<QueueEvents>,
    /// A guest has used the windows before.
    used: bool,
}

impl VhostUserDevice {
    /// Connects to the daemon, asks what it offers, and opens a window for each of its shared memory
    /// regions with `open_window`, which gets the length in bytes. The daemon works on `memory`,
    /// which has to lie in descriptors, and the guest hears of it through `interrupt`.
    ///
    /// # Errors
    /// [`VhostUserError`], which says what is missing. Windows that were opened are the caller's.
    pub fn new(
        options: &VhostUserOptions,
        memory: GuestMemoryMmap,
        interrupt: Arc<Interrupt>,
        mut open_window: impl FnMut(u64) -> Result<Arc<Window>, OpenWindowError>,
    ) -> Result<Self, VhostUserError> {
        // What makes no sense is told before anybody is waited for.
        options.queues.sizes(1)?;
        let stream = reach(options.starter.as_deref(), &options.socket, options.wait)?;
        let (queues, shared_memory) = (options.queues.count(), options.shared_memory);
        let (connection, terms) =
            Connection::negotiate(stream, queues, shared_memory, options.patience)?;
        let mut windows = BTreeMap::new();
        for (region, len) in terms.regions.iter() {
            let window = open_window(len).map_err(|source| VhostUserError::OpenWindow {
                region,
                len,
                source,
            })?;
            windows.insert(region, window);
        }
        let events = (0..terms.queues).map(|_| queue_events());
        let events = events.collect::<Result<Vec<_>, _>>()?;
        let queue_sizes = options.queues.sizes(terms.queues)?;
        let shared = Arc::new(shared(options, terms, interrupt, &windows));
        let watched = shared.take_on(connection)?;
        Ok(Self {
            _keeper: Keeper::start(Arc::clone(&shared), watched)?,
            shared,
            device_type: options.device_type,
            memory,
            windows,
            queue_sizes,
            events,
            used: false,
        })
    }

    /// Asks the daemon for `what`, if it is there. One that cannot be asked is given up.
    fn ask(&self, what: impl FnOnce(&mut Connection) -> Result<(), VhostUserError>) {
        let mut link = self.shared.link();
        if let Some(Err(error)) = link.connection().map(what) {
            link.give_up(error);
        }
    }

    fn start(&self, features: u64, queues: &[ActiveQueue]) -> Result<(), DeviceError> {
        let mut link = self.shared.link();
        link.started = true;
        let (memory, events) = (&self.memory, &self.events);
        let Some(connection) = link.connection() else {
            let socket = self.shared.socket.clone();
            return Err(Box::new(VhostUserError::Gone { socket }));
        };
        if let Err(error) = connection.start(memory, features, queues, events) {
            let text = chain(&error);
            link.give_up(error);
            return Err(text.into());
        }
        link.running = Some(queues.iter().map(|queue| queue.index).collect());
        Ok(())
    }

    fn empty_windows(&self) {
        if let Err(left) = self.shared.handler.reset() {
            warn!("{}: {}", self.shared.name, chain(&left));
        }
    }
}

impl VirtioDevice for VhostUserDevice {
    fn name(&self) -> &str {
        &self.shared.name
    }

    fn device_type(&self) -> u32 {
        self.device_type.number()
    }

    fn features(&self) -> u64 {
        self.shared.terms.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn shared_memory(&self, id: u32) -> Option<SharedMemoryRegion> {
        let window = self.windows.get(&u8::try_from(id).ok()?)?;
        Some(SharedMemoryRegion {
            base: window.base().0,
            len: window.len(),
        })
    }

    fn read_config(&mut self, offset: u32, data: &mut [u8]) {
        self.ask(|connection| connection.read_config(offset, data));
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) {
        self.ask(|connection| connection.write_config(offset, data));
    }

    fn activate(&mut self, features: u64, queues: &[ActiveQueue]) -> Result<(), DeviceError> {
        if std::mem::replace(&mut self.used, true) {
            // What the daemon mapped while nobody used the device belongs to the time before.
            self.empty_windows();
        }
        self.shared.interrupt.set_always_used(true);
        self.start(features, queues)
    }

    fn reset(&mut self) {
        let mut link = self.shared.link();
        link.started = false;
        let running = link.running.take();
        let stopped = match (running, link.connection()) {
            (Some(queues), Some(connection)) => connection.stop(&queues),
            _ => Ok(()),
        };
        if let Err(error) = stopped {
            link.give_up(error);
        }
        drop(link);
        self.empty_windows();
    }

    fn notify(&mut self, queue: u16) {
        if let Some(events) = self.events.get(usize::from(queue)) {
            // It is refused only where 2^64 - 1 notifications wait already.
            events.kick.write(1).unwrap_or_default();
        }
    }

    fn doorbells(&self) -> Vec<&EventFd> {
        self.events.iter().map(|events| &events.kick).collect()
    }

    fn calls(&self) -> Vec<&EventFd> {
        self.events.iter().map(|events| &events.call).collect()
    }
}

impl fmt::Debug for VhostUserDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VhostUserDevice")
            .field("name", &self.shared.name)
            .field("terms", &self.shared.terms)
            .field("queue_sizes", &self.queue_sizes)
            .finish_non_exhaustive()
    }
}

fn shared(
    options: &VhostUserOptions,
    terms: Terms,
    interrupt: Arc<Interrupt>,
    windows: &BTreeMap<u8, Arc<Window>>,
) -> Shared {
    let (socket, kind) = (options.socket.clone(), options.device_type);
    // Linux sets a range of a DAX window up once more to make it writable.
    let overlap = if kind.is_file_system() {
        Overlap::ReplaceSame
    } else {
        Overlap::Refuse
    };
    let windows = windows.iter().map(|(id, window)| (*id, Arc::clone(window)));
    let handler = ShmemHandler::new(windows)
        .policy(options.policy)
        .limits(options.limits)
        .overlap(overlap)
        .inner(ConfigNews(Arc::clone(&interrupt)));
    let name = format!("vhost-user {kind} at {}", socket.display());
    Shared {
        name,
        socket,
        shared_memory: options.shared_memory,
        patience: options.patience,
        terms,
        interrupt,
        handler: Arc::new(handler),
        link: Mutex::default(),
        starter: options.starter.clone(),
    }
}

fn queue_events() -> Result<QueueEvents, VhostUserError> {
    let event = || {
        EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(|source| VhostUserError::Host {
            what: "an event",
            source,
        })
    };
    Ok(QueueEvents {
        kick: event()?,
        call: event()?,
    })
}
