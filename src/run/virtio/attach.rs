//! Owns how a device that somebody asked for becomes one of the machine. Never talks to a daemon.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use vm_remap::DescriptorPolicy;
use vm_remap::spec::WindowSpec;

use super::mmio::{self, Interrupt, MmioTransport};
use super::own_daemon::OwnDaemon;
use super::vhost_user::{DeviceType, Queues, SharedMemory, VhostUserDevice, VhostUserOptions};
use crate::run::Machine;
use crate::run::launch::{self, FsServer, FsSpec, Launch, Shmem, VhostUserSpec};

/// The most shared memory that a daemon may announce, in bytes, unless `window=` says otherwise.
const MOST: u64 = 16 << 30;

/// Adds the devices of `launch` to `machine`, in their order.
///
/// # Errors
/// A daemon cannot be used, or the machine has no place for it; the text says whose, and what to do.
pub(in crate::run) fn devices(machine: &mut Machine, launch: &Launch) -> Result<()> {
    let window = &launch.memory.window;
    if maps_shared_files(launch) {
        machine.report_lost_pages();
    }
    for spec in &launch.vhost_user {
        add(machine, &any(spec, window)?, window)?;
    }
    for spec in &launch.fs {
        add(machine, &file_system(spec, window)?, window)?;
    }
    Ok(())
}

/// Whether a guest can map files of a share: whoever may write there can cut them.
fn maps_shared_files(launch: &Launch) -> bool {
    let maps =
        |spec: &VhostUserSpec| spec.device == VIRTIO_ID_FS && !matches!(spec.shmem, Shmem::Off);
    launch.fs.iter().any(|spec| spec.dax) || launch.vhost_user.iter().any(maps)
}

fn any(spec: &VhostUserSpec, window: &WindowSpec) -> Result<VhostUserOptions> {
    let mut options = VhostUserOptions::new(&spec.socket, kind(spec.device)?);
    options.queues = match &spec.queues {
        launch::Queues::AtMost(most) => Queues::AtMost(*most),
        launch::Queues::Sizes(sizes) => Queues::Sizes(sizes.clone()),
    };
    options.shared_memory = match spec.shmem {
        Shmem::Device => announced(window),
        Shmem::Size(len) => SharedMemory::Given(len),
        Shmem::Off => SharedMemory::Off,
    };
    if spec.device == VIRTIO_ID_FS {
        options.policy = shared_files();
    }
    Ok(options)
}

fn file_system(spec: &FsSpec, window: &WindowSpec) -> Result<VhostUserOptions> {
    let kind = kind(VIRTIO_ID_FS)?;
    let mut options = match &spec.server {
        FsServer::Socket(socket) => VhostUserOptions::new(socket, kind),
        FsServer::Daemon(share) => {
            let mut options = VhostUserOptions::new(&share.source, kind);
            options.starter = Some(Arc::new(OwnDaemon::new(spec, share, window)?));
            options
        }
    };
    // One more than those for requests.
    let queues = usize::from(spec.queues).saturating_add(1);
    options.queues = Queues::Sizes(vec![spec.queue_size; queues]);
    options.shared_memory = if spec.dax {
        announced(window)
    } else {
        SharedMemory::Off
    };
    options.policy = shared_files();
    Ok(options)
}

fn kind(number: u32) -> Result<DeviceType> {
    DeviceType::new(number).context("cannot make a device of type 0: there is none")
}

fn announced(window: &WindowSpec) -> SharedMemory {
    SharedMemory::Announced(window.window().unwrap_or(MOST))
}

/// Files of a share lie on any file system and have no seals. The machine takes the guest's faults
/// where one shrinks.
fn shared_files() -> DescriptorPolicy {
    DescriptorPolicy::peer().regular_file(true).seals(0)
}

fn add(machine: &mut Machine, options: &VhostUserOptions, window: &WindowSpec) -> Result<()> {
    let context = || {
        let (kind, socket) = (options.device_type, options.socket.display());
        format!("cannot attach the {kind} of {socket}")
    };
    let interrupt = Arc::new(Interrupt::new().with_context(context)?);
    let memory = machine.memory().clone();
    let open = |len| machine.open_window(len, window).map_err(Into::into);
    let device = VhostUserDevice::new(options, memory.clone(), Arc::clone(&interrupt), open);
    let device = device.with_context(context)?;
    let transport = MmioTransport::new(device, memory, Arc::clone(&interrupt));
    let transport = Arc::new(Mutex::new(transport));
    let place = machine
        .add_virtio_mmio(Arc::clone(&transport) as _, interrupt.line())
        .with_context(context)?;
    let transport = transport.lock().unwrap_or_else(PoisonError::into_inner);
    mmio::connect(&transport, machine.vm(), place.base.into(), place.gsi).with_context(context)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::launch::{FsCache, FsShare, Queues};

    /// Only `--fs` had pages of cut files reported, and a daemon of `--vhost-user` maps the same.
    #[test]
    fn files_are_mapped_by_every_kind_of_share_that_has_a_window() {
        let share = |dax| FsSpec {
            tag: "share".into(),
            server: FsServer::Daemon(FsShare {
                source: "/srv".into(),
                cache: FsCache::Auto,
            }),
            dax,
            queues: 1,
            queue_size: 1024,
        };
        let device = |device, shmem| VhostUserSpec {
            socket: "/run/socket".into(),
            device,
            queues: Queues::AtMost(256),
            shmem,
        };
        let maps = |fs: &[FsSpec], vhost_user: &[VhostUserSpec]| {
            maps_shared_files(&Launch {
                kernel: "vmlinuz".into(),
                initramfs: None,
                cmdline: None,
                cpus: 1,
                memory: "size=512M".parse().unwrap(),
                vhost_user: vhost_user.to_vec(),
                fs: fs.to_vec(),
            })
        };
        assert!(!maps(&[], &[]));
        assert!(!maps(&[share(false)], &[device(VIRTIO_ID_FS, Shmem::Off)]));
        assert!(maps(&[share(false), share(true)], &[]));
        for shmem in [Shmem::Device, Shmem::Size(1 << 30)] {
            assert!(maps(&[], &[device(VIRTIO_ID_FS, shmem)]), "{shmem:?}");
            assert!(!maps(&[], &[device(16, shmem)]), "a GPU's are sealed");
        }
    }
}
