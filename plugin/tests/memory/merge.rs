//! Owns the tests of batches whose changes are joined: the result is that of the single changes, and
//! what fails is taken back.

use std::fs::File;
use std::os::fd::OwnedFd;

use proptest::prelude::*;
use vm_remap::BackendKind::{self, Fixed};
use vm_remap::Protection::{self, ReadOnly, ReadWrite};
use vm_remap::{Batch, Error, GuestAddress, Prefault, Source, StateAfter};

use crate::support::*;

const PAGES: u64 = 24;

#[derive(Clone, Copy, Debug)]
enum Kind {
    Map,
    Replace,
    Unmap,
}

/// A change of some pages. Files are read at the page's own place, so that neighbours go on in them.
#[derive(Clone, Copy, Debug)]
struct Change {
    kind: Kind,
    start: u64,
    count: u64,
    /// 0 is anonymous memory.
    file: usize,
    protection: Protection,
    prefault: Prefault,
}

fn change() -> impl Strategy<Value = Change> {
    let kind = prop_oneof![Just(Kind::Map), Just(Kind::Replace), Just(Kind::Unmap)];
    let protection = prop_oneof![3 => Just(ReadWrite), 1 => Just(ReadOnly)];
    let prefault = prop_oneof![3 => Just(Prefault::None), 1 => Just(Prefault::HostRead)];
    (kind, 0..PAGES, 1..=6_u64, 0..5_usize, protection, prefault).prop_map(
        |(kind, start, count, file, protection, prefault)| Change {
            kind,
            start,
            count: count.min(PAGES - start),
            file,
            protection,
            prefault,
        },
    )
}

/// Two sealed files, an unsealed one, and the unsealed one again through another descriptor.
fn files() -> [OwnedFd; 4] {
    let shared = memfd(PAGES, 100);
    let again = File::from(shared.try_clone().unwrap());
    [sealed(PAGES, 1), sealed(PAGES, 50), shared, again.into()]
}

impl Change {
    fn source<'a>(&self, files: &'a [OwnedFd], label: u64) -> Source<'a> {
        use std::os::fd::AsFd;
        let source = match self.file {
            0 => Source::anonymous(),
            file => Source::descriptor(files.get(file - 1).unwrap().as_fd(), self.start * PAGE),
        };
        source.label(label).prefault(self.prefault)
    }

    fn add<'a>(&self, batch: Batch<'a>, files: &'a [OwnedFd], label: u64) -> Batch<'a> {
        let (range, source) = (pages(self.start, self.count), self.source(files, label));
        match self.kind {
            Kind::Map => batch.map(range, &source, self.protection),
            Kind::Replace => batch.replace(range, &source, self.protection),
            Kind::Unmap => batch.unmap(range),
        }
    }

    fn make(&self, bench: &Bench, files: &[OwnedFd], label: u64) -> Result<(), Error> {
        let (range, source) = (pages(self.start, self.count), self.source(files, label));
        match self.kind {
            Kind::Map => bench.window.map(range, &source, self.protection),
            Kind::Replace => bench.window.replace(range, &source, self.protection),
            Kind::Unmap => bench.window.unmap(range),
        }
    }
}

/// What the guest can see of a window, and what the window says of itself.
#[derive(Debug, PartialEq)]
struct Picture {
    seen: Vec<Option<u8>>,
    access: Vec<Option<String>>,
    record: vm_remap::LayoutRecord,
}

fn picture(bench: &Bench) -> Picture {
    let first = arena(bench);
    Picture {
        seen: seen(bench),
        access: (0..PAGES)
            .map(|page| protection(first + page * PAGE))
            .collect(),
        record: bench.window.record(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn a_batch_leaves_what_its_single_changes_leave(
        before in proptest::collection::vec(change(), 0..6),
        batch in proptest::collection::vec(change(), 1..16),
    ) {
        let files = files();
        for backend in BackendKind::ALL {
            let numbers = 8..8 + 2 * PAGES as u32;
            let open = || open_numbered(backend, numbers.clone());
            let (joined, single) = (open(), open());
            for (label, change) in before.iter().enumerate() {
                let label = label as u64;
                let made = [&joined, &single].map(|bench| change.make(bench, &files, label).is_ok());
                prop_assert_eq!(made[0], made[1]);
            }
            let untouched = picture(&joined);
            let mut all = Batch::new();
            let mut refused = false;
            for (label, change) in (100..).zip(&batch) {
                all = change.add(all, &files, label);
                refused = refused || change.make(&single, &files, label).is_err();
            }
            match joined.window.commit(&all) {
                Ok(()) => {
                    prop_assert!(!refused);
                    prop_assert_eq!(picture(&joined), picture(&single));
                }
                Err(error) => {
                    prop_assert!(refused, "{error}");
                    prop_assert_eq!(error.state_after(), StateAfter::Unchanged);
                    prop_assert_eq!(picture(&joined), untouched);
                }
            }
        }
    }
}

fn adjacent(fd: &OwnedFd, changes: u64, replace: bool) -> Batch<'_> {
    use std::os::fd::AsFd;
    (0..changes).fold(Batch::new(), |batch, index| {
        let source = Source::descriptor(fd.as_fd(), index * PAGE).label(index);
        let range = pages(index, 1);
        if replace {
            batch.replace(range, &source, ReadWrite)
        } else {
            batch.map(range, &source, ReadWrite)
        }
    })
}

#[test]
fn neighbours_of_one_file_are_one_call_and_stay_mappings_of_their_own() {
    let (own, peers) = (sealed(16, 1), memfd(16, 101));
    let bench = open(Fixed);
    bench.window.commit(&adjacent(&own, 16, false)).unwrap();
    let counters = bench.window.counters();
    assert_eq!((counters.direct, counters.staged), (1, 0));
    assert_eq!(
        (counters.mappings, counters.maps, counters.joined),
        (16, 16, 15)
    );
    bench.window.commit(&adjacent(&peers, 16, true)).unwrap();
    let counters = bench.window.counters();
    assert_eq!((counters.direct, counters.staged), (1, 1));
    assert_eq!((counters.mappings, counters.joined), (16, 30));
    let expected: Vec<Option<u8>> = (101..117).map(Some).collect();
    assert_eq!(seen(&bench)[..16], expected);
    for (index, mapping) in (0..).zip(bench.window.mappings()) {
        assert_eq!((mapping.range(), mapping.label()), (pages(index, 1), index));
    }
    bench.window.unmap(pages(5, 1)).unwrap();
    assert_eq!(seen(&bench)[4..7], [Some(105), None, Some(107)]);
}

#[test]
fn other_protections_prefaults_and_files_are_not_joined() {
    let (a, b) = (sealed(4, 1), sealed(4, 11));
    let at = |fd, page: u64| {
        use std::os::fd::AsFd;
        Source::descriptor(OwnedFd::as_fd(fd), page * PAGE)
    };
    let second: [(Source<'_>, Protection); 4] = [
        (at(&a, 1), ReadOnly),
        (at(&a, 1).prefault(Prefault::HostRead), ReadWrite),
        (at(&b, 1), ReadWrite),
        (at(&a, 2), ReadWrite),
    ];
    for (source, protection) in second {
        let bench = open(Fixed);
        let batch = Batch::new().map(pages(0, 1), &at(&a, 0), ReadWrite).map(
            pages(1, 1),
            &source,
            protection,
        );
        bench.window.commit(&batch).unwrap();
        let counters = bench.window.counters();
        assert_eq!((counters.direct + counters.staged, counters.joined), (2, 0));
    }
}

#[test]
fn a_read_only_descriptor_is_not_joined_to_one_that_may_write() {
    use std::os::fd::{AsFd, AsRawFd};
    for fd in [memfd(2, 1), sealed(2, 1)] {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let readable = File::open(path).unwrap();
        let bench = open(Fixed);
        let batch = Batch::new()
            .map(pages(0, 1), &Source::descriptor(fd.as_fd(), 0), ReadWrite)
            .map(
                pages(1, 1),
                &Source::descriptor(readable.as_fd(), PAGE),
                ReadWrite,
            );
        let error = bench.window.commit(&batch).unwrap_err();
        assert!(
            matches!(error, Error::DescriptorAccess { range, .. } if range == pages(1, 1)),
            "{error}"
        );
        assert_eq!(seen(&bench)[..2], [None, None]);
    }
}

#[test]
fn host_memory_that_a_later_change_covers_in_part_is_still_right() {
    // The window's own shared memory is as good as any.
    let donor = open(Fixed);
    let bytes = memfd(6, 1);
    donor
        .window
        .map(pages(0, 6), &source(&bytes), ReadWrite)
        .unwrap();
    let address = donor.window.lookup(BASE).unwrap().host_address;
    let address = std::ptr::NonNull::new(address as *mut u8).unwrap();
    // SAFETY: the donor's mapping outlives the window below, and nobody refers to it.
    #[expect(unsafe_code, reason = "host memory without a descriptor is passed")]
    let memory = unsafe { Source::host_memory(address) };
    let (bench, other) = (open(Fixed), memfd(1, 77));
    let batch = Batch::new()
        .map(pages(0, 6), &memory, ReadWrite)
        .unmap(pages(1, 1))
        .replace(pages(3, 1), &source(&other), ReadWrite);
    bench.window.commit(&batch).unwrap();
    let expected = [Some(1), None, Some(3), Some(77), Some(5), Some(6)];
    assert_eq!(seen(&bench)[..6], expected);
    bench.window.close().unwrap();
}

#[test]
fn a_joined_batch_that_fails_is_put_back_whole() {
    let fd = memfd(16, 50);
    let own = sealed(32, 1);
    let bench = open(BackendKind::Memslot);
    bench.window.commit(&adjacent(&own, 4, false)).unwrap();
    let before = (seen(&bench), bench.window.record());
    bench
        .recorder
        .fail_register_of(GuestAddress(BASE.0 + 6 * PAGE));
    let batch = adjacent(&fd, 4, true).map(pages(6, 1), &source(&fd), ReadWrite);
    let error = bench.window.commit(&batch).unwrap_err();
    assert_eq!(error.state_after(), StateAfter::Unchanged, "{error}");
    assert_eq!((seen(&bench), bench.window.record()), before);
}
