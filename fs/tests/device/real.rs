//! The daemon in front of a real window: what the VMM's handler maps is what the files hold. Only the
//! hypervisor is missing.
//
// UNSAFETY: the trait of the hypervisor's slots is unsafe to implement.

#![expect(
    unsafe_code,
    reason = "the trait of the hypervisor's slots is unsafe to implement"
)]

use std::fs;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags};
use vhost::vhost_user::{Frontend, VhostUserFrontend as _};
use vm_remap::vhost_user::{BackendChannel, Closed, Overlap, ShmemHandler};
use vm_remap::{
    DescriptorPolicy, GuestAddress, PageRange, Slot, SlotNumbers, SlotProvider, Window,
    WindowOptions,
};

use super::daemon::Daemon;
use super::fuse;
use super::guest::Guest;

const MIB2: u64 = 2 << 20;
const PAGE: u64 = 4096;
const WINDOW: u64 = 16 << 20;

/// A hypervisor without guests.
#[derive(Debug)]
struct Nobody;

// SAFETY: nobody ever learns of the memory.
unsafe impl SlotProvider for Nobody {
    unsafe fn register(&self, _slot: &Slot) -> io::Result<()> {
        Ok(())
    }

    fn unregister(&self, _slot: &Slot) -> io::Result<()> {
        Ok(())
    }
}

/// The VMM's side of the window.
struct Vmm {
    window: Arc<Window>,
    loops: Vec<JoinHandle<Closed>>,
}

impl Vmm {
    fn new() -> Self {
        let window = WindowOptions::new(GuestAddress(4 << 30), WINDOW)
            .open(Arc::new(Nobody), SlotNumbers::new(0..8))
            .unwrap();
        Self {
            window: Arc::new(window),
            loops: Vec::new(),
        }
    }

    /// Connects a guest to a daemon, with this window behind the device.
    fn connect(&mut self, daemon: &Daemon) -> Guest<Window> {
        Guest::connect_with(daemon, |frontend| self.attach(frontend))
    }

    fn mount(&mut self, daemon: &Daemon) -> Guest<Window> {
        let mut guest = self.connect(daemon);
        guest.begin();
        guest
    }

    fn attach(&mut self, frontend: &mut Frontend) -> Arc<Window> {
        let handler = ShmemHandler::new([(0, Arc::clone(&self.window))])
            .policy(DescriptorPolicy::peer().regular_file(true).seals(0))
            .overlap(Overlap::ReplaceSame);
        let (mut channel, peer) = BackendChannel::new(Arc::new(handler), true).unwrap();
        frontend.set_backend_request_fd(&peer).unwrap();
        self.loops.push(thread::spawn(move || {
            loop {
                let mut ready = [PollFd::new(&channel, PollFlags::IN)];
                rustix::event::poll(&mut ready, None).unwrap();
                match channel.wake() {
                    Ok(wake) => assert!(wake.refused.is_empty(), "{:?}", wake.refused),
                    Err(closed) => return closed,
                }
            }
        }));
        Arc::clone(&self.window)
    }

    /// What the guest reads at a place of the window, or nothing where nothing is mapped.
    fn read(&self, at: u64, len: usize) -> Option<Vec<u8>> {
        let pin = self.window.pin(range(at)).ok()?;
        let mut bytes = vec![0; len];
        pin.read(at % PAGE, &mut bytes).unwrap();
        Some(bytes)
    }
}

/// The page that holds `at`.
fn range(at: u64) -> PageRange {
    PageRange::new(at - at % PAGE, PAGE).unwrap()
}

#[test]
fn guest_reads_and_writes_files_in_the_window_in_each_sandbox() {
    let test = "guest_reads_and_writes_files_in_the_window_in_each_sandbox";
    Daemon::in_each_sandbox(test, |daemon| {
        fs::write(daemon.path("small"), "12345").unwrap();
        fs::write(daemon.path("large"), vec![b'l'; 2 << 20]).unwrap();
        let mut vmm = Vmm::new();
        let mut guest = vmm.mount(&daemon);
        let (small, _) = guest.look_up("small");
        let (large, _) = guest.look_up("large");
        assert_eq!(guest.map(small, 0, 0, false), 0);
        assert_eq!(guest.map(large, 0, MIB2, false), 0);
        assert_eq!(vmm.read(0, 6).unwrap(), b"12345\0");
        assert_eq!(vmm.read(PAGE, 1), None, "past the end of the file");
        assert_eq!(vmm.read(2 * MIB2 - 1, 1).unwrap(), b"l");

        let pin = vmm.window.pin(range(0)).unwrap();
        assert!(!pin.is_writable());
        drop(pin);
        assert_eq!(guest.map(small, 0, 0, true), 0);
        let pin = vmm.window.pin(range(0)).unwrap();
        pin.write(1, b"xyz").unwrap();
        drop(pin);
        assert_eq!(fs::read(daemon.path("small")).unwrap(), b"1xyz5");

        let handle = guest.open(small, libc::O_RDWR);
        guest.ask(fuse::WRITE, small, &fuse::write(handle, 3 * PAGE, b"grown"));
        assert_eq!(vmm.read(3 * PAGE, 5).unwrap(), b"grown");
        assert_eq!(vmm.read(2 * PAGE, 1).unwrap(), [0]);
        assert_eq!(vmm.read(4 * PAGE, 1), None);
    });
}

#[test]
fn file_larger_than_the_window_goes_through_it_piece_by_piece() {
    let daemon = Daemon::start(&[]);
    let ranges = 40;
    let file = fs::File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(daemon.path("huge"))
        .unwrap();
    // A last range that is not full.
    let size = ranges * MIB2 - 5 * PAGE;
    file.set_len(size).unwrap();
    for index in 0..ranges {
        let mark = [u8::try_from(index).unwrap() + 1; 8];
        file.write_all_at(&mark, index * MIB2).unwrap();
    }
    let mut vmm = Vmm::new();
    let mut guest = vmm.mount(&daemon);
    let (node, found) = guest.look_up("huge");
    assert_eq!(found, size);
    let places = WINDOW / MIB2;
    for round in 0..2 {
        for index in 0..ranges {
            let place = index % places * MIB2;
            // Linux unmaps what it reclaims; now and then it is left to the daemon.
            if index % 3 != 0 {
                let remove = fuse::remove_mappings(&[(place, MIB2)]);
                assert_eq!(guest.ask(fuse::REMOVEMAPPING, node, &remove).error, 0);
            }
            assert_eq!(guest.map(node, index * MIB2, place, round == 1), 0);
            let mark = u8::try_from(index).unwrap() + 1 + round * 100;
            assert_eq!(vmm.read(place, 8).unwrap(), [mark - round * 100; 8]);
            if round == 1 {
                let pin = vmm.window.pin(range(place)).unwrap();
                pin.write(8, &[mark; 4]).unwrap();
            }
        }
    }
    for index in 0..ranges {
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, index * MIB2 + 8).unwrap();
        assert_eq!(bytes, [u8::try_from(index).unwrap() + 101; 4]);
    }
    let renamed = [
        fuse::longs(&[fuse::ROOT]),
        fuse::name("huge"),
        fuse::name("renamed"),
    ];
    let answer = guest.ask(fuse::RENAME, fuse::ROOT, &renamed.concat());
    assert_eq!(answer.error, 0);
    assert!(vmm.read(0, 1).is_some(), "a name is not a mapping");
    let cut = guest.ask(fuse::SETATTR, node, &fuse::set_size(10));
    assert_eq!(cut.error, 0);
    assert_eq!(guest.ask(fuse::DESTROY, 0, &[]).error, 0);
    assert!(vmm.window.mappings().is_empty());
}

#[test]
fn daemon_that_is_killed_leaves_holes_and_the_next_one_maps_again() {
    let first = Daemon::start(&[]);
    fs::write(first.path("file"), "content").unwrap();
    let mut vmm = Vmm::new();
    let mut guest = vmm.mount(&first);
    let (node, _) = guest.look_up("file");
    assert_eq!(guest.map(node, 0, 0, false), 0);
    assert_eq!(vmm.read(0, 7).unwrap(), b"content");
    let home = first.kill();
    vmm.loops.pop().unwrap().join().unwrap();
    assert_eq!(vmm.read(0, 1), None);

    let second = Daemon::start_in(home, &[]).unwrap();
    let mut guest = vmm.connect(&second);
    assert_eq!(guest.map(node, 0, 0, false), libc::ENOTCONN);
    assert_eq!(vmm.read(0, 1), None);
    guest.begin();
    let (node, _) = guest.look_up("file");
    assert_eq!(guest.map(node, 0, MIB2, false), 0);
    assert_eq!(vmm.read(MIB2, 7).unwrap(), b"content");
}
