//! Owns the test of a snapshot: a new process restores the window from its record and from
//! descriptors passed by `SCM_RIGHTS`, and has the same content.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use sha2::{Digest, Sha256};
use vm_remap::BackendKind::{Fixed, Memslot};
use vm_remap::Protection::{ReadOnly, ReadWrite};
use vm_remap::{GuestAddress, MappingRecord, Origin, Source, Window, WindowOptions};

use crate::handover::{ask, asked};
use crate::support::*;

const HUGE: u64 = 2 << 20;
/// The first pages of the window have room for mappings of 4 KiB; the last block is a huge page.
const LEN: u64 = 2 * HUGE;

fn options() -> WindowOptions {
    WindowOptions::new(BASE, LEN).segment_size(HUGE)
}

/// Everything that the guest would see of a mapping.
fn bytes(window: &Window, offset: u64, len: u64) -> Vec<u8> {
    let memory = File::open("/proc/self/mem").unwrap();
    let found = window.lookup(GuestAddress(window.base().0 + offset));
    let mut bytes = vec![0; len as usize];
    memory
        .read_exact_at(&mut bytes, found.unwrap().host_address)
        .unwrap();
    bytes
}

/// A sum over every byte and every hole of the window.
fn sum(window: &Window) -> Vec<u8> {
    let mut sum = Sha256::new();
    for mapping in window.mappings() {
        let range = mapping.range();
        sum.update(range.start().to_le_bytes());
        sum.update(range.len().to_le_bytes());
        sum.update(bytes(window, range.start(), range.len()));
    }
    sum.finalize().to_vec()
}

fn huge() -> Option<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    let fd = memfd_create("huge", flags).ok()?;
    ftruncate(&fd, HUGE).ok()?;
    Some(fd)
}

/// Copies of the memory that has no descriptor, one for each mapping.
fn copies(window: &Window) -> Vec<OwnedFd> {
    let mappings = window.mappings().into_iter();
    let anonymous = mappings.filter(|mapping| mapping.origin() == Origin::Anonymous);
    anonymous
        .map(|mapping| {
            let range = mapping.range();
            let copy = File::from(memfd_create("copy", MemfdFlags::CLOEXEC).unwrap());
            let bytes = bytes(window, range.start(), range.len());
            copy.write_all_at(&bytes, 0).unwrap();
            copy.into()
        })
        .collect()
}

/// Finds a descriptor by the label, and a copy of anonymous memory by the order of the record.
fn resolve<'fd>(
    fds: &'fd [OwnedFd],
    blobs: usize,
) -> impl FnMut(&MappingRecord) -> std::io::Result<Source<'fd>> {
    let mut copies = blobs;
    move |mapping| {
        let (at, offset) = match mapping.origin {
            Origin::Descriptor { offset, .. } => (mapping.label as usize, offset),
            _ => {
                copies += 1;
                (copies - 1, 0)
            }
        };
        let fd = fds
            .get(at)
            .ok_or(std::io::Error::from(std::io::ErrorKind::NotFound))?;
        Ok(Source::descriptor(fd.as_fd(), offset))
    }
}

#[test]
fn a_new_process_restores_the_window_and_has_the_same_content() {
    let old = open_with(options());
    let mut fds = vec![memfd(8, 10), sealed(8, 20)];
    let map = |range, source: Source<'_>, protection| {
        let mapped = old.window.map(range, &source, protection);
        mapped.is_ok()
    };
    assert!(map(pages(0, 8), source(&fds[0]).label(0), ReadWrite));
    assert!(map(pages(20, 8), source(&fds[1]).label(1), ReadOnly));
    assert!(map(pages(40, 4), Source::anonymous(), ReadWrite));
    old.window.unmap(pages(2, 3)).unwrap();
    old.window.unmap(pages(41, 1)).unwrap();
    let memory = File::options().write(true).open("/proc/self/mem").unwrap();
    for (page, byte) in [(40, 0xa1), (43, 0xa2)] {
        let address = GuestAddress(BASE.0 + page * PAGE);
        let at = old.window.lookup(address).unwrap().host_address;
        memory.write_all_at(&[byte; 4096], at).unwrap();
    }
    let huge = huge().filter(|fd| map(pages(512, 512), source(fd).label(2), ReadWrite));
    if huge.is_none() {
        let test = "a_new_process_restores_the_window_and_has_the_same_content";
        let reason = "no huge pages of 2 MiB in the pool; the rest was tested";
        writeln!(std::io::stderr(), "SKIP {test}: {reason}").unwrap();
    }
    // In its place, so that labels and descriptors agree.
    fds.push(huge.unwrap_or_else(|| memfd(1, 0)));
    fds.extend(copies(&old.window));
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let role = "snapshot::another_process_restores";
    let answer = ask(role, &old.window.record(), &borrowed);
    assert_eq!(answer.len(), 64);
    assert_eq!(answer[..32], sum(&old.window)[..], "fixed");
    assert_eq!(answer[32..], sum(&old.window)[..], "memslot");
    // Another content has another sum.
    File::from(fds.swap_remove(0))
        .write_all_at(&[1], 5 * PAGE)
        .unwrap();
    assert_ne!(answer[..32], sum(&old.window)[..]);
}

/// What the new process does; in any other it is no test.
#[test]
fn another_process_restores() {
    let Some((record, fds, mut socket)) = asked("snapshot::another_process_restores") else {
        return;
    };
    for backend in [Fixed, Memslot] {
        let new = open_with(options().backend(backend));
        new.window.replay(&record, resolve(&fds, 3)).unwrap();
        socket.write_all(&sum(&new.window)).unwrap();
    }
}
