//! Owns the tests of the resolver step by step, with a vCPU that only the test moves: what stands
//! in during a step, and that no change of the window leaves it there.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vm_remap::Protection::{ReadOnly, ReadWrite};
use vm_remap::fault::{
    After, Event, Exit, FaultResolver, FaultedVcpu, Registers, Report, StepEnd, VcpuFaults,
};
use vm_remap::{
    BackendKind, Batch, GuestAddress, HolePolicy, Obstacle, ReadOnlyWrites, Source, Window,
    WindowOptions,
};

use crate::support::*;

/// `mov rax, [rsi]` and `mov [rsi], rax`.
const LOAD: [u8; 3] = [0x48, 0x8b, 0x06];
const STORE: [u8; 3] = [0x48, 0x89, 0x06];
const CODE: u64 = 0x1000;

/// A vCPU that stands before one instruction, at an address of its own choice.
#[derive(Debug, Default)]
struct Vcpu {
    at: u64,
    done: u64,
    stepping: bool,
    lost: bool,
    /// Where the guest's page tables end, if they do.
    end: u64,
}

impl FaultedVcpu for Vcpu {
    type Stepping = ();

    fn registers(&self) -> io::Result<Registers> {
        let mut registers = Registers {
            rip: CODE + self.done,
            ..Registers::default()
        };
        registers.general[6] = self.at;
        Ok(registers)
    }

    fn translate(&self, linear: u64) -> Option<GuestAddress> {
        let known = !self.lost && (self.end == 0 || linear < self.end);
        known.then_some(GuestAddress(linear))
    }

    fn begin_step(&mut self) -> io::Result<((), StepEnd)> {
        assert!(!self.stepping);
        self.stepping = true;
        Ok(((), StepEnd::Debug))
    }

    fn end_step(&mut self, (): ()) -> io::Result<()> {
        assert!(self.stepping);
        self.stepping = false;
        Ok(())
    }
}

struct Stage {
    window: Arc<Window>,
    resolver: Arc<FaultResolver>,
    faults: VcpuFaults<Vcpu>,
    vcpu: Vcpu,
    /// Host address of the window's first byte.
    host: u64,
}

/// A window of 64 pages with page 0 mapped, and a vCPU before `code`, with rsi at page `page`.
fn stage_with(options: WindowOptions, code: [u8; 3], page: u64) -> Stage {
    let Bench { window, recorder } = open_with(options);
    window
        .map(pages(0, 1), &Source::anonymous(), ReadWrite)
        .unwrap();
    let host = recorder.live().first().unwrap().host_address();
    let window = Arc::new(window);
    let resolver = FaultResolver::new(Arc::new(move |at: GuestAddress, into: &mut [u8]| {
        let whole = code.into_iter().chain([0x90; 15]);
        for (byte, of_code) in into.iter_mut().zip(whole) {
            *byte = of_code;
        }
        at.0 & !0xfff == CODE
    }));
    resolver.add(&window);
    let faults = resolver.vcpu();
    let vcpu = Vcpu {
        at: BASE.0 + page * PAGE,
        ..Vcpu::default()
    };
    Stage {
        window,
        resolver,
        faults,
        vcpu,
        host,
    }
}

fn options() -> WindowOptions {
    WindowOptions::new(BASE, 64 * PAGE).segment_size(64 * PAGE)
}

fn stage(code: [u8; 3], page: u64) -> Stage {
    stage_with(options(), code, page)
}

impl Stage {
    fn exit(&mut self, exit: Exit<'_>) -> After {
        self.faults.after_run(&mut self.vcpu, exit)
    }

    fn fault(&mut self) -> After {
        self.exit(Exit::Fault(None))
    }

    /// The first byte of a page of the arena, whatever its protection.
    fn byte(&self, page: u64) -> u8 {
        let mut byte = [0];
        let memory = File::open("/proc/self/mem").unwrap();
        memory
            .read_exact_at(&mut byte, self.host + page * PAGE)
            .unwrap();
        byte[0]
    }

    fn protection(&self, page: u64) -> String {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let at = self.host + page * PAGE;
        let hex = |digits| u64::from_str_radix(digits, 16).unwrap();
        let line = maps.lines().find(|line| {
            let (from, rest) = line.split_once('-').unwrap();
            let (to, _) = rest.split_once(' ').unwrap();
            (hex(from)..hex(to)).contains(&at)
        });
        line.unwrap().split(' ').nth(1).unwrap().to_owned()
    }

    fn report(&mut self) -> Report {
        match self.fault() {
            After::Stop(report) => report,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn read_of_a_hole_finds_ones_until_the_next_exit() {
    let mut stage = stage(LOAD, 5);
    assert_eq!(stage.fault(), After::RunAgain);
    assert!(!stage.vcpu.stepping);
    assert_eq!(stage.byte(5), 0xff);
    assert_eq!(stage.protection(5), "r--p");
    // A write of the same vCPU, or of another, does not stay there.
    stage.vcpu.at += PAGE;
    assert_eq!(stage.fault(), After::RunAgain);
    assert_eq!((stage.byte(5), stage.byte(6)), (0, 0xff));
    assert_eq!(stage.exit(Exit::Other), After::Yours);
    assert_eq!(stage.protection(6), "---p");
}

#[test]
fn reader_beside_a_step_takes_no_part_in_what_it_writes() {
    let mut stage = stage(STORE, 5);
    assert_eq!(stage.fault(), After::RunAgain);
    assert_eq!(stage.protection(5), "rw-p");
    let code = |_: GuestAddress, into: &mut [u8]| {
        into.fill(0x90);
        into.iter_mut().zip(LOAD).for_each(|(byte, of)| *byte = of);
        true
    };
    let readers = FaultResolver::new(Arc::new(code));
    readers.add(&stage.window);
    let mut reader = readers.vcpu();
    let mut vcpu = Vcpu {
        at: stage.vcpu.at,
        ..Vcpu::default()
    };
    assert_eq!(
        reader.after_run(&mut vcpu, Exit::Fault(None)),
        After::RunAgain
    );
    stage.vcpu.done = 3;
    assert_eq!(stage.exit(Exit::Debug), After::RunAgain);
    assert_eq!(stage.protection(5), "---p");
    // And a writer takes the page from readers.
    assert_eq!(
        reader.after_run(&mut vcpu, Exit::Fault(None)),
        After::RunAgain
    );
    assert_eq!(stage.protection(5), "r--p");
    assert_eq!(stage.fault(), After::RunAgain);
    assert_eq!(stage.protection(5), "rw-p");
    drop(reader);
    assert_eq!(stage.protection(5), "rw-p");
}

#[test]
fn poll_of_a_hole_goes_on_and_a_page_that_does_not_help_is_given_up() {
    let mut stage = stage(LOAD, 5);
    // With another exit in between, it is a guest that polls.
    for _ in 0..500 {
        assert_eq!(stage.fault(), After::RunAgain);
        assert_eq!(stage.exit(Exit::Other), After::Yours);
    }
    let stop = (0..500).find_map(|_| match stage.fault() {
        After::Stop(report) => Some(report),
        _ => None,
    });
    let report = stop.unwrap();
    assert_eq!(report.obstacle, Obstacle::Unknown);
    assert_eq!(stage.protection(5), "---p");
}

#[test]
fn instruction_with_a_page_fault_of_the_guests_own_is_not_stepped() {
    let mut stage = stage(STORE, 5);
    // Its last bytes lie in a page that the guest's tables do not have.
    stage.vcpu.at += PAGE - 4;
    stage.vcpu.end = stage.vcpu.at + 4;
    assert_eq!(stage.fault(), After::RunAgain);
    assert!(!stage.vcpu.stepping);
    assert_eq!(stage.protection(5), "rw-p");
    assert_eq!(stage.exit(Exit::Other), After::Yours);
    assert_eq!(stage.protection(5), "---p");
}

#[test]
fn step_on_a_hole_finds_ones_and_leaves_a_hole() {
    let mut stage = stage(STORE, 5);
    assert_eq!(stage.fault(), After::RunAgain);
    assert!(stage.vcpu.stepping);
    assert_eq!((stage.byte(5), stage.byte(6)), (0xff, 0));
    stage.vcpu.done = 3;
    assert_eq!(stage.exit(Exit::Debug), After::RunAgain);
    assert!(!stage.vcpu.stepping);
    assert_eq!((stage.byte(5), stage.protection(5).as_str()), (0, "---p"));
    // A debug exit that no step of ours made is the VMM's.
    assert_eq!(stage.exit(Exit::Debug), After::Yours);
}

#[test]
fn exit_of_another_kind_ends_a_step() {
    for exit in [Exit::Other, Exit::Shutdown] {
        let mut stage = stage(STORE, 5);
        assert_eq!(stage.fault(), After::RunAgain);
        assert_eq!(stage.exit(exit), After::Yours);
        assert!(!stage.vcpu.stepping);
        assert_eq!(stage.protection(5), "---p");
    }
}

/// A change, and what the page that stood in is then: a mapping's first byte, or a hole.
type Change<'a> = (&'a str, &'a dyn Fn(&Window), Option<u8>);

#[test]
fn change_of_the_window_ends_what_stands_in_its_way_and_no_more() {
    let blob = memfd(64, 1);
    let changes: [Change<'_>; 5] = [
        (
            "map",
            &|w| w.map(pages(4, 4), &source(&blob), ReadWrite).unwrap(),
            Some(2),
        ),
        (
            "replace",
            &|w| w.replace(pages(5, 1), &source(&blob), ReadOnly).unwrap(),
            Some(1),
        ),
        ("unmap", &|w| w.unmap(pages(0, 64)).unwrap(), None),
        (
            "batch",
            &|w| {
                let batch = Batch::new().unmap(pages(0, 1)).unmap(pages(5, 1));
                w.commit(&batch).unwrap();
            },
            None,
        ),
        (
            "failure",
            &|w| {
                let batch =
                    Batch::new()
                        .unmap(pages(5, 1))
                        .map(pages(0, 1), &source(&blob), ReadOnly);
                w.commit(&batch).unwrap_err();
            },
            None,
        ),
    ];
    for (name, change, byte) in changes {
        let mut stage = stage(STORE, 5);
        assert_eq!(stage.fault(), After::RunAgain);
        stage
            .window
            .map(pages(40, 1), &source(&blob), ReadWrite)
            .unwrap();
        assert_eq!(stage.byte(5), 0xff, "{name}: a change elsewhere");
        change(&stage.window);
        assert_eq!(stage.byte(5), byte.unwrap_or(0), "{name}");
        assert_eq!(stage.protection(5) == "---p", byte.is_none(), "{name}");
        // Whatever the vCPU does now, it puts nothing back.
        stage.vcpu.done = 3;
        assert_eq!(stage.exit(Exit::Debug), After::RunAgain, "{name}");
        assert_eq!(stage.byte(5), byte.unwrap_or(0), "{name}");
        assert_eq!(stage.protection(5) == "---p", byte.is_none(), "{name}");
    }
}

#[test]
fn two_vcpus_share_what_stands_in() {
    let mut stage = stage(LOAD, 5);
    let mut other = (
        stage.resolver.vcpu(),
        Vcpu {
            at: stage.vcpu.at,
            ..Vcpu::default()
        },
    );
    assert_eq!(stage.fault(), After::RunAgain);
    assert_eq!(
        other.0.after_run(&mut other.1, Exit::Fault(None)),
        After::RunAgain
    );
    assert_eq!(stage.exit(Exit::Other), After::Yours);
    assert_eq!(stage.byte(5), 0xff, "the other one is not done");
    drop(other);
    assert_eq!(stage.byte(5), 0);
}

#[test]
fn write_to_a_read_only_mapping_finds_a_copy_and_leaves_the_mapping() {
    let blob = memfd(8, 1);
    let mut stage = stage(STORE, 5);
    stage
        .window
        .map(pages(3, 8), &source(&blob), ReadOnly)
        .unwrap();
    assert_eq!(stage.fault(), After::RunAgain);
    assert_eq!((stage.byte(5), stage.protection(5).as_str()), (3, "rw-p"));
    stage.vcpu.done = 3;
    assert_eq!(stage.exit(Exit::Debug), After::RunAgain);
    assert_eq!((stage.byte(5), stage.protection(5).as_str()), (3, "r--s"));
    // A mapping around it that goes takes the copy along.
    stage.vcpu.done = 0;
    assert_eq!(stage.fault(), After::RunAgain);
    stage.window.unmap(pages(8, 1)).unwrap();
    assert_eq!(stage.protection(5), "r--s");
}

#[test]
fn fault_where_memory_is_now_is_run_again_and_given_up_in_the_end() {
    let mut stage = stage(LOAD, 5);
    let blob = memfd(1, 7);
    stage
        .window
        .map(pages(5, 1), &source(&blob).label(3), ReadWrite)
        .unwrap();
    assert_eq!(stage.fault(), After::RunAgain);
    let stop = (0..1000).find_map(|_| match stage.fault() {
        After::Stop(report) => Some(report),
        _ => None,
    });
    let report = stop.unwrap();
    assert_eq!(
        report.obstacle,
        Obstacle::Mapping {
            label: 3,
            errno: libc::EFAULT
        }
    );
    assert_eq!(report.address, Some(GuestAddress(BASE.0 + 5 * PAGE)));
    // A vCPU that gets on, and a window that changes, are no such case.
    for round in 0..1000 {
        stage.vcpu.done = round % 2;
        assert_eq!(stage.fault(), After::RunAgain);
    }
    for _ in 0..500 {
        stage
            .window
            .replace(pages(5, 1), &source(&blob), ReadWrite)
            .unwrap();
        assert_eq!(stage.fault(), After::RunAgain);
    }
}

#[test]
fn address_that_nobody_knows_is_given_up() {
    let mut stage = stage(LOAD, 5);
    stage.vcpu.lost = true;
    let stop = (0..100).find_map(|_| match stage.fault() {
        After::Stop(report) => Some(report),
        _ => None,
    });
    let report = stop.unwrap();
    assert_eq!((report.obstacle, report.address), (Obstacle::Unknown, None));
    // Told by the hypervisor, or by a signal, it is known all the same.
    let at = GuestAddress(BASE.0 + 9 * PAGE);
    assert_eq!(stage.exit(Exit::Fault(Some(at))), After::RunAgain);
    assert_eq!(stage.byte(9), 0xff);
    assert_eq!(stage.exit(Exit::Other), After::Yours);
    let host = stage.host + 10 * PAGE;
    assert_eq!(stage.exit(Exit::HostFault(host)), After::RunAgain);
    assert_eq!(stage.byte(10), 0xff);
    assert_eq!(
        stage.exit(Exit::HostFault(0x1000)),
        After::Yours,
        "not a window's"
    );
    assert_eq!(stage.byte(10), 0);
}

#[test]
fn policies_refuse_with_a_report() {
    let mut stopped = stage_with(options().holes(HolePolicy::Stop), STORE, 5);
    let report = stopped.report();
    assert_eq!((report.obstacle, report.write), (Obstacle::Hole, true));
    let strict = options().read_only_writes(ReadOnlyWrites::Report);
    let mut stage = stage_with(strict, STORE, 5);
    let blob = memfd(1, 1);
    stage
        .window
        .map(pages(5, 1), &source(&blob).label(9), ReadOnly)
        .unwrap();
    assert_eq!(stage.report().obstacle, Obstacle::ReadOnly { label: 9 });
    let mut byte = [0];
    let at = GuestAddress(BASE.0 + 5 * PAGE);
    assert_eq!(stage.exit(Exit::MmioRead(at, &mut byte)), After::RunAgain);
    assert_eq!(byte, [1]);
    let After::Stop(report) = stage.exit(Exit::MmioWrite(at, &[2])) else {
        panic!("not stopped");
    };
    assert_eq!(report.obstacle, Obstacle::ReadOnly { label: 9 });
}

#[test]
fn emulated_access_gets_what_lies_there() {
    for backend in BackendKind::ALL {
        let mut stage = stage_with(options().backend(backend), LOAD, 5);
        let at = |page: u64| GuestAddress(BASE.0 + page * PAGE + 8);
        let blob = memfd(2, 7);
        stage
            .window
            .map(pages(3, 1), &source(&blob), ReadWrite)
            .unwrap();
        stage
            .window
            .map(pages(4, 2), &source(&blob), ReadOnly)
            .unwrap();
        let read = |stage: &mut Stage, page| {
            let mut bytes = [1; 4];
            let after = stage.exit(Exit::MmioRead(at(page), &mut bytes));
            (after, bytes)
        };
        assert_eq!(read(&mut stage, 9), (After::RunAgain, [0xff; 4]), "a hole");
        assert_eq!(read(&mut stage, 3), (After::RunAgain, [7; 4]));
        assert_eq!(stage.exit(Exit::MmioWrite(at(9), &[5; 4])), After::RunAgain);
        assert_eq!(stage.exit(Exit::MmioWrite(at(3), &[5; 4])), After::RunAgain);
        assert_eq!(
            read(&mut stage, 4).1,
            [5; 4],
            "written through the other mapping"
        );
        assert_eq!(stage.exit(Exit::MmioWrite(at(4), &[6; 4])), After::RunAgain);
        assert_eq!(read(&mut stage, 3).1, [5; 4], "dropped");
        rustix::fs::ftruncate(&blob, PAGE).unwrap();
        assert_eq!(read(&mut stage, 5), (After::RunAgain, [0xff; 4]), "lost");
        let elsewhere = GuestAddress(0x10);
        assert_eq!(
            stage.exit(Exit::MmioRead(elsewhere, &mut [0])),
            After::Yours
        );
        let counters = stage.resolver.counters();
        assert_eq!(
            (
                counters.mmio,
                counters.holes,
                counters.dropped_writes,
                counters.lost
            ),
            (8, 3, 1, 1),
            "{backend} {counters:?}"
        );
    }
    let mut zero = stage_with(options().holes(HolePolicy::Zero), LOAD, 5);
    let mut bytes = [1; 8];
    let at = GuestAddress(BASE.0 + 5 * PAGE);
    assert_eq!(zero.exit(Exit::MmioRead(at, &mut bytes)), After::RunAgain);
    assert_eq!(bytes, [0; 8]);
}

#[test]
fn lost_pages_are_told_once_by_whoever_finds_them() {
    let blob = memfd(16, 1);
    let mut stage = stage(LOAD, 20);
    stage
        .window
        .map(pages(10, 16), &source(&blob).label(4), ReadWrite)
        .unwrap();
    rustix::fs::ftruncate(&blob, 3 * PAGE).unwrap();
    let mut others: Vec<_> = (0..4)
        .map(|n| {
            (
                stage.resolver.vcpu(),
                Vcpu {
                    at: BASE.0 + (20 + n) * PAGE,
                    ..Vcpu::default()
                },
            )
        })
        .collect();
    std::thread::scope(|scope| {
        for (faults, vcpu) in &mut others {
            scope.spawn(|| {
                for _ in 0..4 {
                    assert_eq!(faults.after_run(vcpu, Exit::Fault(None)), After::RunAgain);
                }
            });
        }
    });
    assert_eq!(stage.fault(), After::RunAgain);
    let lost = stage
        .resolver
        .events()
        .into_iter()
        .filter(|e| matches!(e, Event::Lost(_)));
    assert_eq!(lost.count(), 1);
    let left: Vec<_> = stage
        .window
        .mappings()
        .iter()
        .map(vm_remap::Mapping::range)
        .collect();
    assert_eq!(left, [pages(0, 1), pages(10, 3)]);
}

#[test]
fn window_that_is_closed_is_nobodys() {
    let mut stage = stage(LOAD, 5);
    assert_eq!(stage.fault(), After::RunAgain);
    let gone = |exit| exit == After::Yours;
    assert!(gone(stage.exit(Exit::Other)));
    let window = Arc::into_inner(std::mem::replace(
        &mut stage.window,
        Arc::new(open_with(options()).window),
    ));
    window.unwrap().close().unwrap();
    let at = GuestAddress(BASE.0 + 5 * PAGE);
    assert_eq!(stage.exit(Exit::MmioRead(at, &mut [0; 8])), After::Yours);
}

#[test]
fn window_of_which_a_vcpu_has_a_page_is_not_kept_open() {
    let mut stage = stage(LOAD, 5);
    assert_eq!(stage.fault(), After::RunAgain);
    assert_eq!(stage.byte(5), 0xff);
    // The vCPU may never leave the guest again.
    let window = std::mem::replace(&mut stage.window, Arc::new(open_with(options()).window));
    let window = Arc::into_inner(window).expect("the vCPU holds it");
    window.close().unwrap();
    assert_eq!(stage.exit(Exit::Other), After::Yours);
}

#[test]
fn emulated_access_that_stops_the_guest_ends_its_step() {
    for write in [false, true] {
        let blob = memfd(1, 1);
        let mut stage = stage_with(options().holes(HolePolicy::Stop), STORE, 5);
        stage
            .window
            .map(pages(5, 1), &source(&blob), ReadOnly)
            .unwrap();
        assert_eq!(stage.fault(), After::RunAgain);
        assert!(stage.vcpu.stepping);
        let hole = GuestAddress(BASE.0 + 9 * PAGE);
        let after = if write {
            stage.exit(Exit::MmioWrite(hole, &[1]))
        } else {
            stage.exit(Exit::MmioRead(hole, &mut [0]))
        };
        assert!(matches!(after, After::Stop(_)), "{after:?}");
        assert!(!stage.vcpu.stepping);
        assert_eq!(stage.protection(5), "r--s");
    }
}

#[test]
fn handler_that_runs_in_place_of_a_step_may_touch_what_it_likes() {
    let mut stage = stage(STORE, 5);
    for page in 5..64 {
        stage.vcpu.at = BASE.0 + page * PAGE;
        assert_eq!(stage.fault(), After::RunAgain, "{page}");
        assert_eq!(stage.protection(page), "rw-p");
        assert_ne!(stage.protection(page - 1), "rw-p", "a step is over");
        // No debug exit: the next instruction faults already.
        stage.vcpu.done += 3;
    }
}
