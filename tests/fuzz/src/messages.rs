//! Owns the target of a hostile vhost-user backend: any bytes on its channel, in any pieces, with
//! any descriptors. Every message is answered once, or the channel is closed and leaves holes.

use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vm_remap::vhost_user::{BackendChannel, NoOtherRequests, Overlap, ShmemHandler, ShmemLimits};
use vm_remap::{DescriptorPolicy, GuestAddress, PAGE_SIZE, SlotNumbers, Window, WindowOptions};

use crate::figures::Figure;
use crate::files::{Files, Kind};
use crate::recorder::Recorder;

const PAGES: u64 = 32;
const LEN: u64 = PAGES * PAGE_SIZE;
const MOST_ACTS: usize = 60;
const MOST_DESCRIPTORS: usize = 40;
const MOST_MAPPINGS: usize = 12;
const MOST_BYTES: u64 = 40 * PAGE_SIZE;
const REGIONS: [u8; 2] = [0, 3];

/// A message that can be framed.
#[derive(Arbitrary, Clone, Debug)]
struct Message {
    map: bool,
    /// In place of the one that `map` says.
    other_request: Option<u32>,
    quiet: bool,
    odd_flags: bool,
    region: u8,
    offset: Figure,
    len: Figure,
    fd_offset: Figure,
    flags: u8,
    /// In place of a body that fits.
    other_body: Option<u16>,
    descriptor: Kind,
    other_descriptors: Option<u8>,
    /// Where it is cut in two; the descriptors go with the first part, or with the second.
    cut: Option<(u8, bool)>,
}

#[derive(Arbitrary, Clone, Debug)]
enum Act {
    Send(Message),
    /// Not even a message.
    Noise(Vec<u8>, Option<Kind>),
    Wake,
    Answers,
    Reset,
    Resize(Kind, u8),
}

/// How the VMM has set it up.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Setup {
    strict: bool,
    replaces: bool,
    per_wake: u8,
}

struct Scene {
    windows: [Arc<Window>; 2],
    channel: BackendChannel<NoOtherRequests>,
    /// Gone once the channel is closed.
    end: Option<UnixStream>,
    files: Files,
    /// How many answers are due, as long as that is known.
    due: Option<usize>,
    answers: usize,
    open: bool,
}

/// Waits until there are as many descriptors as there should be. What is no shared memory is closed by
/// the channel's thread, in its own time, and so is the socket.
fn expect_descriptors(count: usize) {
    let in_time = (0..100_000).any(|_| {
        let counts = open_descriptors() == count;
        if !counts {
            thread::sleep(Duration::from_micros(100));
        }
        counts
    });
    assert!(in_time, "{} descriptors, not {count}", open_descriptors());
}

/// Runs what the bytes say.
pub fn run(data: &[u8]) {
    let mut data = Unstructured::new(data);
    let Ok(setup) = Setup::arbitrary(&mut data) else {
        return;
    };
    let first = open_descriptors();
    let recorder = Arc::new(Recorder::default());
    let mut scene = Scene::new(&recorder, setup);
    let before = open_descriptors();
    for _ in 0..MOST_ACTS {
        let Ok(act) = Act::arbitrary(&mut data) else {
            break;
        };
        if data.is_empty() {
            break;
        }
        scene.act(act);
    }
    scene.drain();
    if let (true, Some(due)) = (scene.open, scene.due) {
        assert_eq!(scene.answers, due, "answers");
    }
    scene.leave();
    expect_descriptors(before - 1);
    let Scene {
        windows,
        channel,
        files,
        ..
    } = scene;
    drop((channel, files));
    // The next input is not to see what is still closing.
    expect_descriptors(first);
    for window in windows {
        Arc::into_inner(window).unwrap().close().unwrap();
    }
    assert_eq!(recorder.registered(), 0, "a slot outlives its window");
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

impl Scene {
    fn new(recorder: &Arc<Recorder>, setup: Setup) -> Self {
        let open = |base: u64, first: u32| {
            let options = WindowOptions::new(GuestAddress(base << 30), LEN);
            let provider = Arc::clone(recorder) as _;
            let numbers = SlotNumbers::new(first..first + 4);
            Arc::new(options.open(provider, numbers).unwrap())
        };
        let windows = [open(4, 8), open(8, 12)];
        let limits = ShmemLimits::default()
            .mappings(MOST_MAPPINGS)
            .bytes(MOST_BYTES)
            .requests_per_wake(usize::from(setup.per_wake % 8));
        let handler = ShmemHandler::new(REGIONS.into_iter().zip(windows.iter().cloned()))
            .limits(limits)
            .policy(match setup.strict {
                true => DescriptorPolicy::peer(),
                false => DescriptorPolicy::own(),
            })
            .overlap(match setup.replaces {
                true => Overlap::ReplaceSame,
                false => Overlap::Refuse,
            });
        let (channel, end) = BackendChannel::new(Arc::new(handler), true).unwrap();
        end.set_nonblocking(true).unwrap();
        Self {
            windows,
            channel,
            end: Some(end),
            files: Files::new(),
            due: Some(0),
            answers: 0,
            open: true,
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Send(message) => self.send(&message),
            Act::Noise(bytes, kind) => {
                self.due = None;
                let fds: Vec<_> = kind
                    .iter()
                    .map(|kind| self.files.descriptor(*kind))
                    .collect();
                self.put(&bytes, &fds);
            }
            Act::Wake => {
                self.wake();
            }
            Act::Answers => self.read_answers(),
            Act::Reset => {
                self.channel.handler().reset().unwrap();
                assert!(self.are_holes());
            }
            Act::Resize(kind, pages) => self.files.resize(kind, u64::from(pages) * PAGE_SIZE),
        }
        self.agree();
    }

    fn send(&mut self, message: &Message) {
        let request = message
            .other_request
            .unwrap_or(if message.map { 9 } else { 10 });
        let mut body = vec![message.region % 8, 1, 2, 3, 4, 5, 6, 7];
        for figure in [message.fd_offset, message.offset, message.len] {
            body.extend(figure.bytes().to_ne_bytes());
        }
        body.extend(u64::from(message.flags % 4).to_ne_bytes());
        if let Some(len) = message.other_body {
            body.resize(usize::from(len % 4097), 0xee);
        }
        let flags =
            1 | if message.quiet { 0 } else { 8 } | if message.odd_flags { 0x40 } else { 0 };
        let mut bytes = Vec::new();
        for field in [request, flags, body.len() as u32] {
            bytes.extend(field.to_ne_bytes());
        }
        bytes.extend(body);
        let count = match message.other_descriptors {
            Some(count) => usize::from(count) % MOST_DESCRIPTORS,
            None => usize::from(request == 9),
        };
        let fds = vec![self.files.descriptor(message.descriptor); count];
        let (cut, late) = message.cut.unwrap_or((0, true));
        let (first, second) = bytes.split_at(usize::from(cut).min(bytes.len() - 1));
        let (with_first, with_second) = if late {
            (&[][..], &fds[..])
        } else {
            (&fds[..], &[][..])
        };
        let whole = self.put(first, with_first) && self.put(second, with_second);
        // What a full socket has left out, nobody knows.
        self.due = match whole {
            true => self
                .due
                .map(|due| due + usize::from(!message.quiet || matches!(request, 1006 | 1007))),
            false => None,
        };
    }

    /// Sends one piece; false where it was not taken whole.
    fn put(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        let Some(end) = &self.end else { return false };
        if bytes.is_empty() {
            return true;
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let sent = sendmsg(
            end,
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        );
        sent == Ok(bytes.len())
    }

    /// Whether there may be more.
    fn wake(&mut self) -> bool {
        match self.channel.wake() {
            Ok(wake) => {
                assert!(self.open, "a closed channel goes on");
                for refusal in &wake.refused {
                    assert!(refusal.errno() > 0, "{refusal}");
                }
                wake.more
            }
            Err(closed) => {
                assert!(closed.left.is_none(), "{closed:?}");
                assert!(self.are_holes(), "{closed:?}");
                // Whoever keeps to the framing, and reads, is not closed.
                assert!(!self.open || self.due.is_none(), "{closed:?}");
                self.open = false;
                false
            }
        }
    }

    fn drain(&mut self) {
        while self.wake() {
            self.read_answers();
        }
        self.read_answers();
        self.agree();
    }

    fn read_answers(&mut self) {
        let Some(end) = &mut self.end else { return };
        let mut answer = [0; 20];
        while let Ok(20) = end.read(&mut answer) {
            let flags = u32::from_ne_bytes(answer[4..8].try_into().unwrap());
            let number = i64::from_ne_bytes(answer[12..].try_into().unwrap());
            assert_eq!(flags, 1 | 4);
            assert!((-4095..=0).contains(&number), "{number}");
            self.answers += 1;
        }
    }

    fn are_holes(&self) -> bool {
        self.windows
            .iter()
            .all(|window| window.mappings().is_empty())
    }

    /// The handler's books say what the windows have, within the limits.
    fn agree(&self) {
        let counters = self.channel.handler().counters();
        let mappings: Vec<_> = self.windows.iter().flat_map(|one| one.mappings()).collect();
        let bytes: u64 = mappings.iter().map(|one| one.range().len()).sum();
        assert_eq!(counters.mappings, mappings.len() as u64);
        assert_eq!(counters.bytes, bytes);
        assert!(mappings.len() <= MOST_MAPPINGS && bytes <= MOST_BYTES);
        assert!(mappings.iter().all(|one| one.range().end() <= LEN));
    }

    /// The backend goes away.
    fn leave(&mut self) {
        self.end = None;
        self.due = None;
        while self.wake() {}
        assert!(!self.open, "a backend that is gone is not seen");
        assert!(self.are_holes());
    }
}
