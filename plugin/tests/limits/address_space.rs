//! Owns the test of a window in a process that may have no more address space (`RLIMIT_AS`).

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vm_remap::Protection::ReadWrite;
use vm_remap::{Batch, Error, PAGE_SIZE, Prefault, SlotNumbers, Source, WindowOptions};

use crate::alone::alone;
use crate::support::*;

/// What the process has, in bytes.
fn size() -> u64 {
    let figures = std::fs::read_to_string("/proc/self/statm").unwrap();
    let total: u64 = figures.split(' ').next().unwrap().parse().unwrap();
    total * PAGE_SIZE
}

fn limit(bytes: Option<u64>) {
    let limits = getrlimit(Resource::As);
    let current = bytes.or(limits.maximum);
    setrlimit(Resource::As, Rlimit { current, ..limits }).unwrap();
}

#[test]
fn a_process_without_address_space_fails_cleanly_and_still_unmaps() {
    let test = "address_space::a_process_without_address_space_fails_cleanly_and_still_unmaps";
    alone(test, || {
        let watched = Watched::open(64 * MIB);
        let (peer, own, large) = (memfd(4 * MIB, 1), sealed(4 * MIB, 2), memfd(32 * MIB, 3));
        let first = pages(0, 32);
        watched.map(first, &peer, 1).unwrap();
        watched.map(pages(40, 8), &own, 2).unwrap();
        // Room for the calls' own needs, and none for a mapping of 32 MiB beside the arena.
        limit(Some(size() + 2 * MIB));
        let whole = pages(0, 32 * MIB / PAGE_SIZE);
        let error = watched.replace(whole, &large, 3).unwrap_err();
        assert!(matches!(error, Error::Stage { .. }), "{error}");
        assert_eq!(error.errno(), libc::ENOMEM);
        let filled = source(&large).prefault(Prefault::HostWrite);
        let error = watched.sees(whole, Some(3), |window| {
            window.replace(whole, &filled, ReadWrite)
        });
        assert!(matches!(error, Err(Error::Stage { .. })), "{error:?}");
        let error = watched.sees(whole, Some(0), |window| {
            window.replace(whole, &Source::anonymous(), ReadWrite)
        });
        assert!(matches!(error, Err(Error::Stage { .. })), "{error:?}");
        let batch = Batch::new()
            .unmap(first)
            .map(whole, &source(&large), ReadWrite);
        let error = watched.sees(first, None, |window| window.commit(&batch));
        assert_eq!(error.unwrap_err().errno(), libc::ENOMEM);
        // A window of its own has no room at all.
        let options = WindowOptions::new(BASE, 1 << 30);
        let provider = std::sync::Arc::new(crate::recorder::Recorder::default());
        let refused = options.open(provider, SlotNumbers::new(40..50));
        assert!(matches!(refused, Err(Error::Reserve { .. })));
        // What the arena has already is no more of it: the direct path, and holes.
        watched.replace(pages(34, 10), &own, 2).unwrap();
        watched.unmap(pages(4, 8)).unwrap();
        watched.unmap(pages(0, 64)).unwrap();
        limit(None);
        watched.map(whole, &large, 3).unwrap();
        watched.window.close().unwrap();
    });
}
