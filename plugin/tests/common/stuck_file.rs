//! Owns a file whose owner stops to answer: a mount of FUSE. Never answers more than it must.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The requests that are answered with more than "done" (Linux: `include/uapi/linux/fuse.h`).
const OPEN: u32 = 14;
const INIT: u32 = 26;
const FLUSH: u32 = 25;
const NOT_KNOWN: i32 = -38;

/// A file system of one file; whoever waits for it goes on when it is dropped.
pub struct Stuck {
    place: tempfile::NamedTempFile,
    stuck: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
    owner: Option<JoinHandle<()>>,
}

impl Stuck {
    /// `None` where this process may not mount, or the kernel has no FUSE.
    pub fn mount() -> Option<Self> {
        let place = tempfile::NamedTempFile::new().unwrap();
        let device = File::options()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .ok()?;
        let (stuck, over) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicBool::new(false)),
        );
        let (told, ended) = (Arc::clone(&stuck), Arc::clone(&over));
        let answers = device.try_clone().unwrap();
        let owner = std::thread::spawn(move || own(answers, &told, &ended));
        let stuck = Self {
            place,
            stuck,
            over,
            owner: Some(owner),
        };
        let mut mount = Command::new("mount");
        mount
            .args(["-i", "-t", "fuse", "-o"])
            .arg("fd=0,rootmode=100644,user_id=0,group_id=0")
            .arg("stuck")
            .arg(stuck.place.path());
        let mounted = mount.stdin(device).stderr(Stdio::null()).status();
        mounted
            .is_ok_and(|status| status.success())
            .then_some(stuck)
    }

    pub fn open(&self) -> File {
        let mut options = File::options();
        options
            .read(true)
            .write(true)
            .open(self.place.path())
            .unwrap()
    }

    /// From now on nothing is answered.
    pub fn stick(&self) {
        self.stuck.store(true, Ordering::SeqCst);
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        // Without its owner, the file system answers with errors.
        self.over.store(true, Ordering::SeqCst);
        self.owner.take().unwrap().join().unwrap();
        let mut umount = Command::new("umount");
        umount.args(["-i", "-l"]).arg(self.place.path());
        umount.stderr(Stdio::null()).status().unwrap();
    }
}

fn own(mut device: File, stuck: &AtomicBool, over: &AtomicBool) {
    let mut request = vec![0; 1 << 17];
    while !over.load(Ordering::SeqCst) {
        let tick = Timespec {
            tv_sec: 0,
            tv_nsec: 1_000_000,
        };
        let came = poll(&mut [PollFd::new(&device, PollFlags::IN)], Some(&tick)).unwrap();
        // Before it is mounted, there is nothing to read.
        if came == 0 || device.read(&mut request).is_err() || stuck.load(Ordering::SeqCst) {
            std::thread::yield_now();
            continue;
        }
        let number = u32::from_ne_bytes(request.get(4..8).unwrap().try_into().unwrap());
        let (error, body) = match number {
            INIT => (0, started()),
            OPEN => (0, vec![0; 16]),
            FLUSH => (0, Vec::new()),
            _ => (NOT_KNOWN, Vec::new()),
        };
        let mut answer = (16 + body.len() as u32).to_ne_bytes().to_vec();
        answer.extend(error.to_ne_bytes());
        answer.extend(request.get(8..16).unwrap());
        answer.extend(body);
        // Nobody waits for the answer of some.
        device.write_all(&answer).unwrap_or_default();
    }
}

/// Protocol 7.31, and the most that a write has.
fn started() -> Vec<u8> {
    let fields: [u32; 16] = [7, 31, 0, 0, 0, 4096, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    fields
        .iter()
        .flat_map(|field| field.to_ne_bytes())
        .collect()
}
