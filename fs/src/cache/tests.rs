//! The window against a frontend that writes down what it is told.

use std::sync::mpsc::{Receiver, Sender, channel};

use vhost::vhost_user::message::VhostUserMMap;
use vhost::vhost_user::{HandlerResult, VhostUserFrontendReqHandler};

use super::table::PAGE;
use super::*;

const MIB2: u64 = 2 << 20;
const WINDOW: u64 = 4 * MIB2;

#[derive(Debug, PartialEq, Eq)]
enum Message {
    Map {
        file: u64,
        window: u64,
        len: u64,
        writable: bool,
    },
    Unmap {
        window: u64,
        len: u64,
    },
}

struct Recorder {
    told: Sender<Message>,
    /// The answer to every message of more than one page, if it is not yes.
    refusal: Option<i32>,
}

impl Recorder {
    fn answer(&self, len: u64) -> HandlerResult<u64> {
        match self.refusal {
            Some(number) if len > PAGE => Err(io::Error::from_raw_os_error(number)),
            _ => Ok(0),
        }
    }
}

impl VhostUserFrontendReqHandler for Recorder {
    fn shmem_map(&self, req: &VhostUserMMap, _file: &dyn AsRawFd) -> HandlerResult<u64> {
        let message = Message::Map {
            file: req.fd_offset,
            window: req.shm_offset,
            len: req.len,
            writable: req.flags == 1,
        };
        self.told.send(message).unwrap();
        self.answer(req.len)
    }

    fn shmem_unmap(&self, req: &VhostUserMMap) -> HandlerResult<u64> {
        let message = Message::Unmap {
            window: req.shm_offset,
            len: req.len,
        };
        self.told.send(message).unwrap();
        self.answer(req.len)
    }
}

fn cache(refusal: Option<i32>) -> (Cache, Receiver<Message>) {
    let (told, heard) = channel();
    let cache = Cache::new(WINDOW, Arc::default());
    cache.attach(Box::new(Recorder { told, refusal }));
    (cache, heard)
}

fn wish(window: u64) -> Wish {
    Wish {
        inode: 7,
        file: 0,
        window,
        len: MIB2,
        writable: false,
    }
}

fn map(file: u64, window: u64, len: u64, writable: bool) -> Message {
    Message::Map {
        file,
        window,
        len,
        writable,
    }
}

fn unmap(window: u64, len: u64) -> Message {
    Message::Unmap { window, len }
}

/// Stands for an open file: the recorder does not look at it.
fn file() -> i32 {
    0
}

fn heard(messages: &Receiver<Message>) -> Vec<Message> {
    messages.try_iter().collect()
}

#[test]
fn a_small_file_grows_piece_by_piece_and_goes_whole() {
    let (cache, messages) = cache(None);
    cache.place(&wish(MIB2), 5, &file()).unwrap();
    assert_eq!(heard(&messages), [map(0, MIB2, PAGE, false)]);
    assert!(cache.short(7, PAGE).is_empty());

    for short in cache.short(7, 3 * PAGE) {
        cache.grow(&short, 3 * PAGE, &file()).unwrap();
    }
    assert_eq!(heard(&messages), [map(PAGE, MIB2 + PAGE, 2 * PAGE, false)]);

    cache.remove(MIB2, MIB2).unwrap();
    assert_eq!(
        heard(&messages),
        [unmap(MIB2, PAGE), unmap(MIB2 + PAGE, 2 * PAGE)]
    );
    cache.grow(&wish(MIB2), MIB2, &file()).unwrap();
    assert_eq!(heard(&messages), []);
}

#[test]
fn an_upgrade_maps_the_same_pieces_again_without_a_hole_between() {
    let (cache, messages) = cache(None);
    cache.place(&wish(0), 5, &file()).unwrap();
    cache.grow(&wish(0), 2 * PAGE, &file()).unwrap();
    heard(&messages);
    let upgrade = Wish {
        writable: true,
        ..wish(0)
    };
    cache.place(&upgrade, MIB2, &file()).unwrap();
    assert_eq!(
        heard(&messages),
        [
            map(0, 0, PAGE, true),
            map(PAGE, PAGE, PAGE, true),
            map(2 * PAGE, 2 * PAGE, MIB2 - 2 * PAGE, true),
        ]
    );
    assert!(cache.short(7, u64::MAX).is_empty());
}

#[test]
fn another_file_takes_the_place_of_what_overlaps_it() {
    let (cache, messages) = cache(None);
    cache.place(&wish(0), MIB2, &file()).unwrap();
    cache.place(&wish(MIB2), MIB2, &file()).unwrap();
    heard(&messages);
    let other = Wish {
        inode: 8,
        len: 2 * MIB2,
        ..wish(0)
    };
    cache.place(&other, u64::MAX, &file()).unwrap();
    assert_eq!(
        heard(&messages),
        [
            unmap(MIB2, MIB2),
            unmap(0, MIB2),
            map(0, 0, 2 * MIB2, false)
        ]
    );
    assert!(cache.has(8) && !cache.has(7));
}

#[test]
fn a_file_that_shrank_is_mapped_anew() {
    let (cache, messages) = cache(None);
    cache.place(&wish(0), MIB2, &file()).unwrap();
    cache.place(&wish(0), 1, &file()).unwrap();
    assert_eq!(
        heard(&messages),
        [
            map(0, 0, MIB2, false),
            unmap(0, MIB2),
            map(0, 0, PAGE, false)
        ]
    );
}

#[test]
fn a_refusal_reaches_the_guest_with_its_number() {
    let (cache, messages) = cache(Some(libc::ENOSPC));
    let refused = cache.place(&wish(0), MIB2, &file()).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::ENOSPC));
    assert!(!cache.has(7));
    cache.place(&wish(0), 1, &file()).unwrap();
    let refused = cache.grow(&wish(0), MIB2, &file()).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::ENOSPC));
    heard(&messages);
    cache.clear();
    assert_eq!(heard(&messages), [unmap(0, PAGE)]);
}

#[test]
fn a_part_of_a_range_is_not_unmapped() {
    let (cache, messages) = cache(None);
    cache.place(&wish(0), MIB2, &file()).unwrap();
    heard(&messages);
    let refused = cache.remove(PAGE, MIB2).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
    cache.remove(MIB2, MIB2).unwrap();
    assert_eq!(heard(&messages), []);
    cache.forget(7).unwrap();
    assert_eq!(heard(&messages), [unmap(0, MIB2)]);
}

#[test]
fn without_a_frontend_nothing_is_mapped() {
    let cache = Cache::new(WINDOW, Arc::default());
    let refused = cache.place(&wish(0), MIB2, &file()).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EOPNOTSUPP));
    let outside = cache.place(&wish(WINDOW), MIB2, &file()).unwrap_err();
    assert_eq!(outside.raw_os_error(), Some(libc::EINVAL));
}
