//! Owns the tests of host memory without a descriptor under a real guest.

// UNSAFETY: only the owner of host memory can vouch for it, and here that is the test.
#![expect(unsafe_code, reason = "the tests vouch for memory of their own")]

use std::ptr::NonNull;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{MmapRegion, VolatileMemory};
use vm_remap::BackendKind::{self, Fixed};
use vm_remap::Protection::ReadWrite;
use vm_remap::Source;
use vm_remap_cli::guest::Access;

use crate::support::*;

const COUNT: u64 = 4;
const FIRST: u64 = 6;
const PAGE: usize = 4096;

/// Memory of the test's own. Declared before the window, so that it is freed after it.
struct Own(MmapRegion);

impl Own {
    fn new(sharing: i32) -> Self {
        let region = MmapRegionBuilder::new(usize::try_from(COUNT).unwrap() * PAGE)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(sharing | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
            .build()
            .unwrap();
        Self(region)
    }

    fn source(&self) -> Source<'static> {
        let address = NonNull::new(self.0.as_ptr()).unwrap();
        // SAFETY: the mapping has the length of the range it is put at, lives longer than the
        // window, and is accessed by volatile loads and stores only.
        unsafe { Source::host_memory(address) }
    }

    fn store(&self, page: usize, value: u64) {
        let place = self.0.get_ref::<u64>(page * PAGE).unwrap();
        place.store(value);
    }

    fn load(&self, page: usize) -> u64 {
        self.0.get_ref::<u64>(page * PAGE).unwrap().load()
    }
}

fn assert_shared(own: &Own, bench: &Bench, page: usize) {
    let gpa = at(FIRST + page as u64);
    own.store(page, 77);
    assert_eq!(bench.guest.read_u64(0, gpa).unwrap(), Access::Done(77));
    let written = bench.guest.write_u64(0, gpa, 88).unwrap();
    assert_eq!(written, Access::Done(()));
    assert_eq!(own.load(page), 88);
    own.store(page, 99);
    assert_eq!(bench.guest.read_u64(0, gpa).unwrap(), Access::Done(99));
}

#[test]
fn private_host_memory_in_place_is_one_memory_for_host_and_guest() {
    let test = "private_host_memory_in_place_is_one_memory_for_host_and_guest";
    for backend in BackendKind::ALL {
        let own = Own::new(libc::MAP_PRIVATE);
        let fallback = options(backend).fallback(true);
        let Some(bench) = open_with(test, 1, fallback, NUMBERS) else {
            return;
        };
        let Bench { window, guest } = &bench;
        let around = Blob::new(Seal::Unsealed, 16, 1000);
        window
            .map(pages(0, 16), &around.source(), ReadWrite)
            .unwrap();
        let range = pages(FIRST, COUNT);
        window.replace(range, &own.source(), ReadWrite).unwrap();
        let fallbacks = u64::from(backend == Fixed);
        assert_eq!(window.counters().fallbacks, fallbacks);
        // Page 1 is never touched by the host before the guest reads it: a zero page first.
        let fresh = guest.read_u64(0, at(FIRST + 1)).unwrap();
        assert_eq!(fresh, Access::Done(0), "{backend}");
        for page in 0..3 {
            assert_shared(&own, &bench, page);
        }
        let expected = words(&around);
        let first = usize::try_from(FIRST).unwrap();
        assert_eq!(view(guest, 0..FIRST), expected[..first], "{backend}");
        assert_eq!(view(guest, FIRST + COUNT..16), expected[first + 4..]);

        // Afterwards the segment is as if it had never been.
        window.unmap(range).unwrap();
        let kept = own.load(0);
        let written = guest.write_u64(0, at(FIRST), 5).unwrap();
        assert_eq!(written, hole(backend, at(FIRST), true), "{backend}");
        assert_eq!(own.load(0), kept);
        let calls = window.counters().slots_registered;
        let blob = Blob::new(Seal::Sealed, COUNT, 5000);
        window.map(range, &blob.source(), ReadWrite).unwrap();
        assert_eq!(view(guest, FIRST..FIRST + COUNT), words(&blob));
        if backend == Fixed {
            let counters = window.counters();
            assert_eq!((counters.slots_registered, counters.slots), (calls, 1));
        }
        assert_eq!(around.bytes(), around.expected(), "{backend}");
    }
}

#[test]
fn shared_host_memory_is_one_memory_for_host_and_guest() {
    let test = "shared_host_memory_is_one_memory_for_host_and_guest";
    for backend in BackendKind::ALL {
        let own = Own::new(libc::MAP_SHARED);
        let Some(bench) = open(test, backend) else {
            return;
        };
        let range = pages(FIRST, COUNT);
        bench.window.map(range, &own.source(), ReadWrite).unwrap();
        for page in 0..3 {
            assert_shared(&own, &bench, page);
        }
        bench.window.unmap(range).unwrap();
        let read = bench.guest.read_u64(0, at(FIRST)).unwrap();
        assert_eq!(read, hole(backend, at(FIRST), false));
        assert_eq!(own.load(0), 99, "unmapping takes it from the guest only");
    }
}
