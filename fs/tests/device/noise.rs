//! A guest that sends whatever comes to its mind.

use std::fs;

use super::daemon::Daemon;
use super::fuse;
use super::guest::Guest;

/// A generator that says the same every time (Marsaglia's xorshift).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }

    /// Often small, often at an edge, at times anything.
    fn figure(&mut self) -> u64 {
        match self.below(6) {
            0 => self.below(8),
            1 => self.below(64) * 4096,
            2 => self.below(8) << 21,
            3 => u64::MAX - self.below(3) * 4095,
            4 => 1 << self.below(64),
            _ => self.roll(),
        }
    }

    fn body(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        for _ in 0..self.below(12) {
            body.extend(self.figure().to_le_bytes());
        }
        for _ in 0..self.below(3) {
            let names = ["file", "dir", "..", "new", "a/b", ""];
            let at = usize::try_from(self.below(6)).unwrap();
            body.extend(fuse::name(names[at]));
        }
        let cut = usize::try_from(self.below(8)).unwrap();
        body.truncate(body.len().saturating_sub(cut));
        body
    }
}

#[test]
fn any_request_is_answered_and_none_ends_the_daemon_or_leaves_the_directory() {
    let daemon = Daemon::start(&[]);
    fs::write(daemon.outside("secret"), "secret").unwrap();
    fs::write(daemon.path("file"), "content").unwrap();
    fs::create_dir(daemon.path("dir")).unwrap();
    let mut guest = Guest::mount(&daemon);
    let mut dice = Dice(0x2545_f491_4f6c_dd1d);
    let mut nodes = vec![fuse::ROOT, 0, u64::MAX];
    for round in 0..6000 {
        if round % 500 == 0 {
            for name in ["file", "dir"] {
                let found = guest.ask(fuse::LOOKUP, fuse::ROOT, &fuse::name(name));
                if found.error == 0 {
                    nodes.push(found.u64_at(0));
                    guest.ask(fuse::OPEN, found.u64_at(0), &fuse::open(libc::O_RDWR));
                }
            }
        }
        let opcode = u32::try_from(dice.below(56)).unwrap();
        if opcode == fuse::FALLOCATE {
            // It may fill the disk of whoever runs the tests.
            continue;
        }
        let at = usize::try_from(dice.below(nodes.len() as u64)).unwrap();
        let mut request = fuse::request(opcode, round, nodes[at], &dice.body());
        if dice.below(20) == 0 {
            let len = u32::try_from(dice.figure() & 0xffff_ffff).unwrap();
            request[..4].copy_from_slice(&len.to_le_bytes());
        }
        let room = usize::try_from(dice.below(3) * dice.below(9000)).unwrap();
        guest.queue.submit(&guest.memory, &request, room);
        let answer = guest.queue.wait(&guest.memory);
        assert!(answer.len() <= room, "{opcode}");
    }
    assert_eq!(guest.ask(fuse::INIT, 0, &fuse::init()).error, 0);
    assert_eq!(guest.ask(fuse::STATFS, fuse::ROOT, &[]).error, 0);
    let log = daemon.log();
    assert!(!log.contains("panicked"), "{log}");
    assert_eq!(fs::read(daemon.outside("secret")).unwrap(), b"secret");
    let mut beside: Vec<_> = fs::read_dir(daemon.outside("."))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    beside.sort();
    assert_eq!(beside, ["log", "secret", "share"]);
}
