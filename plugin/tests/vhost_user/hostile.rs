//! Owns the tests of messages that no honest backend sends: each is answered, and the next is
//! understood. Never breaks the framing.

use std::os::fd::{AsFd, BorrowedFd};

use vhost::vhost_user::message::VhostUserMMap;
use vm_memory::ByteValued;

use crate::raw::{MAP, Raw, UNMAP, WANTS_ANSWER, header, message};
use crate::support::*;

/// Sends parts, and then a good request: what the first was answered with. Both end up where they
/// should, and no descriptor stays.
fn answered(parts: &[(&[u8], &[BorrowedFd<'_>])]) -> (u32, i64) {
    let device = Device::new();
    let (mut channel, end) = device.channel();
    let mut raw = Raw::new(end);
    let file = blob(1, 42);
    for (bytes, fds) in parts {
        raw.send(bytes, fds);
    }
    raw.send(&message(MAP, &request(1, 1)), &[file.as_fd()]);
    let wake = channel.wake().unwrap();
    assert_eq!((wake.served, wake.refused.len()), (1, 1));
    let answer = raw.answer();
    assert_eq!(i64::from(wake.refused.first().unwrap().errno()), -answer.1);
    assert_eq!(raw.answer(), (MAP, 0));
    assert_eq!(device.seen(), [(1, 42)]);
    assert_eq!(channel.handler().counters().refused_figures, 1);
    answer
}

#[test]
fn map_without_a_descriptor_or_with_several_is_answered() {
    let files: Vec<_> = (0..64).map(|_| blob(1, 1)).collect();
    let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    let map = message(MAP, &request(0, 1));
    for count in [0, 2, 3, 32, 33, 64] {
        assert_eq!(answered(&[(&map, &fds[..count])]), (MAP, -22), "{count}");
    }
}

#[test]
fn descriptor_that_nobody_asked_for_is_closed_and_answered() {
    let before = descriptors(|link| link.contains("stray"));
    let stray = rustix::fs::memfd_create("stray", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let unmap = message(UNMAP, &request(0, 1));
    assert_eq!(answered(&[(&unmap, &[stray.as_fd()])]), (UNMAP, -22));
    let (head, body) = unmap.split_at(12);
    let parts: [(&[u8], &[BorrowedFd<'_>]); 2] = [(head, &[]), (body, &[stray.as_fd()])];
    assert_eq!(answered(&parts), (UNMAP, -22));
    let config = header(2, WANTS_ANSWER, 0);
    assert_eq!(answered(&[(&config, &[stray.as_fd()])]), (2, -22));
    assert_eq!(descriptors(|link| link.contains("stray")), before + 1);
}

#[test]
fn descriptors_on_pieces_of_a_map_are_counted_together() {
    let files = [blob(1, 1), blob(1, 2)];
    let [one, two] = &files;
    let map = message(MAP, &request(0, 1));
    for cut in [1, 5, 11, 12, 13, 30, 51] {
        let (head, rest) = map.split_at(cut);
        let parts: [(&[u8], &[BorrowedFd<'_>]); 2] =
            [(head, &[one.as_fd()]), (rest, &[two.as_fd()])];
        assert_eq!(answered(&parts), (MAP, -22), "{cut}");
    }
}

#[test]
fn descriptor_of_a_later_message_is_not_taken_for_an_earlier_one() {
    let map = message(MAP, &request(0, 1));
    // The good request that follows has one.
    assert_eq!(answered(&[(&map, &[])]), (MAP, -22));
}

#[test]
fn body_of_another_length_is_answered() {
    let file = blob(1, 1);
    for (request, size) in [
        (MAP, 0),
        (MAP, 39),
        (MAP, 41),
        (MAP, 4096),
        (UNMAP, 8),
        (UNMAP, 80),
    ] {
        let mut bytes = header(request, WANTS_ANSWER, size);
        bytes.extend(vec![0xff; size as usize]);
        let fds = [file.as_fd()];
        let fds = if request == MAP { &fds[..] } else { &[] };
        assert_eq!(answered(&[(&bytes, fds)]), (request, -22), "{size}");
    }
}

#[test]
fn body_that_vhost_finds_invalid_is_answered() {
    let file = blob(1, 1);
    let wrong = VhostUserMMap {
        len: 0,
        ..request(0, 1)
    };
    assert_eq!(
        answered(&[(&message(MAP, &wrong), &[file.as_fd()])]),
        (MAP, -22)
    );
    assert_eq!(answered(&[(&message(UNMAP, &wrong), &[])]), (UNMAP, -22));
}

#[test]
fn request_that_nobody_knows_is_answered_with_enosys() {
    for request in [0, 1, 3, 4, 5, 11, 1006, u32::MAX] {
        for size in [0, 40, 4096] {
            let mut bytes = header(request, WANTS_ANSWER, size);
            bytes.extend(vec![1; size as usize]);
            assert_eq!(answered(&[(&bytes, &[])]), (request, -38));
        }
    }
}

#[test]
fn flag_that_the_protocol_does_not_have_is_answered() {
    let mut bytes = header(UNMAP, WANTS_ANSWER | 0x100, 40);
    bytes.extend(request(0, 1).as_slice());
    assert_eq!(answered(&[(&bytes, &[])]), (UNMAP, -22));
}

#[test]
fn request_that_wants_no_answer_gets_none() {
    let device = Device::new();
    let (mut channel, end) = device.channel();
    let raw = Raw::new(end);
    let file = blob(1, 1);
    let mut quiet = message(MAP, &request(0, 1));
    quiet[4] = 1;
    raw.send(&quiet, &[file.as_fd()]);
    raw.send(&quiet, &[]);
    raw.send(&quiet, &[file.as_fd()]);
    let wake = channel.wake().unwrap();
    assert_eq!((wake.served, wake.refused.len()), (1, 2));
    assert!(raw.is_silent());
}

#[test]
fn requests_that_are_none_of_memory_go_to_the_handler_of_the_vmm() {
    assert_eq!(answered_by_nobody(2, 0, false), (2, -38));
    assert_eq!(answered_by_nobody(6, 16, false), (6, -38));
    assert_eq!(answered_by_nobody(8, 16, true), (8, -38));
}

fn answered_by_nobody(request: u32, size: u32, with_fd: bool) -> (u32, i64) {
    let device = Device::new();
    let (mut channel, end) = device.channel();
    let mut raw = Raw::new(end);
    let file = blob(1, 1);
    let mut bytes = header(request, WANTS_ANSWER, size);
    // A UUID of version 4.
    let uuid = [1, 2, 3, 4, 5, 6, 0x47, 8, 0x89, 10, 11, 12, 13, 14, 15, 16];
    bytes.extend(uuid.iter().take(size as usize));
    let fds = [file.as_fd()];
    raw.send(&bytes, if with_fd { &fds } else { &[] });
    assert_eq!(channel.wake().unwrap().refused.len(), 1);
    raw.answer()
}
