//! Owns one run of the device, from the socket to the sum. Never waits without a limit, but for a
//! VMM to come and to leave.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use vhost::vhost_user::{Backend, Listener};
use vhost_user_backend::VhostUserDaemon;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use crate::PAGE;
use crate::blob::Blob;
use crate::channel::{Channel, Reply, map_request};
use crate::device::Device;
use crate::mailbox::{self, within};
use crate::play::Play;
use crate::script::{Piece, Place, Script};
use crate::tally::Tally;

/// What a run is made of.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the device listens.
    pub socket: PathBuf,
    /// The pages of its shared-memory region.
    pub region: u64,
    /// The pages of the largest mapping.
    pub block: u64,
    /// How many steps are made.
    pub changes: u64,
    /// What the script is made from.
    pub seed: u64,
    /// How long the VMM or the guest may take for an answer.
    pub patience: Duration,
    /// How long the guest may take to start the device, and then its program.
    pub boot: Duration,
}

/// What the thread that plays tells.
enum Event {
    Step,
    Over(Result<Tally>),
}

/// Waits for a VMM, plays the script, hands the sum to `report`, and stays until the VMM has left.
pub fn run(options: &Options, mut report: impl FnMut(&Tally)) -> Result<Tally> {
    let (started, channels) = channel();
    let bytes = options.region.checked_mul(PAGE);
    let bytes = bytes.context("the region is too large")?;
    ensure!(
        options.region >= 2,
        "the region needs 2 pages or more: the first is the mailbox"
    );
    let device = Arc::new(Device::new(bytes, started));
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let mut daemon = VhostUserDaemon::new("vm-remap-peer".to_owned(), device, memory)
        .map_err(|error| anyhow!("cannot make the device: {error}"))?;
    let mut listener = Listener::new(&options.socket, true)
        .with_context(|| format!("cannot listen on {}", options.socket.display()))?;
    daemon
        .start(&mut listener)
        .map_err(|error| anyhow!("cannot take a VMM's call: {error}"))?;
    log::info!("a VMM has called; the guest has to start the device");
    let outcome = guard(options, channels);
    if let Ok((tally, _)) = &outcome {
        report(tally);
    } else {
        // A device that does no more is of no use to the VMM.
        daemon.request_shutdown();
    }
    if let Err(error) = daemon.wait() {
        log::info!("the VMM has left: {error}");
    }
    // A channel that ends before the VMM leaves would look like a device that died.
    outcome.map(|(tally, _channel)| tally)
}

/// Plays in a thread of its own, which a VMM that never answers can hold for ever.
fn guard(options: &Options, channels: Receiver<Backend>) -> Result<(Tally, Backend)> {
    let backend = channels
        .recv_timeout(options.boot)
        .with_context(|| format!("no guest has started the device within {:?}", options.boot))?;
    let (events, heard) = channel();
    let script = options.clone();
    let kept = backend.clone();
    std::thread::Builder::new()
        .name("script".to_owned())
        .spawn(move || {
            // Whoever listened has given up.
            let tell = |event| drop(events.send(event));
            let over = play(&script, backend, || tell(Event::Step));
            tell(Event::Over(over));
            drop(channels);
        })?;
    let mut patience = options.boot;
    loop {
        match heard.recv_timeout(patience) {
            Ok(Event::Over(outcome)) => return outcome.map(|tally| (tally, kept)),
            // The step itself waits for the guest, and says better what is wrong with it.
            Ok(Event::Step) => patience = options.patience.saturating_mul(3),
            Err(RecvTimeoutError::Timeout) => {
                bail!("the VMM has not answered for {patience:?}")
            }
            Err(RecvTimeoutError::Disconnected) => bail!("the script ended without a word"),
        }
    }
}

/// Maps the mailbox, waits for the guest to find it, and plays.
fn play(options: &Options, backend: Backend, step_made: impl Fn()) -> Result<Tally> {
    let frontend = Channel::new(backend);
    let page = Blob::empty(1)?;
    let mailbox = mailbox::Device::open(&page, options.patience)?;
    let piece = Piece {
        place: Place { page: 0, pages: 1 },
        skip: 0,
        writable: true,
    };
    let reply = frontend.map(&map_request(&piece), &page)?;
    ensure!(
        reply == Reply::Done,
        "the front-end refuses to map the mailbox, a page at the region's start"
    );
    log::info!("the mailbox is mapped; the guest's program has to find it");
    let greeted = within(options.boot, || mailbox.is_greeted())?;
    ensure!(
        greeted,
        "no program in the guest has found the mailbox within {:?}",
        options.boot
    );
    let mut script = Script::new(options.region, options.block, options.seed);
    let mut play = Play::new(&frontend, options.region, mailbox);
    for _ in 0..options.changes {
        let Some(step) = script.step() else { continue };
        play.step(step)
            .with_context(|| format!("after:\n{}in {step:?}", play.tally()))?;
        // What was not touched is as it was.
        if script.once_in(8)
            && let Some(place) = script.any_mapping()
        {
            play.look_again(place)?;
        }
        step_made();
    }
    for place in script.live() {
        play.look_again(place)?;
    }
    play.end()
}
