//! Owns the tests of the limits of a device. Never asks for anything else that is refused.

use std::fs::File;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vhost::vhost_user::VhostUserFrontendReqHandler;
use vhost::vhost_user::message::VhostUserMMap;
use vm_remap::vhost_user::{Overlap, Refusal, ShmemHandler, ShmemLimits};
use vm_remap::{GuestAddress, SlotNumbers, WindowOptions};

use crate::support::*;

/// `EDQUOT`.
const QUOTA: Option<i32> = Some(122);

fn errno(handler: &ShmemHandler, request: &VhostUserMMap, file: &File) -> Option<i32> {
    handler.shmem_map(request, file).err()?.raw_os_error()
}

#[test]
fn mappings_of_all_regions_count_and_are_given_back() {
    let device = Device::new();
    let limits = ShmemLimits::default().mappings(3);
    let handler = device.handler().limits(limits);
    let file = blob(1, 1);
    let other = VhostUserMMap {
        shmid: 5,
        ..request(0, 1)
    };
    handler.shmem_map(&request(0, 1), &file).unwrap();
    handler.shmem_map(&request(1, 1), &file).unwrap();
    handler.shmem_map(&other, &file).unwrap();
    assert_eq!(errno(&handler, &request(2, 1), &file), QUOTA);
    assert_eq!(
        handler.take_refusal().unwrap().to_string(),
        "cannot map 0x1 more: the device has 0x3 mappings of 0x3; unmap some, or raise the limit"
    );
    assert!(handler.take_refusal().is_none());
    handler.shmem_unmap(&other).unwrap();
    handler.shmem_map(&request(2, 1), &file).unwrap();
    assert_eq!(errno(&handler, &request(3, 1), &file), QUOTA);
    handler.reset().unwrap();
    for page in 0..3 {
        handler.shmem_map(&request(page, 1), &file).unwrap();
    }
    let counters = handler.counters();
    assert_eq!((counters.refused_quota, counters.mappings), (2, 3));
}

#[test]
fn bytes_count_and_a_failed_map_takes_none() {
    let device = Device::new();
    let limits = ShmemLimits::default().bytes(8 * PAGE);
    let handler = device.handler().limits(limits);
    let file = blob(8, 1);
    assert_eq!(errno(&handler, &request(0, 9), &file), QUOTA);
    for _ in 0..20 {
        // It is past the end of the file.
        let mut past = request(0, 8);
        past.fd_offset = PAGE;
        assert_eq!(errno(&handler, &past, &file), Some(75));
    }
    handler.shmem_map(&request(0, 8), &file).unwrap();
    assert_eq!(errno(&handler, &request(8, 1), &file), QUOTA);
    handler.shmem_unmap(&request(0, 8)).unwrap();
    handler.shmem_map(&request(8, 1), &file).unwrap();
    assert_eq!(handler.counters().bytes, PAGE);
}

#[test]
fn replacing_takes_nothing_more() {
    let device = Device::new();
    let limits = ShmemLimits::default().mappings(1).bytes(PAGE);
    let handler = device
        .handler()
        .limits(limits)
        .overlap(Overlap::ReplaceSame);
    for first in 1..5 {
        handler.shmem_map(&request(0, 1), &blob(1, first)).unwrap();
        assert_eq!(device.seen(), [(0, first)]);
    }
    assert_eq!(handler.counters().mappings, 1);
}

#[test]
fn mappings_that_keep_a_descriptor_have_a_limit_of_their_own() {
    const HUGE: u64 = 2 << 20;
    let test = "mappings_that_keep_a_descriptor_have_a_limit_of_their_own";
    let flags = MemfdFlags::CLOEXEC
        | MemfdFlags::ALLOW_SEALING
        | MemfdFlags::HUGETLB
        | MemfdFlags::HUGE_2MB;
    let made = memfd_create("huge", flags).and_then(|fd| {
        ftruncate(&fd, HUGE)?;
        fcntl_add_seals(&fd, SealFlags::SHRINK)?;
        Ok(File::from(fd))
    });
    let recorder = std::sync::Arc::new(crate::recorder::Recorder::default());
    let options = WindowOptions::new(GuestAddress(4 << 30), 8 * HUGE);
    let window = options.open(recorder, SlotNumbers::new(8..16)).unwrap();
    let limits = ShmemLimits::default().descriptors(2);
    let handler = ShmemHandler::new([(0, std::sync::Arc::new(window))]).limits(limits);
    let huge = |at: u64| VhostUserMMap {
        shm_offset: at * HUGE,
        len: HUGE,
        flags: 1,
        ..VhostUserMMap::default()
    };
    let mapped = made
        .map_err(std::io::Error::from)
        .and_then(|file| handler.shmem_map(&huge(0), &file).map(|_| file));
    let file = match mapped {
        Ok(file) => file,
        Err(error) => {
            use std::io::Write;
            writeln!(std::io::stderr(), "SKIP {test}: no huge page: {error}").unwrap();
            return;
        }
    };
    // One page stands behind both.
    handler.shmem_map(&huge(1), &file).unwrap();
    assert_eq!(errno(&handler, &huge(2), &file), QUOTA);
    let refusal = handler.take_refusal().unwrap();
    assert!(matches!(
        refusal,
        Refusal::Quota {
            what: "descriptors",
            ..
        }
    ));
    // Others are not meant.
    let small = VhostUserMMap {
        shm_offset: 2 * HUGE,
        ..request(0, 1)
    };
    handler.shmem_map(&small, &blob(1, 1)).unwrap();
    assert_eq!(handler.counters().descriptors, 2);
    handler.reset().unwrap();
    assert_eq!(handler.counters().descriptors, 0);
}
