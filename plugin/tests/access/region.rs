//! Owns the tests of the region's own methods: copies through a pin, whatever the memory.
//! Never goes through a collection.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use vm_memory::{Bytes, GuestMemoryError, GuestMemoryRegion, MemoryRegionAddress as Address};
use vm_remap::Protection::{ReadOnly, ReadWrite};
use vm_remap::{GuestAddress, Indirect, Source, WindowRegion};

use crate::support::*;

fn region_of(count: u64, fd: &std::os::fd::OwnedFd) -> WindowRegion {
    let window = open();
    map(&window, 0, count, fd);
    region_over(Arc::new(window), Indirect::Refuse)
}

#[test]
fn region_copies_memory_of_any_kind() {
    for fd in [sealed(3, 0), memfd(3, 0)] {
        let region = region_of(3, &fd);
        region
            .write_obj(0x1122_3344_5566_7788u64, Address(PAGE - 3))
            .unwrap();
        let found: u64 = region.read_obj(Address(PAGE - 3)).unwrap();
        assert_eq!(found, 0x1122_3344_5566_7788);
        assert_eq!(region.write(&[1, 2, 3], Address(0)).unwrap(), 3);
        let mut bytes = [0; 3];
        assert_eq!(region.read(&mut bytes, Address(0)).unwrap(), 3);
        assert_eq!(bytes, [1, 2, 3]);
    }
}

#[test]
fn access_past_the_end_of_the_region_is_cut_or_refused() {
    let window = open();
    let last = PAGES - 1;
    map(&window, last, 1, &memfd(1, 5));
    let region = region_over::<()>(Arc::new(window), Indirect::Refuse);
    let end = region.len();
    let mut bytes = [0; 8];
    assert_eq!(region.read(&mut bytes, Address(end - 4)).unwrap(), 4);
    assert_eq!(bytes, [5, 5, 5, 5, 0, 0, 0, 0]);
    for address in [end, end - 4, u64::MAX - 4, u64::MAX] {
        let error = region.read_slice(&mut bytes, Address(address)).unwrap_err();
        assert!(
            matches!(error, GuestMemoryError::InvalidBackendAddress),
            "{error}"
        );
    }
    let error = region.read(&mut bytes, Address(end)).unwrap_err();
    assert!(
        matches!(error, GuestMemoryError::InvalidBackendAddress),
        "{error}"
    );
    region.read(&mut [], Address(end)).unwrap();
}

#[test]
fn streams_go_in_and_out_in_pieces() {
    let pages = 40;
    let fd = memfd(pages, 0);
    let region = region_of(pages, &fd);
    // More than one piece, and no whole number of them.
    let bytes: Vec<u8> = (0..150_001_u32).map(|n| (n % 251) as u8).collect();
    let mut from = bytes.as_slice();
    let read = region.read_volatile_from(Address(7), &mut from, 160_000);
    assert_eq!(read.unwrap(), bytes.len(), "until the stream ends");
    let mut to = Vec::new();
    region
        .write_all_volatile_to(Address(7), &mut to, bytes.len())
        .unwrap();
    assert!(to == bytes);
    let mut short = &bytes[..10];
    let error = region
        .read_exact_volatile_from(Address(0), &mut short, 11)
        .unwrap_err();
    assert!(
        matches!(
            error,
            GuestMemoryError::PartialBuffer {
                expected: 11,
                completed: 10
            }
        ),
        "{error}"
    );
}

#[test]
fn socket_that_has_no_more_ends_the_read() {
    let region = region_of(40, &memfd(40, 0));
    let (mut near, mut far) = UnixStream::pair().unwrap();
    far.set_nonblocking(true).unwrap();
    near.write_all(&[7; 1000]).unwrap();
    let read = region.read_volatile_from(Address(0), &mut far, 150_000);
    assert_eq!(read.unwrap(), 1000);
    let error = region
        .read_volatile_from(Address(0), &mut far, 1)
        .unwrap_err();
    assert!(matches!(error, GuestMemoryError::IOError(_)), "{error}");
    region
        .write_all_volatile_to(Address(999), &mut far, 2)
        .unwrap();
    let mut bytes = [1; 2];
    near.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, [7, 0]);
}

#[test]
fn read_only_mapping_takes_nothing_out_of_a_stream() {
    let window = open();
    let fd = memfd(1, 0);
    window.map(pages(0, 1), &source(&fd), ReadOnly).unwrap();
    let region = region_over::<()>(Arc::new(window), COPY);
    let mut stream: &[u8] = &[1, 2, 3];
    let error = region
        .read_volatile_from(Address(0), &mut stream, 3)
        .unwrap_err();
    assert_eq!(
        inner(&error),
        "cannot write to 0x0..0x1000: it is mapped read-only"
    );
    assert_eq!(stream.len(), 3);
    let GuestMemoryError::IOError(error) = error else {
        panic!("{error}");
    };
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
}

#[test]
fn stream_that_would_end_in_a_read_only_mapping_changes_nothing_before_it() {
    let window = open();
    map(&window, 0, 1, &memfd(1, 5));
    let fd = memfd(1, 6);
    window.map(pages(1, 1), &source(&fd), ReadOnly).unwrap();
    let region = region_over::<()>(Arc::new(window), COPY);
    let mut stream: &[u8] = &[1; 32];
    let error = region
        .read_volatile_from(Address(PAGE - 16), &mut stream, 32)
        .unwrap_err();
    assert_eq!(
        inner(&error),
        "cannot write to 0x1000..0x2000: it is mapped read-only"
    );
    assert_eq!(stream.len(), 32);
    let mut found = vec![0; PAGE as usize];
    region.read_slice(&mut found, Address(0)).unwrap();
    assert!(found.iter().all(|byte| *byte == 5), "{}", found[0]);
}

#[test]
fn write_that_fails_halfway_marks_what_it_may_have_written() {
    let window = open();
    let fd = memfd(2, 5);
    map(&window, 0, 2, &fd);
    let region = region_over::<AtomicBitmap>(Arc::new(window), COPY);
    truncate(&fd, 1);
    region
        .write_slice(&[1; 32], Address(PAGE - 16))
        .unwrap_err();
    assert!(region.bitmap().dirty_at(0), "16 bytes were written");
    let mut stream: &[u8] = &[1; 32];
    let error = region.read_volatile_from(Address(PAGE - 16), &mut stream, 32);
    error.unwrap_err();
}

#[test]
fn atomic_access_is_refused_where_it_would_need_a_copy() {
    let window = open();
    window
        .map(pages(0, 1), &Source::anonymous(), ReadWrite)
        .unwrap();
    map(&window, 1, 1, &memfd(1, 0));
    let region = region_over::<()>(Arc::new(window), COPY);
    region
        .store(5u32, Address(PAGE - 4), Ordering::SeqCst)
        .unwrap();
    assert_eq!(
        region
            .load::<u32>(Address(PAGE - 4), Ordering::SeqCst)
            .unwrap(),
        5
    );
    region
        .load::<u32>(Address(2), Ordering::SeqCst)
        .unwrap_err();
    let error = region
        .load::<u32>(Address(PAGE), Ordering::SeqCst)
        .unwrap_err();
    let text = inner(&error);
    assert!(text.contains("the memory behind it can vanish"), "{text}");
    region
        .store(5u32, Address(PAGE - 2), Ordering::SeqCst)
        .unwrap_err();
}

#[test]
fn truncated_file_is_an_error_of_every_method() {
    let fd = memfd(2, 0);
    let region = region_of(2, &fd);
    truncate(&fd, 1);
    let lost = Address(PAGE + 8);
    let fault = |error: GuestMemoryError| {
        let text = inner(&error);
        assert!(text.contains("may have been truncated"), "{text}");
    };
    fault(region.read_obj::<u64>(lost).unwrap_err());
    fault(region.write_obj(1u64, lost).unwrap_err());
    fault(
        region
            .read_volatile_from(lost, &mut [1u8].as_slice(), 1)
            .unwrap_err(),
    );
    fault(
        region
            .write_volatile_to(lost, &mut Vec::new(), 1)
            .unwrap_err(),
    );
}

#[test]
fn region_stays_at_its_address_when_the_window_moves() {
    let window = Arc::new(open());
    let old = region_over::<()>(Arc::clone(&window), COPY);
    let base = BASE + (1 << 30);
    window.relocate(GuestAddress(base)).unwrap();
    assert_eq!(old.start_addr().0, BASE);
    let new = region_over::<()>(Arc::clone(&window), COPY);
    assert_eq!(new.start_addr().0, base);
    assert_eq!(new.last_addr().0, base + PAGES * PAGE - 1);
    assert!(Arc::ptr_eq(new.window(), &window));
}
