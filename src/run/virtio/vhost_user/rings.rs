//! Owns how a daemon is told to work on queues, and to stop. Never touches a ring itself.

use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::{VhostUserProtocolFeatures as Protocol, VhostUserVirtioFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::connection::{Connection, ask};
use super::error::VhostUserError;
use super::patience::bounded;
use crate::run::virtio::mmio::ActiveQueue;

/// The events of one queue.
#[derive(Debug)]
pub(super) struct QueueEvents {
    /// What the guest's notification triggers.
    pub(super) kick: EventFd,
    /// What the daemon triggers when it has used buffers.
    pub(super) call: EventFd,
}

impl Connection {
    /// Gives the daemon the guest's RAM, and has it work on `queues`.
    pub(super) fn start(
        &mut self,
        memory: &GuestMemoryMmap,
        features: u64,
        queues: &[ActiveQueue],
        events: &[QueueEvents],
    ) -> Result<(), VhostUserError> {
        let regions = memory
            .iter()
            .map(VhostUserMemoryRegionInfo::from_guest_region);
        let regions: Vec<VhostUserMemoryRegionInfo> = regions
            .collect::<Result<_, _>>()
            .map_err(VhostUserError::Memory)?;
        let (stream, patience) = (&self.stream, self.patience);
        bounded(stream, patience, || {
            let frontend = &mut self.frontend;
            let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
            frontend
                .set_features(features | protocol)
                .map_err(ask("settle the features with the daemon"))?;
            frontend
                .set_mem_table(&regions)
                .map_err(ask("give the daemon the guest's memory"))?;
            for queue in queues {
                let events = events.get(usize::from(queue.index));
                let events = events.ok_or(VhostUserError::Lacks { what: "the queue" })?;
                let rings = rings(memory, queue)?;
                set_up(frontend, queue, events, &rings)
                    .map_err(ask("set a queue up in the daemon"))?;
            }
            for queue in queues {
                frontend
                    .set_vring_enable(queue.index.into(), true)
                    .map_err(ask("have the daemon start a queue"))?;
            }
            Ok(())
        })
    }

    /// Has the daemon stop working on `queues`, and forget what it knows of the guest if it can.
    pub(super) fn stop(&mut self, queues: &[u16]) -> Result<(), VhostUserError> {
        let resets = self.protocol.contains(Protocol::RESET_DEVICE);
        let (stream, patience) = (&self.stream, self.patience);
        bounded(stream, patience, || {
            let frontend = &mut self.frontend;
            for queue in queues {
                let queue = usize::from(*queue);
                let stopped = frontend.set_vring_enable(queue, false);
                stopped
                    .and_then(|()| frontend.get_vring_base(queue))
                    .map_err(ask("have the daemon stop a queue"))?;
            }
            if resets {
                frontend
                    .reset_device()
                    .map_err(ask("have the daemon reset the device"))?;
            }
            Ok(())
        })
    }
}

/// Where the rings lie: the daemon gets addresses of this process, which it finds in the table of
/// memory.
fn rings(memory: &GuestMemoryMmap, queue: &ActiveQueue) -> Result<VringConfigData, VhostUserError> {
    let host = |address: GuestAddress| {
        let host = memory.get_host_address(address);
        let host = host.map_err(|_| VhostUserError::Lacks {
            what: "RAM for a queue",
        })?;
        Ok(host.addr() as u64)
    };
    Ok(VringConfigData {
        queue_max_size: queue.size,
        queue_size: queue.size,
        flags: 0,
        desc_table_addr: host(queue.descriptors)?,
        used_ring_addr: host(queue.device)?,
        avail_ring_addr: host(queue.driver)?,
        log_addr: None,
    })
}

fn set_up(
    frontend: &impl VhostBackend,
    queue: &ActiveQueue,
    events: &QueueEvents,
    rings: &VringConfigData,
) -> Result<(), vhost::Error> {
    let index = usize::from(queue.index);
    frontend.set_vring_num(index, queue.size)?;
    frontend.set_vring_addr(index, rings)?;
    frontend.set_vring_base(index, 0)?;
    frontend.set_vring_call(index, &events.call)?;
    frontend.set_vring_kick(index, &events.kick)
}
