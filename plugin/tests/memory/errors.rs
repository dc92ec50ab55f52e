//! Owns the texts: each error that a caller can provoke says what, where and what to do.

use std::os::fd::AsFd;

use rustix::fs::{
    MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, memfd_create, open as open_file,
};
use vm_remap::BackendKind::Fixed;
use vm_remap::Protection::{ReadOnly, ReadWrite};
use vm_remap::{Error, PageRange, Source};

use crate::support::*;

fn refused(source: &Source<'_>, protection: vm_remap::Protection) -> Error {
    open(Fixed)
        .window
        .map(pages(1, 2), source, protection)
        .unwrap_err()
}

fn check(error: &Error, text: &str, errno: i32) {
    assert_eq!(error.to_string(), text);
    assert_eq!(error.errno(), errno, "{text}");
}

#[test]
fn a_length_past_the_end_names_both_figures() {
    let fd = memfd(2, 1);
    check(
        &refused(&Source::descriptor(fd.as_fd(), PAGE), ReadWrite),
        "cannot map 0x1000..0x3000: it needs the descriptor's bytes 0x1000..0x3000, and the \
         descriptor ends at 0x2000",
        75,
    );
}

#[test]
fn an_unaligned_offset_is_named() {
    let fd = memfd(4, 1);
    check(
        &refused(&Source::descriptor(fd.as_fd(), 12), ReadWrite),
        "cannot map 0x1000..0x3000 from offset 0xc: it must be a multiple of 0x1000",
        22,
    );
}

#[test]
fn a_read_only_descriptor_cannot_be_mapped_for_writing() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4 * PAGE).unwrap();
    let fd = open_file(file.path(), OFlags::RDONLY, Mode::empty()).unwrap();
    check(
        &refused(&source(&fd), ReadWrite),
        "cannot map 0x1000..0x3000 read-write: the descriptor is open read-only",
        13,
    );
    let fd = open_file(file.path(), OFlags::WRONLY, Mode::empty()).unwrap();
    check(
        &refused(&source(&fd), ReadOnly),
        "cannot map 0x1000..0x3000 read-only: the descriptor is open write-only",
        13,
    );
}

#[test]
fn a_sealed_memfd_that_is_open_read_only_changes_nothing() {
    let bench = open(Fixed);
    let (old, new) = (memfd(2, 1), sealed(2, 9));
    bench
        .window
        .map(pages(1, 2), &source(&old), ReadWrite)
        .unwrap();
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&new));
    for (mode, protection, text) in [
        (
            OFlags::RDONLY,
            ReadWrite,
            "read-write: the descriptor is open read-only",
        ),
        (
            OFlags::WRONLY,
            ReadOnly,
            "read-only: the descriptor is open write-only",
        ),
    ] {
        let fd = open_file(path.as_str(), mode, Mode::empty()).unwrap();
        let error = bench
            .window
            .replace(pages(1, 2), &source(&fd), protection)
            .unwrap_err();
        check(&error, &format!("cannot map 0x1000..0x3000 {text}"), 13);
        assert_eq!(error.state_after(), vm_remap::StateAfter::Unchanged);
        assert_eq!(&seen(&bench)[..4], [None, Some(1), Some(2), None]);
    }
}

#[test]
fn seals_against_writing_are_named() {
    let fd = memfd(4, 1);
    fcntl_add_seals(&fd, SealFlags::WRITE).unwrap();
    check(
        &refused(&source(&fd), ReadWrite),
        "cannot map 0x1000..0x3000 read-write: the descriptor is sealed against writing (seals 0x8)",
        1,
    );
}

#[test]
fn kinds_that_cannot_stand_behind_memory_are_named() {
    let text = |kind: &str| {
        format!(
            "cannot map 0x1000..0x3000 from {kind}: only memfd, hugetlb, regular files and dma-buf \
             can be mapped"
        )
    };
    let path = open_file("/", OFlags::PATH, Mode::empty()).unwrap();
    check(
        &refused(&source(&path), ReadOnly),
        &text("an O_PATH descriptor"),
        19,
    );
    let directory = open_file("/", OFlags::RDONLY, Mode::empty()).unwrap();
    check(
        &refused(&source(&directory), ReadOnly),
        &text("a directory"),
        19,
    );
    let null = open_file("/dev/null", OFlags::RDWR, Mode::empty()).unwrap();
    check(
        &refused(&source(&null), ReadOnly),
        &text("a character device"),
        19,
    );
    let (pipe, _) = rustix::pipe::pipe().unwrap();
    check(&refused(&source(&pipe), ReadOnly), &text("a pipe"), 19);
}

#[test]
fn huge_pages_off_their_boundaries_are_named() {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    let Ok(fd) = memfd_create("huge", flags) else {
        use std::io::Write;
        let test = "huge_pages_off_their_boundaries_are_named";
        writeln!(
            std::io::stderr(),
            "SKIP {test}: this kernel has no huge pages of 2 MiB"
        )
        .unwrap();
        return;
    };
    let text = refused(&source(&fd), ReadWrite).to_string();
    assert!(text.starts_with(
        "cannot map 0x1000..0x3000 from huge pages of 0x200000 bytes: host address 0x"
    ));
    assert!(
        text.ends_with("length 0x2000 and offset 0x0 must all be multiples of it"),
        "{text}"
    );
}

#[test]
fn ranges_that_make_no_sense_are_named() {
    check(
        &PageRange::new(0x1000, 0x800).unwrap_err(),
        "cannot use 0x800 bytes at 0x1000: both must be multiples of 0x1000, the length above 0 \
         and the end below 2^64",
        22,
    );
    let bench = open(Fixed);
    check(
        &bench.window.unmap(pages(60, 8)).unwrap_err(),
        "cannot use 0x3c000..0x44000: the window has 0x40000 bytes",
        22,
    );
}

#[test]
fn a_window_larger_than_the_address_space_is_refused() {
    let options =
        vm_remap::WindowOptions::new(vm_remap::GuestAddress(0), 1 << 60).segment_size(1 << 50);
    let recorder = std::sync::Arc::new(crate::recorder::Recorder::default());
    let error = options
        .open(recorder, vm_remap::SlotNumbers::new(0..1))
        .unwrap_err();
    check(
        &error,
        "cannot reserve 0x1000000000000000 bytes of address space for the window",
        12,
    );
}
