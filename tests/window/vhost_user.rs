//! Owns the test of what a vCPU sees that never stops looking at a page of shared memory while a
//! vhost-user backend changes it: nothing old, once the answer has come. The backend is the crate
//! `vhost`'s.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vhost::vhost_user::message::VhostUserMMap;
use vhost::vhost_user::{Backend, VhostUserFrontendReqHandler};
use vm_remap::BackendKind::Fixed;
use vm_remap::vhost_user::{BackendChannel, NoOtherRequests, Overlap, ShmemHandler};
use vm_remap_cli::guest::{Guest, PAGE, Program};

use crate::support::*;

const REPLACES: u64 = 300;
const UNMAPS: u64 = 100;
/// The page that is watched.
const PAGE_NUMBER: u64 = 3;
/// A pause in which a vCPU that can run does run, sooner or later.
const PAUSE: Duration = Duration::from_millis(2);

/// Four pages of region 7, writable.
const REQUEST: VhostUserMMap = VhostUserMMap {
    shmid: 7,
    padding: [0; 7],
    fd_offset: 0,
    shm_offset: 0,
    len: 4 * PAGE,
    flags: 1,
};

/// A file in which the watched page begins with `word`.
fn file(word: u64) -> File {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(memfd_create("blob", flags).unwrap());
    ftruncate(&file, 4 * PAGE).unwrap();
    fcntl_add_seals(&file, SealFlags::SHRINK).unwrap();
    let at = PAGE_NUMBER * PAGE;
    file.write_all_at(&word.to_ne_bytes(), at).unwrap();
    file
}

/// Serves a channel for as long as `work` runs.
fn serve(mut channel: BackendChannel<NoOtherRequests>, work: impl FnOnce()) {
    let done = &AtomicBool::new(false);
    thread::scope(|scope| {
        let vmm = scope.spawn(move || {
            while !done.load(Ordering::SeqCst) {
                let mut fds = [PollFd::new(&channel, PollFlags::IN)];
                let tick = Timespec {
                    tv_sec: 0,
                    tv_nsec: 1_000_000,
                };
                poll(&mut fds, Some(&tick)).unwrap();
                let wake = channel.wake().unwrap();
                assert!(wake.refused.is_empty(), "{:?}", wake.refused);
            }
        });
        work();
        done.store(true, Ordering::SeqCst);
        vmm.join().unwrap();
    });
}

/// A guest that watches, and the backend that changes what it watches.
fn watched(test: &str, changes: impl FnOnce(&Guest, &Backend)) {
    let Some(Bench { window, guest }) = open(test, Fixed) else {
        return;
    };
    let handler = ShmemHandler::new([(7, Arc::new(window))]).overlap(Overlap::ReplaceSame);
    let (channel, end) = BackendChannel::new(Arc::new(handler), true).unwrap();
    let backend = Backend::from_stream(end);
    backend.set_reply_ack_flag(true);
    backend.set_shmem_flag(true);
    let handler = Arc::clone(channel.handler());
    serve(channel, || changes(&guest, &backend));
    assert_eq!(guest.stale(0).unwrap(), 0);
    assert_eq!(handler.counters().failures, 0);
    handler.reset().unwrap();
}

#[test]
fn answered_map_over_a_map_shows_nothing_old() {
    watched(
        "answered_map_over_a_map_shows_nothing_old",
        |guest, backend| {
            backend.shmem_map(&REQUEST, &file(1000)).unwrap();
            let page = at(PAGE_NUMBER);
            let program = Program::Watch {
                page,
                expected: 1000,
            };
            guest.start(0, program).unwrap();
            for number in 2..REPLACES + 2 {
                backend.shmem_map(&REQUEST, &file(number * 1000)).unwrap();
                guest.set_expected(0, number * 1000).unwrap();
                if number % 3 == 0 {
                    advance(guest, 0);
                }
            }
            advance(guest, 0);
            let ran = guest.stop(0).unwrap();
            // Nor did it meet a hole on the way.
            assert_eq!((ran.efaults, ran.mmio), (0, 0), "{ran:?}");
            assert!(ran.passes > REPLACES / 3, "{ran:?}");
        },
    );
}

#[test]
fn answered_unmap_takes_the_old_bytes_away() {
    watched(
        "answered_unmap_takes_the_old_bytes_away",
        |guest, backend| {
            // What is mapped between has the highest number there is, so that only a byte of before
            // the unmap is too low.
            let highest = file(u64::MAX);
            backend.shmem_map(&REQUEST, &highest).unwrap();
            let page = at(PAGE_NUMBER);
            guest
                .start(0, Program::Watch { page, expected: 0 })
                .unwrap();
            for number in 1..=UNMAPS {
                advance(guest, 0);
                backend.shmem_map(&REQUEST, &file(number)).unwrap();
                guest.set_expected(0, number).unwrap();
                advance(guest, 0);
                backend.shmem_unmap(&REQUEST).unwrap();
                guest.set_expected(0, u64::MAX).unwrap();
                thread::sleep(PAUSE);
                backend.shmem_map(&REQUEST, &highest).unwrap();
                advance(guest, 0);
                guest.set_expected(0, 0).unwrap();
            }
            let ran = guest.stop(0).unwrap();
            assert!(ran.efaults > 0, "{ran:?}");
        },
    );
}
