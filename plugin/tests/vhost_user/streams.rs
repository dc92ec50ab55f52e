//! Owns the tests of the channel as a stream: pieces, floods, and what breaks it for good. Never
//! looks at figures.

use std::os::fd::{AsFd, BorrowedFd};

use vm_remap::vhost_user::{ChannelError, ShmemLimits};

use crate::raw::{MAP, Raw, UNMAP, WANTS_ANSWER, header, message};
use crate::support::*;

#[test]
fn message_in_pieces_is_served_when_it_is_whole() {
    let device = Device::new();
    let (mut channel, end) = device.channel();
    let mut raw = Raw::new(end);
    let file = blob(1, 5);
    let unmap = message(UNMAP, &request(0, PAGES));
    for byte in unmap.chunks(1) {
        assert_eq!(channel.wake().unwrap().served, 0);
        raw.send(byte, &[]);
    }
    assert_eq!(channel.wake().unwrap().served, 1);
    assert_eq!(raw.answer(), (UNMAP, 0));

    // As libvhost-user sends it: the descriptor with the header, and then the body.
    let map = message(MAP, &request(0, 1));
    let (head, body) = map.split_at(12);
    raw.send(head, &[file.as_fd()]);
    assert_eq!(channel.wake().unwrap().served, 0);
    raw.send(body, &[]);
    assert_eq!(channel.wake().unwrap().served, 1);
    assert_eq!(raw.answer(), (MAP, 0));
    assert_eq!(device.seen(), [(0, 5)]);
}

/// Sends parts after a map that stands: why the channel is closed. The window is a hole then.
fn closed_by(parts: &[(&[u8], &[BorrowedFd<'_>])]) -> ChannelError {
    let device = Device::new();
    let (mut channel, end) = device.channel();
    let mut raw = Raw::new(end);
    let file = blob(4, 1);
    raw.send(&message(MAP, &request(8, 4)), &[file.as_fd()]);
    assert_eq!(channel.wake().unwrap().served, 1);
    assert_eq!(raw.answer(), (MAP, 0));
    assert_eq!(device.seen().len(), 4);
    for (bytes, fds) in parts {
        raw.send(bytes, fds);
    }
    let closed = channel.wake().unwrap_err();
    assert!(closed.left.is_none());
    assert_eq!(device.seen(), []);
    let handler = channel.handler();
    assert_eq!(
        (handler.counters().mappings, handler.counters().resets),
        (0, 1)
    );
    // Nothing is taken any more, and the backend's end is shut.
    assert!(raw.try_send(&message(UNMAP, &request(0, 1)), &[]).is_err());
    let again = channel.wake().unwrap_err();
    assert!(matches!(again.cause, ChannelError::Closed));
    closed.cause
}

#[test]
fn bytes_that_are_no_message_close_the_channel_and_leave_holes() {
    let mut other_version = message(UNMAP, &request(0, 1));
    other_version[4] = 2;
    let mut answer = message(UNMAP, &request(0, 1));
    answer[4] |= 4;
    let huge = header(MAP, WANTS_ANSWER, 4097);
    let all = header(MAP, WANTS_ANSWER, u32::MAX);
    for bytes in [&other_version, &answer, &huge, &all, &vec![0xff; 600]] {
        let cause = closed_by(&[(bytes, &[])]);
        assert!(matches!(cause, ChannelError::Violation { .. }), "{cause}");
    }
}

#[test]
fn backend_that_shuts_its_end_leaves_holes_after_its_last_request() {
    let device = Device::new();
    let (mut channel, end) = device.channel();
    let raw = Raw::new(end);
    let file = blob(1, 1);
    raw.send(&message(MAP, &request(0, 1)), &[file.as_fd()]);
    raw.send(&message(MAP, &request(1, 1)), &[file.as_fd()]);
    raw.hang_up();
    let closed = channel.wake().unwrap_err();
    assert!(closed.left.is_none());
    assert_eq!(device.seen(), []);
}

#[test]
fn backend_that_drops_its_end_is_gone() {
    let device = Device::new();
    let (mut channel, end) = device.channel();
    let mut raw = Raw::new(end);
    let file = blob(1, 1);
    raw.send(&message(MAP, &request(0, 1)), &[file.as_fd()]);
    assert_eq!(channel.wake().unwrap().served, 1);
    assert_eq!((raw.answer(), device.seen().len()), ((MAP, 0), 1));
    raw.send(&message(MAP, &request(1, 1))[..30], &[file.as_fd()]);
    drop(raw);
    let closed = channel.wake().unwrap_err();
    assert!(matches!(closed.cause, ChannelError::Disconnected));
    assert_eq!(device.seen(), []);
}

#[test]
fn flood_is_served_a_portion_at_a_time() {
    let device = Device::new();
    let limits = ShmemLimits::default().requests_per_wake(8);
    let (mut channel, end) = channel(device.handler().limits(limits));
    let mut raw = Raw::new(end);
    for _ in 0..20 {
        raw.send(&message(UNMAP, &request(0, 1)), &[]);
    }
    for (refused, more) in [(8, true), (8, true), (4, false)] {
        let wake = channel.wake().unwrap();
        assert_eq!((wake.refused.len(), wake.more), (refused, more));
    }
    for _ in 0..20 {
        assert_eq!(raw.answer(), (UNMAP, -2));
    }
}

#[test]
fn backend_that_reads_no_answers_is_cut_off_and_nobody_waits() {
    let device = Device::new();
    let (mut channel, end) = device.channel();
    let raw = Raw::new(end);
    let file = blob(1, 1);
    raw.send(&message(MAP, &request(0, 1)), &[file.as_fd()]);
    let closed = (0..100_000).find_map(|_| {
        // The socket takes a few hundred at a time; who drains it must never be stuck.
        let sent = raw.try_send(&message(UNMAP, &request(9, 1)), &[]);
        let woken = channel.wake();
        assert!(sent.is_ok() || woken.is_err());
        woken.err()
    });
    let cause = closed.unwrap().cause;
    assert_eq!(
        cause.to_string(),
        "the backend broke the protocol: it leaves its answers unread"
    );
    assert_eq!(device.seen(), []);
}

#[test]
fn descriptors_of_a_flood_are_closed() {
    let before = descriptors(|link| link.contains("flooded"));
    let device = Device::new();
    let (mut channel, end) = device.channel();
    let mut raw = Raw::new(end);
    let file = rustix::fs::memfd_create("flooded", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let many = [file.as_fd(); 60];
    for count in [1, 60, 2, 33] {
        raw.send(&message(MAP, &request(0, 1)), &many[..count]);
        assert_eq!(channel.wake().unwrap().refused.len(), 1);
        assert_eq!(raw.answer().0, MAP);
    }
    assert_eq!(descriptors(|link| link.contains("flooded")), before + 1);
}
