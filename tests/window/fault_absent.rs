//! Owns the tests of a VMM that is asked about what is not there: what it maps the guest goes on
//! with, and what it leaves alone ends as if it had not been asked.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use iced_x86::code_asm::*;
use vm_remap::BackendKind::{Fixed, Memslot};
use vm_remap::Protection::{ReadOnly, ReadWrite};
use vm_remap::fault::{Event, SigbusHook};
use vm_remap::{HolePolicy, Source, Window, WindowOptions};
use vm_remap_cli::guest::{Access, GpaRange, PAGE, Program, Touch};

use crate::fault::{Resolved, open_resolved};
use crate::fault_holes::areas_of;
use crate::guest_support::{skip, wait_for};
use crate::support::*;

const ONES: u64 = u64::MAX;

/// A guest whose VMM answers with `answer`, which gets the window and the address; and what it was
/// asked.
fn open_asked(
    test: &str,
    vcpus: usize,
    options: WindowOptions,
    answer: impl Fn(&Window, u64) -> bool + Send + Sync + 'static,
) -> Option<(Resolved, Arc<Mutex<Vec<u64>>>)> {
    let on = open_resolved(test, vcpus, options)?;
    let asked = Arc::<Mutex<Vec<u64>>>::default();
    let (kept, window) = (Arc::clone(&asked), Arc::downgrade(&on.window));
    on.guest.on_absent(move |_, address| {
        kept.lock().unwrap().push(address.0);
        window
            .upgrade()
            .is_some_and(|window| answer(&window, address.0))
    });
    Some((on, asked))
}

fn take(asked: &Mutex<Vec<u64>>) -> Vec<u64> {
    std::mem::take(&mut asked.lock().unwrap())
}

/// Maps a fresh page, whose words are all those of `page`, where the guest has touched.
fn map_at(window: &Window, address: u64) -> bool {
    let page = (address - BASE) / PAGE;
    let blob = Blob::new(Seal::Unsealed, 1, 1000 + page);
    window
        .map(pages(page, 1), &blob.source(), ReadWrite)
        .is_ok()
}

#[test]
fn memory_that_is_mapped_when_asked_is_what_the_guest_goes_on_with() {
    let test = "memory_that_is_mapped_when_asked_is_what_the_guest_goes_on_with";
    let before = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&before);
    let answer = move |window: &Window, address| {
        // No page stands in while the VMM is asked.
        seen.store(areas_of(window), Ordering::SeqCst);
        map_at(window, address)
    };
    let Some((on, asked)) = open_asked(test, 1, options(Fixed), answer) else {
        return;
    };
    let areas = areas_of(&on.window);
    assert_eq!(on.guest.read_u64(0, at(5) + 8).unwrap(), Access::Done(1005));
    assert_eq!(before.load(Ordering::SeqCst), areas);
    assert_eq!(on.guest.write_u64(0, at(7), 9).unwrap(), Access::Done(()));
    assert_eq!(on.guest.read_u64(0, at(7)).unwrap(), Access::Done(9));
    let word = GpaRange {
        base: at(9),
        len: 8,
    };
    let added = on
        .guest
        .execute(0, word, 5, |a| a.xadd(qword_ptr(rsi), rax));
    assert_eq!(added.unwrap(), Access::Done(1009));
    assert_eq!(on.guest.read_u64(0, at(9)).unwrap(), Access::Done(1014));
    assert_eq!(take(&asked), [at(5) + 8, at(7), at(9)]);
    let counters = on.resolver().counters();
    assert_eq!(
        (
            counters.told,
            counters.holes,
            counters.steps,
            counters.stops
        ),
        (3, 0, 0, 0),
        "{counters:?}"
    );
}

#[test]
fn hole_that_the_vmm_leaves_alone_is_an_open_bus_and_asked_about_once_a_touch() {
    let test = "hole_that_the_vmm_leaves_alone_is_an_open_bus_and_asked_about_once_a_touch";
    let Some((on, asked)) = open_asked(test, 1, options(Fixed), |_, _| false) else {
        return;
    };
    let before = areas_of(&on.window);
    assert_eq!(on.guest.read_u64(0, at(5)).unwrap(), Access::Done(ONES));
    assert_eq!(on.guest.write_u64(0, at(5), 7).unwrap(), Access::Done(()));
    assert_eq!(on.guest.read_u64(0, at(5)).unwrap(), Access::Done(ONES));
    assert_eq!(take(&asked), [at(5); 3]);
    let walk = on.guest.touch(0, at(1), 8 * PAGE, Touch::Write).unwrap();
    assert_eq!(walk, Access::Done(8));
    assert_eq!(take(&asked), (1..9).map(at).collect::<Vec<_>>());
    // Two pages of one instruction are one question.
    let both = GpaRange {
        base: at(6) - 4,
        len: 8,
    };
    let read = on.guest.execute(0, both, 5, |a| a.mov(rax, qword_ptr(rsi)));
    assert_eq!(read.unwrap(), Access::Done(ONES));
    let wrote = on.guest.execute(0, both, 5, |a| a.mov(qword_ptr(rsi), rax));
    assert_eq!(wrote.unwrap(), Access::Done(5));
    assert_eq!(take(&asked), [at(6) - 4; 2]);
    assert_eq!(areas_of(&on.window), before);
    let counters = on.resolver().counters();
    assert_eq!((counters.told, counters.stops), (0, 0), "{counters:?}");
    assert_eq!(counters.holes, 3 + 8 + 4, "{counters:?}");
}

#[test]
fn instruction_over_several_holes_gets_all_of_them_mapped() {
    let test = "instruction_over_several_holes_gets_all_of_them_mapped";
    let Some((on, asked)) = open_asked(test, 1, options(Fixed), map_at) else {
        return;
    };
    let across = GpaRange {
        base: at(6) - 4,
        len: 8,
    };
    let wrote = on
        .guest
        .execute(0, across, 5, |a| a.mov(qword_ptr(rsi), rax));
    assert_eq!(wrote.unwrap(), Access::Done(5));
    // It is gone on from the page that was touched first.
    let told = take(&asked);
    assert_eq!(
        told.iter().map(|at| at / PAGE).collect::<Vec<_>>(),
        [at(5) / PAGE, at(6) / PAGE]
    );
    assert_eq!(
        on.guest.read_u64(0, at(6)).unwrap(),
        Access::Done(1006 >> 32 << 32)
    );
    // A repeating instruction, from holes to holes.
    let range = GpaRange {
        base: at(10),
        len: 8 * PAGE,
    };
    let copied = on.guest.execute(0, range, 0, |a| {
        a.mov(rcx, 2 * PAGE / 8)?;
        a.mov(rdi, rsi)?;
        a.add(rdi, 4 * 4096)?;
        a.rep().movsq()?;
        a.mov(rax, qword_ptr(rdi - 8))
    });
    assert_eq!(copied.unwrap(), Access::Done(1011));
    let mut told = take(&asked);
    told.sort_unstable();
    assert_eq!(told, [10, 11, 14, 15].map(at));
    let counters = on.resolver().counters();
    assert_eq!(
        (
            counters.told,
            counters.holes,
            counters.steps,
            counters.stops
        ),
        (6, 0, 0, 0),
        "{counters:?}"
    );
}

#[test]
fn yes_that_changes_nothing_has_the_vcpu_ask_again() {
    let test = "yes_that_changes_nothing_has_the_vcpu_ask_again";
    let times = AtomicUsize::new(0);
    let answer = move |_: &Window, _| times.fetch_add(1, Ordering::SeqCst) < 100;
    let Some((on, asked)) = open_asked(test, 1, options(Fixed), answer) else {
        return;
    };
    assert_eq!(on.guest.read_u64(0, at(5)).unwrap(), Access::Done(ONES));
    assert_eq!(take(&asked), [at(5); 101]);
    let counters = on.resolver().counters();
    assert_eq!((counters.told, counters.holes), (100, 1), "{counters:?}");
    assert_eq!((counters.steps, counters.stops), (0, 0), "{counters:?}");
    let touched = |event: &Event| matches!(event, Event::HoleTouched { .. });
    let events = on.resolver().events();
    assert_eq!(events.iter().filter(|event| touched(event)).count(), 1);
}

#[test]
fn vcpu_that_asks_without_end_can_be_stopped() {
    let test = "vcpu_that_asks_without_end_can_be_stopped";
    let Some((on, asked)) = open_asked(test, 1, options(Fixed), |_, _| true) else {
        return;
    };
    let (base, len) = (at(8), 4 * PAGE);
    on.guest.start(0, Program::Walk { base, len }).unwrap();
    // More than a second's free ones, where the host is fast enough.
    wait_for("questions", || asked.lock().unwrap().len() > 2100);
    let ran = on.guest.stop(0).unwrap();
    assert_eq!(ran.accesses, 0, "{ran:?}");
    assert!(take(&asked).into_iter().all(|address| address == at(8)));
    // It goes on where it stood.
    on.window
        .map(pages(8, 4), &Source::anonymous(), ReadWrite)
        .unwrap();
    assert_eq!(on.guest.read_u64(0, at(8)).unwrap(), Access::Done(0));
}

#[test]
fn write_to_read_only_memory_is_nothing_to_ask_about() {
    let test = "write_to_read_only_memory_is_nothing_to_ask_about";
    let Some((on, asked)) = open_asked(test, 1, options(Fixed), |_, _| true) else {
        return;
    };
    let blob = Blob::new(Seal::Unsealed, 2, 1000);
    on.window
        .map(pages(8, 2), &blob.source(), ReadOnly)
        .unwrap();
    assert_eq!(on.guest.write_u64(0, at(8), 7).unwrap(), Access::Done(()));
    assert_eq!(view(&on.guest, 8..10), words(&blob));
    assert_eq!(take(&asked), [0; 0]);
    let counters = on.resolver().counters();
    assert_eq!((counters.dropped_writes, counters.told), (1, 0));
}

#[test]
fn policy_that_says_what_is_found_is_not_asked_about() {
    let test = "policy_that_says_what_is_found_is_not_asked_about";
    let zero = options(Fixed).holes(HolePolicy::Zero);
    let Some((on, asked)) = open_asked(test, 1, zero, |_, _| true) else {
        return;
    };
    assert_eq!(on.guest.write_u64(0, at(5), 7).unwrap(), Access::Done(()));
    assert_eq!(on.guest.read_u64(0, at(5)).unwrap(), Access::Done(0));
    assert_eq!(take(&asked), [0; 0]);
    drop(on);
    let stop = options(Fixed).holes(HolePolicy::Stop);
    let Some((on, asked)) = open_asked(test, 1, stop, |_, _| true) else {
        return;
    };
    let stopped = on.guest.write_u64(0, at(5), 7).unwrap();
    assert!(matches!(stopped, Access::Stopped(_)), "{stopped:?}");
    assert_eq!(take(&asked), [0; 0]);
}

#[test]
fn touch_that_comes_as_one_of_a_device_is_not_asked_about() {
    let test = "touch_that_comes_as_one_of_a_device_is_not_asked_about";
    for (backend, page) in [(Memslot, 5), (Fixed, 3 * SEGMENT_PAGES)] {
        let Some((on, asked)) = open_asked(test, 1, options(backend), |_, _| true) else {
            return;
        };
        let read = on.guest.read_u64(0, at(page)).unwrap();
        assert_eq!(read, Access::Done(ONES), "{backend}");
        assert_eq!(take(&asked), [0; 0], "{backend}");
    }
}

#[test]
fn what_a_file_has_lost_is_asked_about_and_can_be_mapped_again() {
    let test = "what_a_file_has_lost_is_asked_about_and_can_be_mapped_again";
    let Some((on, asked)) = open_asked(test, 1, options(Fixed), map_at) else {
        return;
    };
    let blob = Blob::new(Seal::Unsealed, 8, 2000);
    on.window
        .map(pages(8, 8), &blob.source(), ReadWrite)
        .unwrap();
    assert_eq!(view(&on.guest, 8..16), words(&blob));
    blob.truncate(4);
    assert_eq!(on.guest.read_u64(0, at(14)).unwrap(), Access::Done(1014));
    assert_eq!(on.guest.write_u64(0, at(12), 3).unwrap(), Access::Done(()));
    assert_eq!(on.guest.read_u64(0, at(12)).unwrap(), Access::Done(3));
    assert_eq!(on.guest.read_u64(0, at(11)).unwrap(), Access::Done(2003));
    assert_eq!(take(&asked), [at(14), at(12)]);
    let counters = on.resolver().counters();
    assert_eq!(
        (counters.lost, counters.told, counters.holes, counters.steps),
        (1, 2, 0, 0),
        "{counters:?}"
    );
}

#[test]
fn mapping_made_by_a_vmm_that_says_no_is_found_all_the_same() {
    let test = "mapping_made_by_a_vmm_that_says_no_is_found_all_the_same";
    let answer = |window: &Window, address| !map_at(window, address);
    let Some((on, asked)) = open_asked(test, 1, options(Fixed), answer) else {
        return;
    };
    assert_eq!(on.guest.write_u64(0, at(5), 7).unwrap(), Access::Done(()));
    assert_eq!(on.guest.read_u64(0, at(5)).unwrap(), Access::Done(7));
    assert_eq!(take(&asked), [at(5)]);
    assert_eq!(on.resolver().counters().holes, 0);
}

/// A page that stood in while the VMM was asked would have shown its ones to the other vCPU.
#[test]
fn vcpu_that_touches_the_same_hole_meanwhile_is_asked_too() {
    let test = "vcpu_that_touches_the_same_hole_meanwhile_is_asked_too";
    let times = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&times);
    let answer = move |window: &Window, address| {
        if counted.fetch_add(1, Ordering::SeqCst) > 0 {
            return map_at(window, address);
        }
        wait_for("the other vCPU's question", || {
            counted.load(Ordering::SeqCst) > 1
        });
        true
    };
    let Some((on, asked)) = open_asked(test, 2, options(Fixed), answer) else {
        return;
    };
    let on = &on;
    std::thread::scope(|threads| {
        let first = threads.spawn(|| on.guest.read_u64(0, at(5)).unwrap());
        wait_for("a question", || times.load(Ordering::SeqCst) > 0);
        assert_eq!(on.guest.read_u64(1, at(5)).unwrap(), Access::Done(1005));
        assert_eq!(first.join().unwrap(), Access::Done(1005));
    });
    assert!(take(&asked).len() >= 2);
    assert_eq!(on.resolver().counters().holes, 0);
}

#[test]
fn touch_whose_address_was_hunted_for_is_asked_about() {
    let test = "touch_whose_address_was_hunted_for_is_asked_about";
    if !std::arch::is_x86_feature_detected!("avx2") {
        return skip(test, "the processor has no AVX2");
    }
    if let Err(error) = SigbusHook::install() {
        let kernel = "this kernel cannot poison memory (Linux 6.6 can)";
        return skip(test, &format!("{kernel}: {error}"));
    }
    let gather = |on: &Resolved| {
        let range = GpaRange {
            base: at(20),
            len: 3 * PAGE + 8,
        };
        let ran = on.guest.execute(0, range, 0, |a| {
            a.mov(eax, 3 * 4096)?;
            a.vmovd(xmm1, eax)?;
            a.vpcmpeqd(xmm4, xmm4, xmm4)?;
            a.vpgatherdq_3(xmm0, qword_ptr(rsi + xmm1), xmm4)?;
            a.vpextrq(rax, xmm0, 1)?;
            a.vmovq(rcx, xmm0)?;
            a.shl(rax, 32)?;
            a.add(rax, rcx)
        });
        ran.unwrap()
    };
    let Some((on, asked)) = open_asked(test, 1, options(Fixed), map_at) else {
        return;
    };
    let before = areas_of(&on.window);
    assert_eq!(gather(&on), Access::Done((1020 << 32) + 1023));
    let mut told = take(&asked);
    told.sort_unstable();
    assert_eq!(told, [20, 23].map(at));
    let counters = on.resolver().counters();
    assert!(counters.armed >= 2, "{counters:?}");
    assert_eq!((counters.told, counters.holes, counters.stops), (2, 0, 0));
    on.window.unmap(pages(20, 1)).unwrap();
    on.window.unmap(pages(23, 1)).unwrap();
    assert_eq!(areas_of(&on.window), before, "nothing is armed any more");
    drop(on);
    let Some((on, asked)) = open_asked(test, 1, options(Fixed), |_, _| false) else {
        return;
    };
    assert_eq!(gather(&on), Access::Done((ONES << 32).wrapping_add(ONES)));
    let told = take(&asked);
    let mut once = told.clone();
    once.dedup();
    assert!(!told.is_empty() && once == told, "once a touch: {told:?}");
}
