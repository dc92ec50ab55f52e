//! Owns the tests of huge pages: a collapse that was asked for, what is counted of it, and how many
//! mappings lost theirs. Whether the guest gets one translation is a test with a guest.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_remap::Protection::{ReadOnly, ReadWrite};
use vm_remap::{BackendKind, Batch, Source, WindowOptions};

use crate::support::*;

const BLOCK: u64 = 512;

fn open_wide(backend: BackendKind) -> Bench {
    open_with(WindowOptions::new(BASE, 8 * BLOCK * PAGE).backend(backend))
}

fn blob(pages: u64, seals: SealFlags) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = memfd_create("blob", flags).unwrap();
    ftruncate(&fd, pages * PAGE).unwrap();
    let byte = [7; 8];
    rustix::io::pwrite(&fd, &byte, (pages - 1) * PAGE).unwrap();
    fcntl_add_seals(&fd, seals).unwrap();
    fd
}

/// Collapsed mappings, those that failed, and those that lost their huge pages to skew, to small
/// pages and to cuts.
fn counted(bench: &Bench) -> [u64; 5] {
    let all = bench.window.counters();
    [
        all.collapsed,
        all.collapse_failures,
        all.lost_to_skew,
        all.lost_to_small_pages,
        all.lost_to_cuts,
    ]
}

#[test]
fn a_collapse_makes_huge_pages_keeps_the_bytes_and_is_counted() {
    for backend in BackendKind::ALL {
        for seals in [SealFlags::empty(), SealFlags::SEAL] {
            for protection in [ReadWrite, ReadOnly] {
                let bench = open_wide(backend);
                let fd = blob(2 * BLOCK, seals);
                let source = source(&fd).collapse(true);
                let range = pages(BLOCK, 2 * BLOCK);
                bench.window.map(range, &source, protection).unwrap();
                let [collapsed, failed, ..] = counted(&bench);
                if failed == 1 {
                    // Not offered before Linux 6.1, or no huge page is free: mapped all the same.
                    skip("a_collapse_makes_huge_pages_keeps_the_bytes_and_is_counted");
                } else {
                    assert_eq!((collapsed, failed), (1, 0));
                    assert_eq!(counted(&bench)[2..], [0, 0, 0]);
                    assert_eq!(rustix::fs::fstat(&fd).unwrap().st_blocks, 8 * 1024);
                }
                assert_eq!(bench.window.counters().staged, 1);
                let last = usize::try_from(3 * BLOCK - 1).unwrap();
                assert_eq!(seen(&bench)[last], Some(7));
            }
        }
    }
}

fn skip(test: &str) {
    use std::io::Write;
    let mut stderr = std::io::stderr();
    let reason = "this host makes no huge pages of a memfd";
    writeln!(stderr, "SKIP {test}: {reason}").unwrap();
}

#[test]
fn a_collapse_that_cannot_be_is_counted_and_no_error() {
    let bench = open_wide(BackendKind::Fixed);
    let fd = blob(2 * BLOCK, SealFlags::empty());
    let at = |page: u64| Source::descriptor(fd.as_fd(), page * PAGE).collapse(true);
    // Too short, no whole block, a file offset that is not congruent.
    for (range, page) in [(pages(0, 8), 0), (pages(8, BLOCK), 8), (pages(0, BLOCK), 8)] {
        let before = counted(&bench);
        bench.window.map(range, &at(page), ReadWrite).unwrap();
        bench.window.unmap(range).unwrap();
        let after = counted(&bench);
        assert_eq!((after[0], after[1]), (before[0], before[1] + 1), "{range}");
    }
    // A file on another file system.
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    let source = Source::descriptor(file.as_fd(), 0).collapse(true);
    bench.window.map(pages(0, 8), &source, ReadOnly).unwrap();
    assert_eq!(counted(&bench)[1], 4);
}

#[test]
fn mappings_that_lost_their_huge_pages_are_counted_by_reason() {
    let bench = open_wide(BackendKind::Fixed);
    let fd = blob(3 * BLOCK, SealFlags::empty());
    let at = |page: u64| Source::descriptor(fd.as_fd(), page * PAGE);
    let map = |start, count, source: &Source<'_>| {
        bench
            .window
            .map(pages(start, count), source, ReadWrite)
            .unwrap();
        bench.window.unmap(pages(start, count)).unwrap();
    };
    map(0, 8, &at(0));
    assert_eq!(counted(&bench)[2..], [0, 0, 0], "nothing to lose");
    map(1, BLOCK, &at(0));
    assert_eq!(counted(&bench)[2..], [1, 0, 0]);
    map(0, BLOCK, &at(0));
    map(0, BLOCK, &Source::anonymous());
    let lost = counted(&bench);
    // A host whose memfds have huge pages says so, and nothing is lost there.
    assert!(lost[3] >= 1 && lost[2] == 1 && lost[4] == 0, "{lost:?}");

    let collapsed = at(0).collapse(true);
    let batch = Batch::new().map(pages(0, BLOCK), &collapsed, ReadWrite);
    bench.window.commit(&batch).unwrap();
    if counted(&bench)[0] == 0 {
        skip("mappings_that_lost_their_huge_pages_are_counted_by_reason");
        return;
    }
    bench.window.unmap(pages(100, 1)).unwrap();
    assert_eq!(counted(&bench)[4], 1);
}

#[test]
fn a_mapping_of_which_a_part_was_not_collapsed_is_not_called_huge() {
    let bench = open_wide(BackendKind::Fixed);
    let fd = blob(2 * BLOCK, SealFlags::empty());
    let source = Source::descriptor(fd.as_fd(), 0);
    if bench
        .window
        .map(pages(0, BLOCK), &source, ReadWrite)
        .is_ok()
        && counted(&bench)[3] == 0
    {
        skip("a_mapping_of_which_a_part_was_not_collapsed_is_not_called_huge");
        return;
    }
    // The first block can be collapsed; what the second change leaves of the other one cannot.
    let batch = Batch::new()
        .replace(pages(0, 2 * BLOCK), &source.collapse(true), ReadWrite)
        .unmap(pages(BLOCK, 1));
    bench.window.commit(&batch).unwrap();
    let counts = counted(&bench);
    assert_eq!((counts[0], counts[1], counts[3]), (0, 1, 2), "{counts:?}");
}

#[test]
fn a_collapsed_mapping_that_is_made_while_dirty_pages_are_logged_is_counted() {
    let bench = open_wide(BackendKind::Fixed);
    let fd = blob(BLOCK, SealFlags::empty());
    let source = Source::descriptor(fd.as_fd(), 0).collapse(true);
    let lost = || bench.window.counters().lost_to_dirty_log;
    let map = || {
        bench
            .window
            .map(pages(0, BLOCK), &source, ReadWrite)
            .unwrap();
        bench.window.unmap(pages(0, BLOCK)).unwrap();
    };
    map();
    assert_eq!(lost(), 0);
    if counted(&bench)[0] == 0 {
        skip("a_collapsed_mapping_that_is_made_while_dirty_pages_are_logged_is_counted");
        return;
    }
    bench.window.start_dirty_log().unwrap();
    map();
    assert_eq!(lost(), 1);
    bench.window.stop_dirty_log().unwrap();
    map();
    assert_eq!(lost(), 1);
}
