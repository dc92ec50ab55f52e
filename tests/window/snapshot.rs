//! Owns the test of a snapshot as the guest sees it: another process, with a guest of its own,
//! restores the window, and that guest reads what this one wrote.

use std::io::Write;
use std::os::fd::AsFd;

use vm_remap::BackendKind::{Fixed, Memslot};
use vm_remap::Protection::{ReadOnly, ReadWrite};
use vm_remap::{Origin, Source};
use vm_remap_cli::guest::{Access, Guest};

use crate::handover::{ask, asked};
use crate::support::*;

const LOOKED_AT: u64 = 40;

/// What the guest reads, as bytes: a word for each page, and nothing for a hole.
fn words_seen(guest: &Guest) -> Vec<u8> {
    let seen = view(guest, 0..LOOKED_AT);
    let word = |access: &Access<u64>| match access {
        Access::Done(word) => word.to_le_bytes(),
        Access::Fault | Access::Mmio { .. } | Access::Stopped(_) => [0xff; 8],
    };
    seen.iter().flat_map(word).collect()
}

#[test]
fn the_guest_of_a_new_process_reads_what_the_old_one_wrote() {
    let test = "the_guest_of_a_new_process_reads_what_the_old_one_wrote";
    let Some(Bench { window, guest }) = open(test, Fixed) else {
        return;
    };
    let blobs = [
        Blob::new(Seal::Sealed, 8, 100),
        Blob::new(Seal::Unsealed, 8, 200),
    ];
    let source = |label: usize| blobs[label].source().label(label as u64);
    window.map(pages(0, 8), &source(0), ReadWrite).unwrap();
    window.map(pages(16, 8), &source(1), ReadOnly).unwrap();
    window.unmap(pages(18, 2)).unwrap();
    let written = guest.write_u64(0, at(3), 0x1234_5678).unwrap();
    assert_eq!(written, Access::Done(()));
    let fds: Vec<_> = blobs.iter().map(Blob::fd).collect();
    let role = "snapshot::another_process_restores";
    let answer = ask(role, &window.record(), &fds);
    let seen = words_seen(&guest);
    assert_eq!(answer, [&seen[..], &seen[..]].concat());
    assert_eq!(seen[24..32], 0x1234_5678_u64.to_le_bytes());
}

/// What the new process does; in any other it is no test.
#[test]
fn another_process_restores() {
    let role = "snapshot::another_process_restores";
    let Some((record, fds, mut socket)) = asked(role) else {
        return;
    };
    for backend in [Fixed, Memslot] {
        let Bench { window, guest } = open(role, backend).unwrap();
        let replayed = window.replay(&record, |mapping| {
            let fd = &fds[usize::try_from(mapping.label).unwrap()];
            let Origin::Descriptor { offset, .. } = mapping.origin else {
                return Err(std::io::ErrorKind::NotFound.into());
            };
            Ok(Source::descriptor(fd.as_fd(), offset))
        });
        replayed.unwrap();
        socket.write_all(&words_seen(&guest)).unwrap();
    }
}
