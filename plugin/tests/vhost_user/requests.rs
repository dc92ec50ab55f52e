//! Owns the tests of requests as an honest backend makes them, and of those that are refused for
//! their figures. Never sends what is no message.

use std::os::fd::AsFd;
use std::sync::Arc;

use vhost::vhost_user::VhostUserFrontendReqHandler;
use vhost::vhost_user::message::{VhostUserMMap, VhostUserProtocolFeatures};
use vm_remap::vhost_user::{Overlap, Refusal};
use vm_remap::{DescriptorPolicy, Protection};

use crate::raw::{MAP, Raw, UNMAP, message};
use crate::support::*;

#[test]
fn feature_bit_is_the_one_of_the_specification() {
    assert_eq!(VhostUserProtocolFeatures::SHMEM.bits(), 1 << 22);
}

#[test]
fn memory_is_in_the_window_when_the_answer_has_come_and_gone_when_the_next_has() {
    let device = Device::new();
    let (channel, end) = device.channel();
    let backend = backend(end);
    let vmm = Vmm::run(channel);
    for round in 0..50_u8 {
        let first = 1 + round;
        backend.shmem_map(&request(3, 2), &blob(2, first)).unwrap();
        assert_eq!(device.seen(), [(3, first), (4, first + 1)]);
        backend.shmem_unmap(&request(3, 2)).unwrap();
        assert_eq!(device.seen(), []);
    }
    let (channel, refused, closed) = vmm.end();
    assert!(refused.is_empty() && closed.is_none());
    let counters = channel.handler().counters();
    assert_eq!((counters.maps, counters.unmaps), (50, 50));
    assert_eq!((counters.mappings, counters.bytes), (0, 0));
}

#[test]
fn refused_request_is_answered_and_the_next_one_served() {
    let device = Device::new();
    let (channel, end) = device.channel();
    let backend = backend(end);
    let vmm = Vmm::run(channel);
    let file = blob(4, 1);
    for round in 0..20 {
        backend.shmem_map(&request(60, 8), &file).unwrap_err();
        backend.shmem_map(&request(round, 1), &file).unwrap();
    }
    let (_, refused, closed) = vmm.end();
    assert!(closed.is_none());
    assert_eq!(refused.len(), 20);
    for refusal in &refused {
        assert!(
            matches!(refusal, Refusal::OutsideRegion { .. }),
            "{refusal}"
        );
    }
    assert_eq!(device.seen().len(), 20);
}

/// What a request is answered with, on a channel where the pages 8..12 are mapped.
fn answered(map: bool, body: &VhostUserMMap, file: &impl AsFd) -> i64 {
    let device = Device::new();
    let (mut channel, end) = device.channel();
    let mut raw = Raw::new(end);
    let first = blob(4, 1);
    raw.send(&message(MAP, &request(8, 4)), &[first.as_fd()]);
    assert_eq!(channel.wake().unwrap().served, 1);
    assert_eq!(raw.answer(), (MAP, 0));
    let before = device.seen();

    let (request, fds) = match map {
        true => (MAP, &[file.as_fd()][..]),
        false => (UNMAP, &[][..]),
    };
    raw.send(&message(request, body), fds);
    let wake = channel.wake().unwrap();
    let (to, number) = raw.answer();
    assert_eq!(to, request);
    if number == 0 {
        assert_eq!(wake.served, 1);
    } else {
        assert_eq!(wake.refused.len(), 1);
        assert_eq!(i64::from(wake.refused.first().unwrap().errno()), -number);
        assert_eq!(
            device.seen(),
            before,
            "a refused request has changed something"
        );
    }
    // The channel is in step.
    raw.send(&message(UNMAP, &request_of(0, SIZE)), &[]);
    assert_eq!(channel.wake().unwrap().served, 1);
    assert_eq!(raw.answer(), (UNMAP, 0));
    assert_eq!(device.seen(), []);
    number
}

fn request_of(shm_offset: u64, len: u64) -> VhostUserMMap {
    VhostUserMMap {
        shm_offset,
        len,
        ..request(0, 1)
    }
}

#[test]
fn figures_that_make_no_sense_are_answered_with_einval() {
    let file = blob(8, 1);
    let fd_offset = |fd_offset| VhostUserMMap {
        fd_offset,
        ..request(0, 1)
    };
    let wrong = [
        request_of(0, 0),
        request_of(0, 0x800),
        request_of(0x800, PAGE),
        request_of(!0xfff, PAGE),
        request_of(PAGE, !0xfff),
        request_of(0, u64::MAX),
        request_of(SIZE - PAGE, 2 * PAGE),
        request_of(SIZE, PAGE),
        request_of(1 << 40, PAGE),
    ];
    for body in &wrong {
        assert_eq!(answered(true, body, &file), -22, "{body:?}");
        assert_eq!(answered(false, body, &file), -22, "{body:?}");
    }
    for body in [fd_offset(0x800), fd_offset(!0xfff), fd_offset(1 << 63)] {
        assert_eq!(answered(true, &body, &file), -22, "{body:?}");
    }
    for flags in [2, 3, 1 << 63] {
        let body = VhostUserMMap {
            flags,
            ..request(0, 1)
        };
        assert_eq!(answered(true, &body, &file), -22, "{body:?}");
    }
}

#[test]
fn padding_means_nothing() {
    let body = VhostUserMMap {
        padding: [0xa5; 7],
        ..request(0, 1)
    };
    assert_eq!(answered(true, &body, &blob(1, 1)), 0);
}

#[test]
fn unknown_region_is_answered_with_enxio() {
    for shmid in [1, 4, 255] {
        let body = VhostUserMMap {
            shmid,
            ..request(0, 1)
        };
        assert_eq!(answered(true, &body, &blob(1, 1)), -6);
        assert_eq!(answered(false, &body, &blob(1, 1)), -6);
    }
}

#[test]
fn map_past_the_end_of_the_descriptor_is_answered_with_eoverflow() {
    let mut body = request(0, 3);
    assert_eq!(answered(true, &body, &blob(2, 1)), -75);
    body.fd_offset = 2 * PAGE;
    assert_eq!(answered(true, &body, &blob(4, 1)), -75);
    body.fd_offset = PAGE;
    assert_eq!(answered(true, &body, &blob(4, 1)), 0);
}

#[test]
fn writable_map_of_a_read_only_descriptor_is_answered_with_eacces() {
    let file = blob(1, 1);
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    let read_only = std::fs::File::open(path).unwrap();
    assert_eq!(answered(true, &request(0, 1), &read_only), -13);
    let body = VhostUserMMap {
        flags: 0,
        ..request(0, 1)
    };
    assert_eq!(answered(true, &body, &read_only), 0);
}

#[test]
fn descriptor_that_the_policy_keeps_out_is_answered_with_eperm() {
    assert_eq!(answered(true, &request(0, 1), &loose(1, 1)), -1);
    let plain = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    plain.set_len(PAGE).unwrap();
    assert_eq!(answered(true, &request(0, 1), &plain), -1);
    let (pipe, _) = rustix::pipe::pipe().unwrap();
    assert_eq!(answered(true, &request(0, 1), &pipe), -19);
}

#[test]
fn policy_of_the_vmm_lets_in_what_it_says() {
    let device = Device::new();
    let handler = device.handler().policy(DescriptorPolicy::peer().seals(0));
    handler.shmem_map(&request(0, 1), &loose(1, 7)).unwrap();
    assert_eq!(device.seen(), [(0, 7)]);
}

#[test]
fn map_over_what_is_mapped_is_answered_with_eexist() {
    let file = blob(64, 1);
    for (page, pages) in [(8, 4), (7, 2), (11, 2), (9, 1), (0, 64)] {
        assert_eq!(answered(true, &request(page, pages), &file), -17);
    }
    for (page, pages) in [(7, 1), (12, 1)] {
        assert_eq!(answered(true, &request(page, pages), &file), 0);
    }
}

#[test]
fn unmap_takes_whole_mappings_and_refuses_parts() {
    let file = blob(1, 1);
    for (page, pages) in [(8, 4), (7, 6), (0, 64), (0, 12)] {
        assert_eq!(answered(false, &request(page, pages), &file), 0);
    }
    for (page, pages) in [(8, 3), (9, 3), (9, 1), (0, 9), (11, 53)] {
        assert_eq!(answered(false, &request(page, pages), &file), -22);
    }
    for (page, pages) in [(0, 8), (12, 52), (63, 1)] {
        assert_eq!(answered(false, &request(page, pages), &file), -2);
    }
}

#[test]
fn unmap_of_the_whole_region_is_done_whatever_is_there() {
    let device = Device::new();
    let handler = device.handler();
    handler.shmem_unmap(&request(0, PAGES)).unwrap();
    for page in [0, 2, 9] {
        handler.shmem_map(&request(page, 1), &blob(1, 1)).unwrap();
    }
    handler.shmem_unmap(&request(0, PAGES)).unwrap();
    assert_eq!(device.seen(), []);
    assert_eq!(handler.counters().mappings, 0);
}

#[test]
fn the_same_range_is_made_writable_where_the_vmm_lets_it() {
    let device = Device::new();
    let handler = device.handler().overlap(Overlap::ReplaceSame);
    let file = blob(8, 1);
    let read_only = VhostUserMMap {
        flags: 0,
        ..request(4, 4)
    };
    handler.shmem_map(&read_only, &file).unwrap();
    let protection = || device.window().mappings()[0].protection();
    assert_eq!(protection(), Protection::ReadOnly);
    handler.shmem_map(&request(4, 4), &file).unwrap();
    assert_eq!(protection(), Protection::ReadWrite);
    assert_eq!(device.seen().len(), 4);
    for (page, pages) in [(4, 3), (3, 5), (5, 1)] {
        let error = handler.shmem_map(&request(page, pages), &file).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(17));
    }
    let counters = handler.counters();
    assert_eq!((counters.maps, counters.replaces), (2, 1));
    assert_eq!((counters.mappings, counters.bytes), (1, 4 * PAGE));
    assert_eq!(counters.refused_overlaps, 3);
}

#[test]
fn each_region_has_its_own_window() {
    let device = Device::new();
    let handler = Arc::new(device.handler());
    let other = VhostUserMMap {
        shmid: 5,
        ..request(2, 1)
    };
    handler.shmem_map(&other, &blob(1, 9)).unwrap();
    assert_eq!(device.seen(), []);
    assert_eq!(byte(&device.windows[1], 2), Some(9));
    handler.shmem_unmap(&other).unwrap();
    assert_eq!(byte(&device.windows[1], 2), None);
}

#[test]
fn a_slot_is_registered_once_and_rests() {
    let device = Device::new();
    let handler = device.handler();
    for _ in 0..10 {
        handler.shmem_map(&request(0, 1), &blob(1, 1)).unwrap();
        handler.shmem_unmap(&request(0, 1)).unwrap();
    }
    assert_eq!(device.recorder.events().len(), 1);
}
