//! Owns the test of a mapping whose file system has no room for its pages: a sparse file in a full
//! tmpfs, which any peer with a descriptor can send.

use std::os::fd::OwnedFd;

use crate::small_file_system::Small;
use vm_remap::Prefault;
use vm_remap::Protection::ReadWrite;
use vm_remap::{Error, PAGE_SIZE};

use crate::support::*;

#[test]
fn a_sparse_file_in_a_full_tmpfs_is_an_error_at_prefault_and_a_fault_at_a_touch() {
    let test = "a_sparse_file_in_a_full_tmpfs_is_an_error_at_prefault_and_a_fault_at_a_touch";
    let Some(small) = Small::mount() else {
        skip(test, "a tmpfs cannot be mounted here (root only)");
        return;
    };
    let fd = OwnedFd::from(small.sparse(256 * PAGE_SIZE));
    let watched = Watched::open(4 * MIB);
    let other = memfd(MIB, 7);
    let range = pages(0, 64);
    watched.map(range, &other, 7).unwrap();

    let filled = source(&fd).prefault(Prefault::HostWrite);
    let error = watched
        .sees(range, Some(0), |window| {
            window.replace(range, &filled, ReadWrite)
        })
        .unwrap_err();
    assert!(matches!(error, Error::Prefault { .. }), "{error}");
    assert_eq!(error.errno(), libc::EFAULT, "{error}");

    // Without, it is mapped, and the touch of a page that cannot be made is a fault, no signal.
    watched
        .window
        .replace(range, &source(&fd), ReadWrite)
        .unwrap();
    let view = watched.view();
    let there = view.iter().flatten().count();
    assert!((1..=16).contains(&there), "{view:?}");
    watched.replace(range, &other, 7).unwrap();
    watched.window.close().unwrap();
}
