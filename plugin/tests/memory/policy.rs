//! Owns the tests of descriptor policies with real descriptors: what a peer may send, and what the
//! VMM may map of its own.

// UNSAFETY: safe Rust has no closed descriptor to pass.
#![expect(unsafe_code, reason = "a closed descriptor is among what is passed")]

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create,
    open as open_file,
};
use vm_remap::BackendKind::Fixed;
use vm_remap::Protection::{ReadOnly, ReadWrite};
use vm_remap::{DescriptorPolicy, Error, Prefault};

use crate::support::*;

fn peer(fd: &OwnedFd) -> vm_remap::Source<'_> {
    source(fd).policy(DescriptorPolicy::peer())
}

#[test]
fn a_memfd_is_let_in_once_it_is_sealed_against_shrinking() {
    let bench = open(Fixed);
    let fd = memfd(2, 7);
    for fewer in [SealFlags::empty(), SealFlags::GROW] {
        fcntl_add_seals(&fd, fewer).unwrap();
        let error = bench.window.map(pages(1, 2), &peer(&fd), ReadWrite);
        assert_eq!(
            error.unwrap_err().to_string(),
            format!(
                "cannot map 0x1000..0x3000 from memfd with seals {:#x}: the policy wants 0x2 among \
                 them; have its owner add them, or choose a policy that wants less",
                fewer.bits()
            )
        );
    }
    assert_eq!(bench.recorder.registered(), 0);
    fcntl_add_seals(&fd, SealFlags::SHRINK).unwrap();
    bench
        .window
        .map(pages(1, 2), &peer(&fd), ReadWrite)
        .unwrap();
    // What the policy saw stays true for as long as the mapping lives.
    ftruncate(&fd, 0).unwrap_err();
    assert_eq!(&seen(&bench)[..4], [None, Some(7), Some(8), None]);
}

#[test]
fn a_memfd_that_no_one_can_seal_needs_a_policy_that_wants_no_seals() {
    let bench = open(Fixed);
    // Without `MFD_ALLOW_SEALING` a memfd has the one seal that keeps all others off.
    let fd = memfd_create("plain", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, 2 * PAGE).unwrap();
    let refused = bench.window.map(pages(0, 2), &peer(&fd), ReadWrite);
    assert!(matches!(
        refused.unwrap_err(),
        Error::PolicySeals {
            found: 1,
            wanted: 2,
            ..
        }
    ));
    let lax = source(&fd).policy(DescriptorPolicy::peer().seals(0));
    bench.window.map(pages(0, 2), &lax, ReadWrite).unwrap();
    bench
        .window
        .map(pages(2, 2), &source(&fd), ReadWrite)
        .unwrap();
}

#[test]
fn hugetlb_is_judged_by_its_seals_before_its_size() {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let Ok(fd) = memfd_create("huge", flags | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB) else {
        use std::io::Write;
        let test = "hugetlb_is_judged_by_its_seals_before_its_size";
        let reason = "this kernel has no huge pages of 2 MiB";
        writeln!(std::io::stderr(), "SKIP {test}: {reason}").unwrap();
        return;
    };
    let map = |policy| {
        let source = source(&fd).policy(policy);
        open(Fixed)
            .window
            .map(pages(0, 1), &source, ReadWrite)
            .unwrap_err()
    };
    let unsealed = map(DescriptorPolicy::peer());
    assert!(
        matches!(unsealed, Error::PolicySeals { ref kind, .. } if kind == "hugetlb 0x200000"),
        "{unsealed}"
    );
    fcntl_add_seals(&fd, SealFlags::SHRINK).unwrap();
    let sealed = map(DescriptorPolicy::peer());
    assert!(
        matches!(sealed, Error::HugePageAlignment { .. }),
        "{sealed}"
    );
    let kept_out = map(DescriptorPolicy::own().hugetlb(false));
    assert!(matches!(kept_out, Error::PolicyKind { .. }), "{kept_out}");
}

#[test]
fn a_file_on_another_file_system_is_for_the_vmm_alone() {
    // A file of the kernel's own, on a file system that every host has.
    let fd = OwnedFd::from(File::open("/proc/self/status").unwrap());
    let map = |source: &vm_remap::Source<'_>| {
        open(Fixed)
            .window
            .map(pages(0, 1), source, ReadOnly)
            .unwrap_err()
    };
    assert_eq!(
        map(&peer(&fd)).to_string(),
        "cannot map 0x0..0x1000 from file: the policy accepts memfd, \
         hugetlb, dma-buf; pass one of these, or choose a policy that accepts it"
    );
    let own = map(&source(&fd));
    assert!(matches!(own, Error::PastEnd { .. }), "{own}");
    let let_in = source(&fd).policy(DescriptorPolicy::peer().regular_file(true));
    assert!(matches!(map(&let_in), Error::PastEnd { .. }));
}

#[test]
fn what_cannot_be_mapped_at_all_is_refused_as_that() {
    let path = open_file("/proc/self/exe", OFlags::PATH, Mode::empty()).unwrap();
    // SAFETY: no descriptor of this process has so high a number, so the call harms nothing.
    let closed = unsafe { BorrowedFd::borrow_raw(1 << 28) };
    for policy in [DescriptorPolicy::own(), DescriptorPolicy::peer()] {
        let map = |fd: BorrowedFd<'_>| {
            let source = vm_remap::Source::descriptor(fd, 0).policy(policy);
            open(Fixed)
                .window
                .map(pages(0, 1), &source, ReadOnly)
                .unwrap_err()
        };
        let error = map(path.as_fd());
        assert!(matches!(error, Error::DescriptorKind { .. }), "{error}");
        let error = map(closed);
        assert!(matches!(error, Error::Inspect { .. }), "{error}");
        assert_eq!(error.errno(), 9);
    }
}

#[test]
fn a_policy_judges_replaces_batches_and_prefaults_alike() {
    let bench = open(Fixed);
    let (good, bad) = (sealed(4, 1), memfd(4, 100));
    let map = bench.window.map(pages(0, 4), &peer(&good), ReadWrite);
    map.unwrap();
    let before = seen(&bench);
    let replace = bench.window.replace(pages(0, 4), &peer(&bad), ReadWrite);
    assert!(matches!(replace, Err(Error::PolicySeals { .. })));
    let batch = vm_remap::Batch::new()
        .unmap(pages(0, 2))
        .map(pages(8, 4), &peer(&bad), ReadWrite);
    let commit = bench.window.commit(&batch);
    assert!(matches!(commit, Err(Error::PolicySeals { .. })));
    let filled = peer(&bad).prefault(Prefault::HostRead);
    let map = bench.window.map(pages(8, 4), &filled, ReadWrite);
    assert!(matches!(map, Err(Error::PolicySeals { .. })));
    assert_eq!(seen(&bench), before);
}
