//! Owns the proof that device and guest's program agree with a front-end made of the library, in
//! one process and without a guest: the program looks through pins. Never runs a VM.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    reason = "a test that cannot go on fails, and says where"
)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{sleep, spawn};
use std::time::Duration;

use anyhow::{Result, ensure};
use vhost::VhostBackend;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vm_remap::vhost_user::{BackendChannel, NoOtherRequests, Overlap, ShmemConfig, ShmemHandler};
use vm_remap::{GuestAddress, PageRange, SlotNumbers, Window, WindowOptions};
use vm_remap_peer::PAGE;
use vm_remap_peer::guest::{Seen, serve};
use vm_remap_peer::peer::{Options, run};
use vm_remap_peer::stamp::OPEN_BUS;
use vm_remap_peer::tally::Tally;
use vm_remap_peer::words::Words;

#[path = "../../../plugin/tests/common/recorder.rs"]
#[expect(
    dead_code,
    unreachable_pub,
    reason = "shared with the tests of the library"
)]
mod recorder;

const LONG: Duration = Duration::from_secs(60);
const REGION: u64 = 16 << 20;

/// The region as a guest sees it: a hole reads as all ones, and what cannot be written is dropped.
struct Eyes(Arc<Window>);

impl Words for Eyes {
    fn load(&self, at: u64) -> Result<u64> {
        let mut word = [0; 8];
        let Ok(pin) = self.0.pin(page(at)?) else {
            return Ok(OPEN_BUS);
        };
        pin.read(at % PAGE, &mut word)?;
        Ok(u64::from_le_bytes(word))
    }

    fn store(&self, at: u64, value: u64) -> Result<()> {
        match self.0.pin(page(at)?) {
            Ok(pin) if pin.is_writable() => Ok(pin.write(at % PAGE, &value.to_le_bytes())?),
            _ => Ok(()),
        }
    }
}

fn page(at: u64) -> Result<PageRange> {
    ensure!(at.is_multiple_of(8), "{at:#x} is no multiple of 8");
    Ok(PageRange::new(at / PAGE * PAGE, PAGE)?)
}

fn options(folder: &Path, changes: u64) -> Options {
    Options {
        socket: folder.join("socket"),
        region: REGION / PAGE,
        block: 512,
        changes,
        seed: 7,
        patience: LONG,
        boot: LONG,
    }
}

/// Connects as a VMM does, up to where it knows the regions.
fn connect(socket: &PathBuf) -> Frontend {
    // The device may not be there yet.
    let mut frontend = loop {
        match Frontend::connect(socket, 1) {
            Ok(frontend) => break frontend,
            Err(_) => sleep(Duration::from_millis(5)),
        }
    };
    frontend.set_owner().unwrap();
    let features = frontend.get_features().unwrap();
    assert!(features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0);
    frontend.set_features(features).unwrap();
    let wanted = VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::BACKEND_REQ
        | VhostUserProtocolFeatures::BACKEND_SEND_FD
        | VhostUserProtocolFeatures::SHMEM;
    let offered = frontend.get_protocol_features().unwrap();
    assert!(offered.contains(wanted), "{offered:?}");
    frontend.set_protocol_features(wanted).unwrap();
    frontend
}

/// Plays a script against the library: what the device counted, what the program in the guest saw,
/// and the numbers of the errors with which requests were refused.
fn play(changes: u64, overlap: Overlap) -> (Tally, Seen, Vec<i32>) {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path(), changes);
    let socket = options.socket.clone();
    let device = spawn(move || run(&options, |_| {}));
    let mut frontend = connect(&socket);
    let config = ShmemConfig::ask(&mut frontend, 1 << 30).unwrap();
    assert_eq!(config.iter().collect::<Vec<_>>(), [(0, REGION)]);
    let vm = Arc::new(recorder::Recorder::default());
    let window = WindowOptions::new(GuestAddress(4 << 30), REGION)
        .open(vm, SlotNumbers::new(8..16))
        .unwrap();
    let window = Arc::new(window);
    let handler = ShmemHandler::new([(0, Arc::clone(&window))]).overlap(overlap);
    let (channel, theirs) = BackendChannel::new(Arc::new(handler), true).unwrap();
    frontend.set_backend_request_fd(&theirs).unwrap();
    drop(theirs);
    let over = Arc::new(AtomicBool::new(false));
    let frontend_over = Arc::clone(&over);
    let served = spawn(move || wake(channel, &frontend_over));
    let seen = serve(&Eyes(window), REGION / PAGE, LONG).unwrap();
    // The VMM leaves, and so may the device.
    over.store(true, Ordering::Relaxed);
    let errors = served.join().unwrap();
    drop(frontend);
    (device.join().unwrap().unwrap(), seen, errors)
}

/// Serves requests until it is over.
fn wake(mut channel: BackendChannel<NoOtherRequests>, over: &AtomicBool) -> Vec<i32> {
    let mut errors = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let wake = channel.wake().unwrap();
        errors.extend(wake.refused.iter().map(|refusal| refusal.errno()));
        if wake.served == 0 {
            sleep(Duration::from_micros(50));
        }
    }
    errors
}

#[test]
fn whatever_the_device_maps_the_guest_finds() {
    let (tally, seen, errors) = play(1000, Overlap::Refuse);
    assert!(tally.is_right(), "{tally}");
    assert_eq!((tally.over, seen.wrong), (0, 0), "{tally}");
    assert!(tally.mapped > 100 && tally.unmapped > 100 && tally.replaced > 50);
    assert!(tally.over_refused > 50 && tally.refused > 10, "{tally}");
    assert_eq!(
        (tally.pages, tally.holes),
        (seen.pages - seen.holes, seen.holes)
    );
    let refused = tally.refused + tally.over_refused;
    assert_eq!(u64::try_from(errors.len()), Ok(refused));
    // ENOENT, ENXIO, EEXIST, EINVAL, EOVERFLOW: the device's crate does not hand them on.
    for errno in [2, 6, 17, 22, 75] {
        assert!(errors.contains(&errno), "{errno} is missing");
    }
}

#[test]
fn front_end_that_replaces_mappings_is_followed() {
    let (tally, seen, _) = play(300, Overlap::ReplaceSame);
    assert!(tally.is_right() && seen.wrong == 0, "{tally}");
    assert!(tally.over > 20 && tally.over_refused == 0, "{tally}");
}

#[test]
fn front_end_without_shared_memory_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path(), 10);
    let socket = options.socket.clone();
    let device = spawn(move || run(&options, |_| {}));
    let mut frontend = connect(&socket);
    let features = VhostUserProtocolFeatures::BACKEND_REQ;
    frontend.set_protocol_features(features).unwrap();
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    frontend.set_backend_request_fd(&theirs).unwrap();
    let error = device.join().unwrap().unwrap_err();
    assert!(format!("{error:#}").contains("not negotiated"), "{error:#}");
    drop(ours);
}
