//! Owns the tests of what a guest's instructions find in a hole and at a read-only page, when a
//! resolver stands behind them: each of them does what it does on an open bus.

use std::os::fd::AsFd;
use std::sync::Arc;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use vm_remap::BackendKind::{self, Fixed};
use vm_remap::Protection::{ReadOnly, ReadWrite};
use vm_remap::fault::{Event, FaultResolver};
use vm_remap::{HolePolicy, Obstacle, ReadOnlyWrites, Source, Window, WindowOptions};
use vm_remap_cli::guest::{Access, GpaRange, Guest, PAGE};

use crate::guest_support::skip;
use crate::hugetlb::{Pool, huge};
use crate::support::*;

const ONES: u64 = u64::MAX;

pub(crate) struct Resolved {
    pub(crate) window: Arc<Window>,
    pub(crate) guest: Guest,
}

impl Resolved {
    pub(crate) fn resolver(&self) -> &Arc<FaultResolver> {
        self.guest.resolver()
    }
}

/// A guest whose faults in its window are resolved, with a registered first segment.
pub(crate) fn open_resolved(test: &str, vcpus: usize, options: WindowOptions) -> Option<Resolved> {
    let Bench { window, guest } = open_with(test, vcpus, options, NUMBERS)?;
    let window = Arc::new(window);
    guest.resolver().add(&window);
    window
        .map(pages(0, 1), &Source::anonymous(), ReadWrite)
        .unwrap();
    Some(Resolved { window, guest })
}

fn word(gpa: u64) -> GpaRange {
    GpaRange { base: gpa, len: 8 }
}

#[test]
fn reads_of_a_hole_give_ones_and_writes_are_dropped() {
    let test = "reads_of_a_hole_give_ones_and_writes_are_dropped";
    let Some(on) = open_resolved(test, 1, options(Fixed)) else {
        return;
    };
    assert_eq!(on.guest.read_u64(0, at(5)).unwrap(), Access::Done(ONES));
    assert_eq!(on.guest.write_u64(0, at(5), 7).unwrap(), Access::Done(()));
    assert_eq!(on.guest.read_u64(0, at(5)).unwrap(), Access::Done(ONES));
    // A segment without a memslot is an exit of its own, and answered alike.
    let far = at(3 * SEGMENT_PAGES);
    assert_eq!(on.guest.read_u64(0, far).unwrap(), Access::Done(ONES));
    assert_eq!(on.guest.write_u64(0, far, 7).unwrap(), Access::Done(()));
    let counters = on.resolver().counters();
    assert_eq!(
        (
            counters.faults,
            counters.mmio,
            counters.holes,
            counters.stops
        ),
        (3, 2, 5, 0),
        "{counters:?}"
    );
    assert_eq!(on.resolver().events().len(), 1, "told once");
    // And the memory beside it is memory.
    on.guest.write_u64(0, at(0), 9).unwrap();
    assert_eq!(on.guest.read_u64(0, at(0)).unwrap(), Access::Done(9));
}

/// What `body` leaves in rax where rsi leads into a hole, with rax = 5 before.
fn on_hole(
    on: &Resolved,
    gpa: u64,
    body: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Access<u64> {
    on.guest.execute(0, word(gpa), 5, body).unwrap()
}

#[test]
fn instructions_that_read_and_write_a_hole_read_ones() {
    let test = "instructions_that_read_and_write_a_hole_read_ones";
    let Some(on) = open_resolved(test, 1, options(Fixed)) else {
        return;
    };
    let hole = at(9);
    assert_eq!(
        on_hole(&on, hole, |a| a.add(qword_ptr(rsi), rax)),
        Access::Done(5)
    );
    assert_eq!(
        on_hole(&on, hole, |a| a.xchg(qword_ptr(rsi), rax)),
        Access::Done(ONES)
    );
    let xadd = on_hole(&on, hole, |a| a.lock().xadd(qword_ptr(rsi), rax));
    assert_eq!(xadd, Access::Done(ONES));
    let cmpxchg = on_hole(&on, hole, |a| a.lock().cmpxchg(qword_ptr(rsi), rcx));
    assert_eq!(cmpxchg, Access::Done(ONES));
    let flags = on_hole(&on, hole, |a| {
        a.inc(qword_ptr(rsi))?;
        a.mov(eax, 0)?;
        a.sete(al)
    });
    assert_eq!(flags, Access::Done(1), "ones and one are zero");
    assert_eq!(on.resolver().counters().stops, 0);
}

#[test]
fn vectors_bytes_and_the_stack_find_an_open_bus_too() {
    let test = "vectors_bytes_and_the_stack_find_an_open_bus_too";
    let Some(on) = open_resolved(test, 1, options(Fixed)) else {
        return;
    };
    let hole = at(9);
    let byte = on_hole(&on, hole + 3, |a| a.movzx(eax, byte_ptr(rsi)));
    assert_eq!(byte, Access::Done(0xff));
    let loaded = on_hole(&on, hole, |a| {
        a.movdqu(xmm0, xmmword_ptr(rsi))?;
        a.movq(rax, xmm0)
    });
    assert_eq!(loaded, Access::Done(ONES));
    let stored = on_hole(&on, hole, |a| a.movdqu(xmmword_ptr(rsi), xmm0));
    assert_eq!(stored, Access::Done(5));
    let added = on_hole(&on, hole, |a| {
        a.movq(xmm0, rax)?;
        a.paddq(xmm0, xmmword_ptr(rsi))?;
        a.movq(rax, xmm0)
    });
    assert_eq!(added, Access::Done(4));
    let pushed = on_hole(&on, hole + 64, |a| {
        a.mov(rsp, rsi)?;
        a.push(rax)
    });
    assert_eq!(pushed, Access::Done(5));
    let popped = on_hole(&on, hole + 64, |a| {
        a.mov(rsp, rsi)?;
        a.pop(rax)
    });
    assert_eq!(popped, Access::Done(ONES));
    assert_eq!(on_hole(&on, hole, |a| a.lodsq()), Access::Done(ONES));
    assert_eq!(on.resolver().counters().stops, 0);
}

#[test]
fn access_across_two_holes_is_one_access() {
    let test = "access_across_two_holes_is_one_access";
    let Some(on) = open_resolved(test, 1, options(Fixed)) else {
        return;
    };
    let across = at(10) - 4;
    let read = on_hole(&on, across, |a| a.mov(rax, qword_ptr(rsi)));
    assert_eq!(read, Access::Done(ONES));
    let written = on_hole(&on, across, |a| a.mov(qword_ptr(rsi), rax));
    assert_eq!(written, Access::Done(5));
    let counters = on.resolver().counters();
    assert_eq!((counters.faults, counters.holes), (2, 4), "{counters:?}");
}

#[test]
fn string_instructions_cross_from_hole_to_hole() {
    let test = "string_instructions_cross_from_hole_to_hole";
    let Some(on) = open_resolved(test, 1, options(Fixed)) else {
        return;
    };
    // From one hole into another, over two pages each.
    let (from, len) = (at(9) + PAGE - 64, 128);
    let moved = on.guest.execute(0, GpaRange { base: from, len }, 0, |a| {
        a.lea(rdi, qword_ptr(rsi + 0x5000))?;
        a.mov(ecx, 16)?;
        a.rep().movsq()?;
        a.mov(rax, rsi)
    });
    assert_eq!(moved.unwrap(), Access::Done(from + len));
    // From a hole into memory: ones arrive.
    let moved = on.guest.execute(0, word(at(9)), 0, |a| {
        a.mov(rdi, at(0))?;
        a.mov(ecx, 4)?;
        a.rep().movsq()?;
        a.mov(rax, qword_ptr(at(0) + 24))
    });
    assert_eq!(moved.unwrap(), Access::Done(ONES));
    // A clearing of four pages ends, and the window is as it was.
    let cleared = on.guest.execute(0, word(at(20)), 0, |a| {
        a.mov(rdi, rsi)?;
        a.mov(ecx, 4 * 512)?;
        a.rep().stosq()?;
        a.mov(rax, rdi)
    });
    assert_eq!(cleared.unwrap(), Access::Done(at(24)));
    assert_eq!(on.guest.read_u64(0, at(21)).unwrap(), Access::Done(ONES));
}

#[test]
fn access_half_in_a_hole_and_half_in_memory_gets_both() {
    let test = "access_half_in_a_hole_and_half_in_memory_gets_both";
    let Some(on) = open_resolved(test, 1, options(Fixed)) else {
        return;
    };
    let across = at(1) - 4;
    let read = on_hole(&on, across, |a| a.mov(rax, qword_ptr(rsi)));
    assert_eq!(read, Access::Done(0xffff_ffff_0000_0000));
    on_hole(&on, across, |a| a.mov(qword_ptr(rsi), rax));
    let read = on_hole(&on, across, |a| a.mov(eax, dword_ptr(rsi)));
    assert_eq!(read, Access::Done(5), "the half in memory was written");
}

#[test]
fn zero_policy_reads_without_an_exit_and_drops_writes() {
    let test = "zero_policy_reads_without_an_exit_and_drops_writes";
    let zero = options(Fixed).holes(HolePolicy::Zero);
    let Some(on) = open_resolved(test, 1, zero) else {
        return;
    };
    assert_eq!(on.guest.read_u64(0, at(5)).unwrap(), Access::Done(0));
    assert_eq!(on.resolver().counters().faults, 0, "no exit");
    assert_eq!(on.guest.write_u64(0, at(5), 7).unwrap(), Access::Done(()));
    assert_eq!(on.guest.read_u64(0, at(5)).unwrap(), Access::Done(0));
    // The holes that are made later are the same.
    on.window
        .map(pages(5, 1), &Source::anonymous(), ReadWrite)
        .unwrap();
    on.guest.write_u64(0, at(5), 7).unwrap();
    on.window.unmap(pages(5, 1)).unwrap();
    assert_eq!(on.guest.read_u64(0, at(5)).unwrap(), Access::Done(0));
    assert_eq!(on.resolver().counters().stops, 0);
}

#[test]
fn stop_policy_reports_address_and_window() {
    let test = "stop_policy_reports_address_and_window";
    let Some(on) = open_resolved(test, 1, options(Fixed).holes(HolePolicy::Stop)) else {
        return;
    };
    let Access::Stopped(report) = on.guest.write_u64(0, at(5) + 8, 7).unwrap() else {
        panic!("not stopped");
    };
    assert_eq!(report.obstacle, Obstacle::Hole);
    assert_eq!(report.address.unwrap().0, at(5) + 8);
    assert_eq!(report.window.unwrap().0, BASE);
    assert!(report.write);
    let text = report.to_string();
    let start = "cannot go on with the guest's write at 0x100005008 in the window at 0x100000000";
    assert!(text.starts_with(start), "{text}");
    // The same by an exit, where no memslot lies.
    let far = at(3 * SEGMENT_PAGES);
    assert!(matches!(
        on.guest.read_u64(0, far).unwrap(),
        Access::Stopped(_)
    ));
}

#[test]
fn write_to_a_read_only_mapping_is_dropped_or_reported() {
    let test = "write_to_a_read_only_mapping_is_dropped_or_reported";
    for backend in BackendKind::ALL {
        let Some(on) = open_resolved(test, 1, options(backend)) else {
            return;
        };
        let blob = Blob::new(Seal::Unsealed, 8, 1000);
        on.window
            .map(pages(8, 8), &blob.source(), ReadOnly)
            .unwrap();
        assert_eq!(
            on.guest.write_u64(0, at(10), 7).unwrap(),
            Access::Done(()),
            "{backend}"
        );
        let added = on.guest.execute(0, word(at(10)), 5, |a| {
            a.xadd(qword_ptr(rsi), rax)?;
            a.add(rax, qword_ptr(rsi))
        });
        // KVM itself makes a write of a memslot that is read-only, and reads before.
        assert_eq!(added.unwrap(), Access::Done(2 * blob.word(2)), "{backend}");
        assert_eq!(view(&on.guest, 8..16), words(&blob), "{backend}");
        assert_eq!(blob.bytes(), blob.expected(), "{backend}");
        let counters = on.resolver().counters();
        assert_eq!(
            (counters.dropped_writes, counters.stops),
            (2, 0),
            "{backend} {counters:?}"
        );
    }
    let strict = options(Fixed).read_only_writes(ReadOnlyWrites::Report);
    let Some(on) = open_resolved(test, 1, strict) else {
        return;
    };
    let blob = Blob::new(Seal::Unsealed, 8, 1000);
    let source = blob.source().label(77);
    on.window.map(pages(8, 8), &source, ReadOnly).unwrap();
    let Access::Stopped(report) = on.guest.write_u64(0, at(10), 7).unwrap() else {
        panic!("not stopped");
    };
    assert_eq!(report.obstacle, Obstacle::ReadOnly { label: 77 });
    assert_eq!(view(&on.guest, 8..16), words(&blob));
}

#[test]
fn mapping_that_shrinks_becomes_a_hole_and_is_told_once() {
    let test = "mapping_that_shrinks_becomes_a_hole_and_is_told_once";
    let Some(on) = open_resolved(test, 1, options(Fixed)) else {
        return;
    };
    let (blob, other) = (
        Blob::new(Seal::Unsealed, 16, 1000),
        Blob::new(Seal::Unsealed, 4, 2000),
    );
    on.window
        .map(pages(8, 16), &blob.source().label(5), ReadWrite)
        .unwrap();
    on.window
        .map(pages(24, 4), &other.source(), ReadWrite)
        .unwrap();
    assert_eq!(view(&on.guest, 8..24), words(&blob));
    blob.truncate(6);
    // Not the first page that is lost, and it is found all the same.
    assert_eq!(
        on.guest.read_u64(0, at(8 + 11)).unwrap(),
        Access::Done(ONES)
    );
    for page in 0..16 {
        let wanted = if page < 6 { blob.word(page) } else { ONES };
        assert_eq!(
            on.guest.read_u64(0, at(8 + page)).unwrap(),
            Access::Done(wanted),
            "{page}"
        );
    }
    assert_eq!(view(&on.guest, 24..28), words(&other));
    let mappings: Vec<_> = on
        .window
        .mappings()
        .iter()
        .map(vm_remap::Mapping::range)
        .collect();
    assert_eq!(mappings, [pages(0, 1), pages(8, 6), pages(24, 4)]);
    let lost: Vec<_> = on
        .resolver()
        .events()
        .into_iter()
        .filter_map(|event| match event {
            Event::Lost(lost) => Some((lost.range, lost.label)),
            _ => None,
        })
        .collect();
    assert_eq!(lost, [(pages(14, 10), 5)]);
    assert_eq!(on.resolver().counters().lost, 1);
}

#[test]
fn huge_pages_are_protected_and_lost_as_wholes() {
    let test = "huge_pages_are_protected_and_lost_as_wholes";
    let Some(on) = open_resolved(test, 1, options(Fixed)) else {
        return;
    };
    let Some(_pool) = Pool::with(8) else {
        skip(
            test,
            "the pool of 2 MiB pages is too small and cannot be made larger",
        );
        return;
    };
    let file = huge();
    let source = Source::descriptor(file.as_fd(), 0);
    let both = pages(SEGMENT_PAGES, 2 * SEGMENT_PAGES);
    on.window.map(both, &source, ReadOnly).unwrap();
    let gpa = at(SEGMENT_PAGES + 3);
    let before = on.guest.read_u64(0, gpa).unwrap();
    assert_eq!(on.guest.write_u64(0, gpa, 1).unwrap(), Access::Done(()));
    assert_eq!(on.guest.read_u64(0, gpa).unwrap(), before);
    rustix::fs::ftruncate(&file, SEGMENT).unwrap();
    let second = at(2 * SEGMENT_PAGES + 9);
    assert_eq!(on.guest.read_u64(0, second).unwrap(), Access::Done(ONES));
    assert_eq!(on.guest.read_u64(0, gpa).unwrap(), before);
    assert_eq!(on.resolver().counters().lost, 1);
}

#[test]
fn guest_without_a_resolver_leaves_with_a_fault() {
    let test = "guest_without_a_resolver_leaves_with_a_fault";
    let Some(Bench { window, guest }) = open(test, Fixed) else {
        return;
    };
    window
        .map(pages(0, 1), &Source::anonymous(), ReadWrite)
        .unwrap();
    assert_eq!(guest.read_u64(0, at(5)).unwrap(), Access::Fault);
}
