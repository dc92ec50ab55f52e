//! Owns a listener for DMA that keeps what it was told, and its comparison with the window. Never
//! fails.

// UNSAFETY: the trait of listeners is unsafe to implement, since memory is freed on their word.
#![expect(unsafe_code, reason = "a listener is unsafe to implement")]

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use vm_remap::{DmaListener, DmaListenerId, DmaMapping, GuestAddress, Window};

#[derive(Debug, Default)]
struct Devices(Mutex<Vec<DmaMapping>>);

impl Devices {
    fn mappings(&self) -> std::sync::MutexGuard<'_, Vec<DmaMapping>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// SAFETY: no device ever learns of the memory.
unsafe impl DmaListener for Devices {
    unsafe fn map(&self, mapping: &DmaMapping) -> io::Result<()> {
        let mut mappings = self.mappings();
        let end = |one: &DmaMapping| one.guest_address().0 + one.len();
        let apart = |one: &DmaMapping| {
            end(one) <= mapping.guest_address().0 || end(mapping) <= one.guest_address().0
        };
        assert!(mappings.iter().all(apart), "{mapping:?} over {mappings:?}");
        mappings.push(*mapping);
        mappings.sort_by_key(DmaMapping::guest_address);
        Ok(())
    }

    fn unmap(&self, mapping: &DmaMapping) -> io::Result<()> {
        let mut mappings = self.mappings();
        let at = mappings.iter().position(|one| one == mapping);
        let Some(at) = at else {
            panic!("{mapping:?} was not mapped like that: {mappings:?}");
        };
        mappings.remove(at);
        Ok(())
    }
}

/// A listener that comes to a window and goes.
#[derive(Default)]
pub(crate) struct Listening {
    devices: Arc<Devices>,
    id: Option<DmaListenerId>,
}

impl Listening {
    /// Comes to the window, or goes where it is there.
    pub(crate) fn switch(&mut self, window: &Window) {
        match self.id.take() {
            Some(id) => assert!(window.remove_dma_listener(id).unwrap()),
            None => {
                let devices = Arc::clone(&self.devices);
                self.id = Some(window.add_dma_listener(devices).unwrap());
            }
        }
    }

    /// Devices reach what the window's layout has, and nothing where nobody listens.
    pub(crate) fn look(&self, window: &Window) {
        let base = window.base().0;
        let of = |one: &vm_remap::Mapping| {
            let (range, writable) = (one.range(), one.protection().is_writable());
            let guest = GuestAddress(base + range.start());
            let host = window.lookup(guest).unwrap().host_address;
            (guest, range.len(), host, writable)
        };
        let layout: Vec<_> = window.mappings().iter().map(of).collect();
        let of = |one: &DmaMapping| {
            let (guest, host) = (one.guest_address(), one.host_address());
            (guest, one.len(), host, one.is_writable())
        };
        let reached: Vec<_> = self.devices.mappings().iter().map(of).collect();
        let wanted = self.id.map_or(Vec::new(), |_| layout);
        assert_eq!(reached, wanted, "devices do not reach what the layout has");
    }

    /// Nothing is left to devices.
    pub(crate) fn reaches_nothing(&self) -> bool {
        self.devices.mappings().is_empty()
    }
}
