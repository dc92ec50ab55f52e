//! Owns the tests of accesses whose address no instruction tells: holes are armed, and the touch
//! itself tells it. In a process of its own where the hook must not be there, or ends it.

use std::arch::is_x86_feature_detected;
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicBool, Ordering};

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};
use vm_remap::BackendKind::Fixed;
use vm_remap::Protection::ReadWrite;
use vm_remap::fault::SigbusHook;
use vm_remap::{HolePolicy, Obstacle};
use vm_remap_cli::guest::{Access, GpaRange, PAGE};

use crate::alone;
use crate::fault::{Resolved, open_resolved};
use crate::fault_holes::{areas, resident};
use crate::guest_support::skip;
use crate::support::*;

const ONES: u64 = u64::MAX;

/// A guest with a hook behind it, that can gather; `None` where that cannot be.
fn open_hooked(test: &str, vcpus: usize, policy: HolePolicy) -> Option<Resolved> {
    if !is_x86_feature_detected!("avx2") {
        skip(test, "the processor has no AVX2");
        return None;
    }
    match SigbusHook::install() {
        Ok(()) => {}
        Err(error) => {
            let kernel = "this kernel cannot poison memory (Linux 6.6 can)";
            skip(test, &format!("{kernel}: {error}"));
            return None;
        }
    }
    open_resolved(test, vcpus, options(Fixed).holes(policy))
}

/// Gathers four words, each `stride` bytes after the one before, from rsi on; rax is their AND.
fn gather(a: &mut CodeAssembler, stride: i32) -> Result<(), IcedError> {
    a.vpxor(xmm1, xmm1, xmm1)?;
    for place in 1..4 {
        a.mov(eax, stride * place)?;
        a.vpinsrd(xmm1, xmm1, eax, place)?;
    }
    a.vpcmpeqd(ymm4, ymm4, ymm4)?;
    a.vpgatherdq_3(ymm0, qword_ptr(rsi + xmm1), ymm4)?;
    a.vextracti128(xmm5, ymm0, 1)?;
    a.vpand(xmm0, xmm0, xmm5)?;
    a.vpsrldq(xmm5, xmm0, 8)?;
    a.vpand(xmm0, xmm0, xmm5)?;
    a.vmovq(rax, xmm0)
}

fn gathered(on: &Resolved, vcpu: usize, gpa: u64, stride: u64) -> Access<u64> {
    let range = GpaRange {
        base: gpa,
        len: 3 * stride + 8,
    };
    let stride = i32::try_from(stride).unwrap();
    let ran = on.guest.execute(vcpu, range, 0, |a| gather(a, stride));
    ran.unwrap()
}

#[test]
fn gather_over_holes_reads_ones_and_leaves_nothing_behind() {
    let test = "gather_over_holes_reads_ones_and_leaves_nothing_behind";
    let Some(on) = open_hooked(test, 1, HolePolicy::Trap) else {
        return;
    };
    on.guest.write_u64(0, at(0), 1).unwrap();
    assert_eq!(on.guest.read_u64(0, at(1)).unwrap(), Access::Done(ONES));
    let before = (areas(&on), resident(&on));
    for stride in [8, PAGE, 3 * PAGE + 16] {
        assert_eq!(
            gathered(&on, 0, at(20), stride),
            Access::Done(ONES),
            "{stride}"
        );
        assert_eq!((areas(&on), resident(&on)), before, "{stride}");
    }
    let counters = on.resolver().counters();
    assert_eq!(counters.stops, 0, "{counters:?}");
    assert!(counters.armed >= 3, "{counters:?}");
    assert_eq!(on.guest.read_u64(0, at(0)).unwrap(), Access::Done(1));
}

#[test]
fn gather_over_holes_and_memory_gets_both() {
    let test = "gather_over_holes_and_memory_gets_both";
    let Some(on) = open_hooked(test, 1, HolePolicy::Trap) else {
        return;
    };
    let blob = Blob::new(Seal::Unsealed, 2, 1000);
    on.window
        .map(pages(21, 2), &blob.source(), ReadWrite)
        .unwrap();
    let before = areas(&on);
    // A hole, both pages of the blob, a hole.
    let both = blob.word(0) & blob.word(1);
    assert_eq!(gathered(&on, 0, at(20), PAGE), Access::Done(both));
    assert_eq!(view(&on.guest, 21..23), words(&blob));
    assert_eq!(blob.bytes(), blob.expected());
    assert_eq!(areas(&on), before);
    on.guest.write_u64(0, at(21), 7).unwrap();
    assert_eq!(
        gathered(&on, 0, at(20), PAGE),
        Access::Done(7 & blob.word(1))
    );
    assert_eq!(on.resolver().counters().stops, 0);
}

#[test]
fn gather_from_holes_that_stop_or_read_zeroes_obeys_the_policy() {
    let test = "gather_from_holes_that_stop_or_read_zeroes_obeys_the_policy";
    let Some(on) = open_hooked(test, 1, HolePolicy::Stop) else {
        return;
    };
    let Access::Stopped(report) = gathered(&on, 0, at(20), 8) else {
        panic!("not stopped");
    };
    assert_eq!(report.obstacle, Obstacle::Hole);
    assert_eq!(report.address.unwrap().0, at(20), "the page is known");
    drop(on);
    let Some(on) = open_hooked(test, 1, HolePolicy::Zero) else {
        return;
    };
    assert_eq!(gathered(&on, 0, at(20), PAGE), Access::Done(0));
    assert_eq!(on.resolver().counters().armed, 0, "no fault");
}

#[test]
fn other_vcpus_go_on_while_holes_are_armed() {
    let test = "other_vcpus_go_on_while_holes_are_armed";
    let Some(on) = open_hooked(test, 3, HolePolicy::Trap) else {
        return;
    };
    on.guest.read_u64(0, at(1)).unwrap();
    let before = areas(&on);
    let done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let readers = threads.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let read = on.guest.read_u64(1, at(30)).unwrap();
                assert_eq!(read, Access::Done(ONES));
                let wrote = on.guest.write_u64(1, at(40), 3).unwrap();
                assert_eq!(wrote, Access::Done(()));
            }
        });
        let mapper = threads.spawn(|| {
            let blob = Blob::new(Seal::Unsealed, 1, ONES);
            while !done.load(Ordering::Relaxed) {
                let source = blob.source();
                on.window.map(pages(22, 1), &source, ReadWrite).unwrap();
                on.window.unmap(pages(22, 1)).unwrap();
            }
        });
        let gathers = [0, 2].map(|vcpu| {
            let on = &on;
            threads.spawn(move || {
                for _ in 0..20 {
                    assert_eq!(gathered(on, vcpu, at(20), PAGE), Access::Done(ONES));
                }
            })
        });
        let ended = gathers.map(|gather| gather.join());
        done.store(true, Ordering::Relaxed);
        for ended in ended {
            ended.unwrap();
        }
        readers.join().unwrap();
        mapper.join().unwrap();
    });
    // Each vCPU's last exit has taken back what it had armed.
    assert_eq!(areas(&on), before);
    assert_eq!(on.resolver().counters().stops, 0);
}

#[test]
fn gather_without_a_hook_stops_with_a_report() {
    let test = "gather_without_a_hook_stops_with_a_report";
    alone::alone(&format!("fault_poison::{test}"), || {
        if !is_x86_feature_detected!("avx2") {
            return skip(test, "the processor has no AVX2");
        }
        let Some(on) = open_resolved(test, 1, options(Fixed)) else {
            return;
        };
        let Access::Stopped(report) = gathered(&on, 0, at(20), 8) else {
            panic!("not stopped");
        };
        assert_eq!((report.obstacle, report.address), (Obstacle::Unknown, None));
        assert!(report.rip.is_some());
        assert_eq!(on.resolver().counters().armed, 0);
    });
}

#[test]
fn sigbus_of_another_kind_still_ends_the_process() {
    let test = "sigbus_of_another_kind_still_ends_the_process";
    if alone::word().as_deref() == Some(test) {
        let installed = SigbusHook::install();
        let file = tempfile::tempfile().unwrap();
        file.set_len(PAGE).unwrap();
        let offset = FileOffset::new(file.try_clone().unwrap(), 0);
        let region: MmapRegion = MmapRegion::from_file(offset, 4096).unwrap();
        file.set_len(0).unwrap();
        if installed.is_err() {
            return skip(test, "this kernel cannot poison memory (Linux 6.6 can)");
        }
        let read = region.get_ref::<u64>(0).unwrap().load();
        panic!("{read} was read where there is nothing");
    }
    let (status, output) = alone::start(&format!("fault_poison::{test}"), test);
    let skipped = status.success() && output.contains("1 passed");
    assert!(
        skipped || status.signal() == Some(libc::SIGBUS),
        "{status}: {output}"
    );
}
