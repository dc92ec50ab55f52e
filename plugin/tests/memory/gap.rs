//! Owns the proof of rule 1: the arena has no gap, whatever descriptor is sent and whichever
//! call fails. Each watch is first shown to catch the plain way of doing it.

#![expect(
    unsafe_code,
    reason = "the watches look at address space that they do not own"
)]

use std::ffi::c_void;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{
    MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create,
    open as open_file,
};
use rustix::io::Errno;
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, mmap_anonymous, msync, munmap};
use rustix::net::{AddressFamily, SocketType, socket};
use vm_remap::BackendKind;
use vm_remap::Protection::{ReadOnly, ReadWrite};
use vm_remap::{Error, StateAfter};

use crate::support::*;

/// Whether part of the range is not mapped at all, in one look under the kernel's lock.
fn gap(address: u64, len: u64) -> bool {
    // SAFETY: MS_ASYNC changes nothing; it says whether the range is mapped (msync(2), ENOMEM).
    let found = unsafe { msync(address as *mut c_void, len as usize, MsyncFlags::ASYNC) };
    found == Err(Errno::NOMEM)
}

/// Maps memory wherever the kernel likes, and says where that was.
fn anywhere(len: u64) -> u64 {
    let nowhere = std::ptr::null_mut();
    // SAFETY: without MAP_FIXED nothing is replaced.
    let mapped =
        unsafe { mmap_anonymous(nowhere, len as usize, ProtFlags::READ, MapFlags::PRIVATE) };
    let address = mapped.unwrap();
    // SAFETY: the range was mapped the line before, and nobody else knows of it.
    unsafe { munmap(address, len as usize) }.unwrap();
    address.addr() as u64
}

/// Descriptors that a hostile peer could send, with a name each.
fn hostile() -> Vec<(&'static str, OwnedFd)> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let sealed = memfd_create("sealed", flags).unwrap();
    ftruncate(&sealed, 64 * PAGE).unwrap();
    fcntl_add_seals(&sealed, SealFlags::WRITE | SealFlags::SEAL).unwrap();
    let future = memfd_create("future", flags).unwrap();
    ftruncate(&future, 64 * PAGE).unwrap();
    fcntl_add_seals(&future, SealFlags::FUTURE_WRITE).unwrap();
    let root = open_file("/", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let path = open_file("/", OFlags::PATH, Mode::empty()).unwrap();
    let no_mmap = open_file("/proc/self/status", OFlags::RDONLY, Mode::empty()).unwrap();
    let no_mmap_sys = open_file(
        "/sys/kernel/mm/transparent_hugepage/enabled",
        OFlags::RDWR,
        Mode::empty(),
    )
    .or_else(|_| open_file("/proc/self/maps", OFlags::RDONLY, Mode::empty()))
    .unwrap();
    let (pipe, _) = rustix::pipe::pipe().unwrap();
    vec![
        (
            "a socket",
            socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap(),
        ),
        ("a memfd sealed against writing", sealed),
        ("a memfd sealed against future writing", future),
        ("a directory", root),
        ("an O_PATH descriptor", path),
        (
            "an epoll descriptor",
            rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap(),
        ),
        ("a file of a file system without mmap", no_mmap),
        ("a file of sysfs", no_mmap_sys),
        ("a pipe", pipe),
        (
            "/dev/zero",
            File::options()
                .read(true)
                .write(true)
                .open("/dev/zero")
                .unwrap()
                .into(),
        ),
        ("an empty memfd", memfd_create("empty", flags).unwrap()),
    ]
}

/// A hugetlb memfd that asks for more pages than any pool has.
fn hugetlb_beyond_the_pool() -> Option<OwnedFd> {
    let fd = memfd_create("huge", MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB).ok()?;
    ftruncate(&fd, 1 << 40).ok()?;
    Some(fd)
}

#[test]
fn the_watches_catch_the_plain_way() {
    let len = 16 * PAGE;
    // Where mmap(NULL) comes last: another test's thread would fill the gap below.
    let far = (3_usize << 40) as *mut c_void;
    // SAFETY: without MAP_FIXED nothing is replaced.
    let reserved =
        unsafe { mmap_anonymous(far, len as usize, ProtFlags::empty(), MapFlags::PRIVATE) };
    let reserved = reserved.unwrap();
    let address = reserved.addr() as u64;
    assert!(!gap(address, len));
    let socket = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    let flags = MapFlags::SHARED | MapFlags::FIXED;
    // SAFETY: the range was reserved above and nobody refers to it.
    let plain = unsafe {
        mmap(
            reserved,
            len as usize,
            ProtFlags::READ,
            flags,
            socket.as_fd(),
            0,
        )
    };
    plain.unwrap_err();
    // Newer kernels put the old mapping back where they can; where they do not, the watch sees it.
    let kernel_left_a_gap = gap(address, len);
    if !kernel_left_a_gap {
        // SAFETY: the range is ours still, and nobody refers to it.
        unsafe { munmap(reserved, len as usize) }.unwrap();
    }
    assert!(gap(address, len));
}

#[test]
fn hostile_descriptors_never_open_a_gap() {
    for backend in BackendKind::ALL {
        let bench = open(backend);
        let good = memfd(64, 1);
        let base = arena(&bench);
        let len = bench.window.len();
        bench
            .window
            .map(pages(0, 8), &source(&good), ReadWrite)
            .unwrap();
        let before = seen(&bench);
        let (stop, looks, gaps, inside) = (
            AtomicBool::new(false),
            AtomicU64::new(0),
            AtomicU64::new(0),
            AtomicU64::new(0),
        );
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    gaps.fetch_add(u64::from(gap(base, len)), Ordering::Relaxed);
                    looks.fetch_add(1, Ordering::Relaxed);
                }
            });
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let got = anywhere(PAGE);
                    let hit = base <= got && got < base + len;
                    inside.fetch_add(u64::from(hit), Ordering::Relaxed);
                }
            });
            while looks.load(Ordering::Relaxed) == 0 {
                std::thread::yield_now();
            }
            for _ in 0..50 {
                attack(&bench, &before);
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(looks.load(Ordering::Relaxed) > 0);
        assert_eq!(
            gaps.load(Ordering::Relaxed),
            0,
            "{backend}: the arena had a gap"
        );
        assert_eq!(
            inside.load(Ordering::Relaxed),
            0,
            "{backend}: a stranger got arena memory"
        );
    }
}

/// Sends every hostile descriptor at a mapping, at a hole and across both.
fn attack(bench: &Bench, before: &[Option<u8>]) {
    for (name, fd) in hostile() {
        for range in [pages(0, 8), pages(2, 1), pages(20, 4), pages(6, 4)] {
            for protection in [ReadOnly, ReadWrite] {
                if name.contains("sealed") && protection == ReadOnly {
                    continue;
                }
                let error = bench
                    .window
                    .replace(range, &source(&fd), protection)
                    .unwrap_err();
                assert_eq!(
                    error.state_after(),
                    StateAfter::Unchanged,
                    "{name}: {error}"
                );
            }
        }
        assert_eq!(seen(bench), before, "{name}");
    }
}

#[test]
fn hugetlb_without_pages_in_the_pool_changes_nothing() {
    let Some(fd) = hugetlb_beyond_the_pool() else {
        use std::io::Write;
        let test = "hugetlb_without_pages_in_the_pool_changes_nothing";
        writeln!(
            std::io::stderr(),
            "SKIP {test}: this kernel makes no hugetlb memfd"
        )
        .unwrap();
        return;
    };
    let len = 1 << 30;
    for backend in BackendKind::ALL {
        let bench = open_with(vm_remap::WindowOptions::new(BASE, 64 * len).backend(backend));
        let range = vm_remap::PageRange::new(0, 64 * len).unwrap();
        let small = memfd(1, 9);
        bench
            .window
            .map(pages(0, 1), &source(&small), ReadWrite)
            .unwrap();
        let address = bench.window.lookup(BASE).unwrap().host_address;
        let error = bench
            .window
            .replace(range, &source(&fd), ReadWrite)
            .unwrap_err();
        assert!(matches!(error, Error::Stage { .. }), "{error}");
        assert_eq!(error.errno(), Errno::NOMEM.raw_os_error());
        assert!(!gap(address, 64 * len));
        let found = bench.window.lookup(BASE).unwrap();
        assert_eq!(found.mapping.range(), pages(0, 1));
    }
}

#[test]
fn ordinary_changes_never_open_a_gap() {
    let bench = open(BackendKind::Fixed);
    let (peer, own) = (memfd(16, 1), sealed(16, 1));
    let base = arena(&bench);
    let len = bench.window.len();
    let (stop, looks, gaps) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                gaps.fetch_add(u64::from(gap(base, len)), Ordering::Relaxed);
                looks.fetch_add(1, Ordering::Relaxed);
            }
        });
        while looks.load(Ordering::Relaxed) < 10 {
            for fd in [&peer, &own] {
                bench
                    .window
                    .map(pages(3, 16), &source(fd), ReadWrite)
                    .unwrap();
                bench
                    .window
                    .replace(pages(5, 3), &source(fd), ReadOnly)
                    .unwrap();
                bench.window.unmap(pages(10, 2)).unwrap();
                bench.window.unmap(pages(0, 32)).unwrap();
            }
        }
        for _ in 0..2000 {
            bench
                .window
                .map(pages(3, 16), &source(&peer), ReadWrite)
                .unwrap();
            bench
                .window
                .replace(pages(3, 16), &source(&own), ReadWrite)
                .unwrap();
            bench.window.unmap(pages(3, 16)).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(
        gaps.load(Ordering::Relaxed),
        0,
        "in {} looks",
        looks.load(Ordering::Relaxed)
    );
}

/// The kernel maps huge pages whole: what it mapped for a part of one was longer than the part, and
/// could not be unmapped again.
#[test]
fn a_batch_that_cuts_a_huge_page_of_its_own_is_refused_and_loses_no_address_space() {
    let test = "a_batch_that_cuts_a_huge_page_of_its_own_is_refused_and_loses_no_address_space";
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    let huge = memfd_create(test.get(..40).unwrap(), flags)
        .ok()
        .filter(|fd| ftruncate(fd, 4 << 20).is_ok());
    let Some(huge) = huge else {
        use std::io::Write;
        let reason = "this kernel has no huge pages of 2 MiB";
        writeln!(std::io::stderr(), "SKIP {test}: {reason}").unwrap();
        return;
    };
    let bench = open_with(vm_remap::WindowOptions::new(BASE, 16 << 20));
    let all = vm_remap::PageRange::new(2 << 20, 4 << 20).unwrap();
    for cut in [pages(512, 1), pages(700, 10), pages(1535, 1), pages(0, 513)] {
        let batch = vm_remap::Batch::new()
            .map(all, &source(&huge), ReadWrite)
            .unmap(cut);
        for error in [
            bench.window.commit(&batch).unwrap_err(),
            bench.window.prepare(&batch).unwrap_err(),
        ] {
            assert!(
                matches!(error, Error::HugePageCut { range, mapping, .. }
                    if range == cut && mapping == all),
                "{error}"
            );
        }
    }
    assert!(bench.window.mappings().is_empty());
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    assert!(!maps.contains(test.get(..40).unwrap()), "{maps}");
}

#[test]
fn a_cut_inside_a_huge_page_is_refused_and_harms_nothing() {
    let test = "a_cut_inside_a_huge_page_is_refused_and_harms_nothing";
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    let huge = memfd_create("huge", flags)
        .ok()
        .filter(|fd| ftruncate(fd, 4 << 20).is_ok());
    let bench = open_with(vm_remap::WindowOptions::new(BASE, 16 << 20));
    let range = vm_remap::PageRange::new(0, 4 << 20).unwrap();
    let mapped = huge
        .as_ref()
        .map(|fd| bench.window.map(range, &source(fd), ReadWrite));
    let Some(Ok(())) = mapped else {
        use std::io::Write;
        let reason = "no huge pages of 2 MiB in the pool";
        writeln!(std::io::stderr(), "SKIP {test}: {reason}").unwrap();
        return;
    };
    let small = memfd(1, 9);
    for at in [0, 1, 511, 512, 1000] {
        let error = bench
            .window
            .replace(pages(at, 1), &source(&small), ReadWrite)
            .unwrap_err();
        assert!(matches!(error, Error::HugePageCut { .. }), "{error}");
        bench.window.unmap(pages(at, 1)).unwrap_err();
    }
    assert_eq!(bench.window.mappings().len(), 1);
    // A cut between huge pages, in a batch that fails: the mapping is put back whole.
    let half = vm_remap::PageRange::new(0, 2 << 20).unwrap();
    let socket = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    let batch = vm_remap::Batch::new()
        .unmap(half)
        .map(pages(0, 1), &source(&socket), ReadOnly);
    bench.window.commit(&batch).unwrap_err();
    assert_eq!(bench.window.mappings()[0].range(), range);
    let batch = vm_remap::Batch::new()
        .unmap(half)
        .map(pages(1, 1), &source(&small), ReadOnly);
    bench.window.commit(&batch).unwrap();
    assert_eq!(bench.window.mappings().len(), 2);
}
