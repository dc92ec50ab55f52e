//! Owns the daemon's life: listen, confine itself, serve one frontend, end. Never reads a request.

use std::io::{self, Read as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Resource, Rlimit};
use signal_hook::SigId;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::{pipe, unregister};
use vhost::vhost_user::{Error as VhostUserError, Listener};
use vhost_user_backend::VhostUserDaemon;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use crate::cache::Cache;
use crate::counters::Counters;
use crate::error::ServeError;
use crate::listen::listen;
use crate::options::Options;
use crate::queue::Requests;
use crate::sandbox::Confinement;
use crate::server::Device;
use crate::share::{Share, Terms};

/// Serves one frontend until it disconnects or the process gets `SIGTERM` or `SIGINT`.
///
/// Call it early in a process of its own, before there are other threads: it confines the calling
/// thread and all that it starts for good, changes the working directory, the file mode mask and the
/// limit of open files, takes both signals for itself, and has a panic of any thread end the
/// process. What went wrong for the guest is logged and answered, and is no error here.
///
/// # Errors
/// See [`ServeError`]. Nothing has been served unless it is [`ServeError::Frontend`].
pub fn serve(options: &Options) -> Result<(), ServeError> {
    let directory = directory(&options.source)?;
    let confinement = Confinement::choose(options.sandbox, &directory)?;
    let (listener, path) = listen(options)?;
    let mut signals = Signals::take().map_err(|source| ServeError::Wait { source })?;
    log::info!(
        "sharing {} as {}, kept inside by {}; waiting for a frontend",
        directory.display(),
        options.tag,
        confinement.description()
    );
    let come = wait(&listener, &signals).map_err(|source| ServeError::Wait { source })?;
    drop(path);
    if !come {
        log::info!("ending before a frontend came");
        return Ok(());
    }
    die_whole();
    let counters = Arc::<Counters>::default();
    let device = confined_device(options, &directory, confinement, &counters)?;
    let ended = attend(&device, listener, &mut signals);
    log::info!("{counters}");
    ended
}

fn directory(source: &Path) -> Result<PathBuf, ServeError> {
    let refused = |error| ServeError::Source {
        path: source.to_owned(),
        source: error,
    };
    let directory = source.canonicalize().map_err(refused)?;
    // What cannot be listed cannot be shared, and a file cannot be listed.
    std::fs::read_dir(&directory).map_err(refused)?;
    Ok(directory)
}

/// A queue whose thread is gone would leave the guest waiting for ever, and nobody would know.
fn die_whole() {
    std::panic::set_hook(Box::new(|panic| {
        log::error!("{panic}; ending, so that the daemon can be started anew");
        std::process::abort();
    }));
}

/// Waits for a frontend, which stays to be accepted; false if a signal came first.
fn wait(listener: &UnixListener, signals: &Signals) -> io::Result<bool> {
    let mut both = [
        PollFd::new(listener, PollFlags::IN),
        PollFd::new(&signals.read, PollFlags::IN),
    ];
    loop {
        match rustix::event::poll(&mut both, None) {
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let [_, signal] = &both;
    Ok(signal.revents().is_empty())
}

/// Confines the thread and makes the device inside.
fn confined_device(
    options: &Options,
    directory: &Path,
    confinement: Confinement,
    counters: &Arc<Counters>,
) -> Result<Arc<Device>, ServeError> {
    raise_limit();
    let cache = Arc::new(Cache::new(options.window, Arc::clone(counters)));
    let terms = Terms {
        readonly: options.readonly,
        cache: options.cache,
    };
    // It opens /proc, which is out of reach afterwards.
    let share = Share::new(".", terms, Arc::clone(&cache))
        .map(Arc::new)
        .map_err(|source| ServeError::Proc { source })?;
    confinement.enter(directory, options.readonly)?;
    let requests = Requests::new(share, Arc::clone(&cache), Arc::clone(counters));
    Ok(Arc::new(Device::new(
        requests,
        cache,
        &options.tag,
        options.threads,
    )))
}

/// Every file that the guest knows takes a descriptor.
fn raise_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, most) {
        log::warn!("cannot raise the limit of open files: {error}");
    }
}

/// Serves the frontend that waits at `listener`.
fn attend(
    device: &Arc<Device>,
    listener: UnixListener,
    signals: &mut Signals,
) -> Result<(), ServeError> {
    let failed = |error: vhost_user_backend::Error| ServeError::Frontend {
        source: io::Error::other(error.to_string()),
    };
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let mut daemon = VhostUserDaemon::new("vm-remap-fs".to_owned(), Arc::clone(device), memory)
        .map_err(failed)?;
    daemon
        .start(&mut Listener::from(listener))
        .map_err(failed)?;
    let stop = daemon.shutdown_handle();
    let ended = thread::scope(|scope| {
        let (read, closer) = (&mut signals.read, &mut signals.ids);
        scope.spawn(move || {
            // A byte is a signal, the end means that the frontend has gone.
            if matches!(read.read(&mut [0]), Ok(1))
                && let Some(stop) = stop
            {
                log::info!("ending for a signal");
                stop.shutdown();
            }
        });
        let ended = daemon.wait();
        // The threads of the queues are waited for, and a guest may ask for ever.
        device.end();
        give_up(closer);
        ended
    });
    match ended {
        Err(vhost_user_backend::Error::HandleRequest(
            VhostUserError::Disconnected | VhostUserError::PartialMessage,
        ))
        | Ok(()) => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// `SIGTERM` and `SIGINT`, as bytes to read.
#[derive(Debug)]
struct Signals {
    read: UnixStream,
    ids: Vec<SigId>,
}

impl Signals {
    fn take() -> io::Result<Self> {
        let (read, write) = UnixStream::pair()?;
        let mut ids = Vec::new();
        for signal in [SIGTERM, SIGINT] {
            ids.push(pipe::register(signal, write.try_clone()?)?);
        }
        Ok(Self { read, ids })
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        give_up(&mut self.ids);
    }
}

/// Forgets the signals and closes the writing ends.
fn give_up(ids: &mut Vec<SigId>) {
    for id in ids.drain(..) {
        unregister(id);
    }
}
