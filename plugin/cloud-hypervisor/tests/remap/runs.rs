//! Owns the tests of how a run of a decorated vCPU ends, over one that ends as the test says.

use std::io::Write;
use std::sync::{Arc, Mutex};

use hypervisor::arch::x86::DescriptorTable;
use hypervisor::{HypervisorCpuError, Vcpu, Vm, VmExit, VmOps};
use vm_memory::GuestAddress;
use vm_remap::BackendKind::Fixed;
use vm_remap::fault::SigbusHook;
use vm_remap::{PAGE_SIZE, PageRange, Protection, Source};
use vm_remap_cloud_hypervisor::{RemapOptions, RemapVm};

use crate::guest::{READ, WINDOW, WRITE};
use crate::memory::Memory;
use crate::ops::Ops;
use crate::recorder::Recorder;
use crate::script::Ending::{
    Debug, Fault, FaultWithCause, Port, Read, Reset, Shutdown, Signal, Step, Touch,
};
use crate::script::{Ending, Script};

const CODE: u64 = 0x3000;
const TABLE: DescriptorTable = DescriptorTable {
    base: 0x1000,
    limit: 0xfff,
};

struct Bench {
    script: Arc<Script>,
    vm: Arc<RemapVm>,
    vcpu: Box<dyn Vcpu>,
    _ops: Arc<Ops>,
}

/// A vCPU at `code`, whose rsi leads into a hole.
fn bench(code: &[u8], windows: bool) -> Bench {
    let recorder = Recorder::alone();
    let script = Arc::clone(&recorder.script);
    let vm = RemapVm::wrap(recorder, RemapOptions::new(Fixed)).unwrap();
    if windows {
        let base = vm_remap::GuestAddress(WINDOW);
        let window = vm.open_window(base, 16 << 20).unwrap();
        // A hole is one where a memslot lies.
        let page = PageRange::new(0, PAGE_SIZE).unwrap();
        window
            .map(page, &Source::anonymous(), Protection::ReadWrite)
            .unwrap();
    }
    let ram = Arc::new(Memory::shared(16));
    ram.store(CODE, code);
    let ops = Arc::new(Ops {
        ram,
        rung: Mutex::default(),
    });
    let own = Arc::clone(&ops) as Arc<dyn VmOps>;
    let vcpu = vm.create_vcpu(0, Some(own), None).unwrap();
    let mut regs = script.regs.lock().unwrap();
    (regs.rip, regs.rsi) = (CODE, WINDOW + 0x1000);
    drop(regs);
    let mut special = script.special.lock().unwrap();
    special.efer = 1 << 10;
    special.cs.l = 1;
    special.idt = TABLE;
    drop(special);
    Bench {
        script,
        vm,
        vcpu,
        _ops: ops,
    }
}

impl Bench {
    /// Runs once, and asserts that all of `endings` were used up.
    fn run(&mut self, endings: &[Ending]) -> Result<VmExit, HypervisorCpuError> {
        self.script.endings.lock().unwrap().extend(endings);
        let ended = self.vcpu.run();
        assert!(self.script.endings.lock().unwrap().is_empty());
        assert_eq!(self.script.special.lock().unwrap().idt, TABLE);
        ended
    }
}

#[test]
fn exits_of_the_vmm_pass() {
    for windows in [false, true] {
        let mut bench = bench(READ, windows);
        assert!(matches!(bench.run(&[Debug]), Ok(VmExit::Debug)));
        assert!(matches!(bench.run(&[Reset]), Ok(VmExit::Reset)));
        assert!(matches!(bench.run(&[Shutdown]), Ok(VmExit::Shutdown)));
        assert!(matches!(bench.run(&[Signal]), Ok(VmExit::Ignore)));
        assert!(matches!(bench.run(&[Port]), Ok(VmExit::Ignore)));
        assert!(matches!(bench.run(&[Read(0)]), Ok(VmExit::Ignore)));
        assert_eq!(*bench.script.read.lock().unwrap(), [0x55; 4]);
        assert!(bench.script.names().is_empty());
    }
}

#[test]
fn fault_is_told_by_its_text_and_by_its_cause() {
    for fault in [Fault, FaultWithCause] {
        let mut bench = bench(READ, true);
        assert!(matches!(bench.run(&[fault, Port]), Ok(VmExit::Ignore)));
        assert_eq!(bench.vm.resolver().counters().holes, 1);
    }
}

#[test]
fn step_puts_the_vmms_debugging_back() {
    let mut bench = bench(WRITE, true);
    let breakpoint = [GuestAddress(0x1234)];
    bench.vcpu.set_guest_debug(&breakpoint, false).unwrap();
    assert!(matches!(
        bench.run(&[Fault, Step, Port]),
        Ok(VmExit::Ignore)
    ));
    let wanted = ["debug 1 false", "debug 0 true", "debug 1 false"];
    assert_eq!(bench.script.names(), wanted);
    assert_eq!(bench.vm.resolver().counters().steps, 1);
}

/// `vpgatherdd xmm1, [rsi + xmm2 * 4], xmm3`: its addresses are in a register that nobody asks for.
const GATHER: &[u8] = &[0xc4, 0xe2, 0x61, 0x90, 0x0c, 0x96];

#[test]
fn address_that_cannot_be_computed_is_learnt_from_the_touch() {
    if let Err(error) = SigbusHook::install() {
        let test = "address_that_cannot_be_computed_is_learnt_from_the_touch";
        writeln!(
            std::io::stderr(),
            "SKIP {test}: no page can be poisoned here: {error}"
        )
        .unwrap();
        return;
    }
    let mut bench = bench(GATHER, true);
    let window = bench.vm.windows().remove(0);
    let first = window.lookup(window.base()).unwrap().host_address;
    // Once for a fault that is over by itself, once to arm the holes.
    let touch = Touch(first + 0x5000);
    let ended = bench.run(&[Fault, Fault, touch, Step, Port]);
    assert!(matches!(ended, Ok(VmExit::Ignore)), "{ended:?}");
    let counters = bench.vm.resolver().counters();
    assert_eq!((counters.armed, counters.holes, counters.stops), (1, 1, 0));
}

/// A guest can leave an access half-way that is looked for, and stay away from KVM for good.
#[test]
fn search_for_an_address_does_not_keep_its_window_open() {
    if let Err(error) = SigbusHook::install() {
        let test = "search_for_an_address_does_not_keep_its_window_open";
        writeln!(
            std::io::stderr(),
            "SKIP {test}: no page can be poisoned here: {error}"
        )
        .unwrap();
        return;
    }
    let mut bench = bench(GATHER, true);
    let ended = bench.run(&[Fault, Fault, Read(WINDOW + 0x8000)]);
    assert!(matches!(ended, Ok(VmExit::Ignore)), "{ended:?}");
    assert_eq!(bench.vm.resolver().counters().armed, 1);
    let window = bench.vm.windows().remove(0);
    bench.vm.close_window(window).unwrap();
    // What is armed is not there any more.
    bench.run(&[Fault, Port]).unwrap();
    bench.run(&[Fault]).unwrap_err();
}

/// The VMM can pause the vCPU and save its state after any run.
#[test]
fn no_step_outlives_a_run() {
    let step = ["debug 0 true", "debug 0 false"];
    for exit in [Port, Read(0), Shutdown] {
        let mut bench = bench(WRITE, true);
        bench.run(&[Fault, exit]).unwrap();
        assert_eq!(bench.script.names(), step, "{exit:?}");
    }
}

#[test]
fn signal_during_a_step_ends_the_run_with_the_step_undone() {
    let mut bench = bench(WRITE, true);
    bench.vcpu.set_immediate_exit(true);
    bench.script.names();
    // Where a step ends as a shutdown, that is waited for a little.
    let mut endings = bench.script.endings.lock().unwrap();
    endings.extend([Fault, Signal, Signal, Signal, Signal, Signal]);
    drop(endings);
    assert!(matches!(bench.vcpu.run(), Ok(VmExit::Ignore)));
    let names = bench.script.names();
    assert!(names.contains(&"debug 0 false".to_owned()), "{names:?}");
    assert_eq!(names.last().unwrap(), "immediate_exit true");
    assert_eq!(bench.script.special.lock().unwrap().idt, TABLE);
}

#[test]
fn access_that_is_answered_does_not_end_a_step() {
    let mut bench = bench(WRITE, true);
    let hole = Read(WINDOW + 0x8000);
    bench.run(&[Fault, hole, Step, Port]).unwrap();
    assert_eq!(*bench.script.read.lock().unwrap(), [0xff; 4]);
    assert_eq!(bench.script.names(), ["debug 0 true", "debug 0 false"]);
    // Outside of a step it is an exit like any other of a device's.
    assert!(matches!(bench.run(&[hole]), Ok(VmExit::Ignore)));
}

#[test]
fn closing_the_last_window_leaves_faults_to_the_vmm() {
    let mut bench = bench(READ, true);
    bench.run(&[Fault, Port]).unwrap();
    let window = bench.vm.windows().remove(0);
    bench.vm.close_window(window).unwrap();
    bench.run(&[Fault]).unwrap_err();
}

#[test]
fn every_call_of_a_vcpu_passes() {
    let Bench {
        script, mut vcpu, ..
    } = bench(READ, true);
    vcpu.create_standard_regs();
    vcpu.set_regs(&vcpu.get_regs().unwrap()).unwrap();
    vcpu.get_fpu().unwrap_err();
    vcpu.set_cpuid2(&[]).unwrap();
    vcpu.enable_hyperv_synic().unwrap();
    vcpu.get_cpuid2(0).unwrap_err();
    vcpu.get_lapic().unwrap_err();
    assert_eq!(vcpu.get_msrs(&mut Vec::new()).unwrap(), 1);
    assert_eq!(vcpu.set_msrs(&[]).unwrap(), 1);
    vcpu.get_mp_state().unwrap_err();
    assert!(vcpu.state().is_err());
    vcpu.boot_msr_entries();
    vcpu.nmi().unwrap();
    vcpu.hypervisor_type();
    // With bodies of their own in the trait.
    vcpu.notify_guest_clock_paused().unwrap();
    assert_eq!(vcpu.tsc_khz().unwrap(), Some(7));
    vcpu.set_tsc_khz(1).unwrap();
    assert_eq!(vcpu.tsc_offset().unwrap(), Some(7));
    vcpu.set_tsc_offset(1).unwrap();
    assert_eq!(vcpu.get_cpuid_values(0, 0, 0, 0).unwrap(), [7; 4]);
    vcpu.set_immediate_exit(true);
    vcpu.set_guest_debug(&[], true).unwrap();
    let names = script.names();
    assert_eq!(names.len(), 22, "{names:?}");
    assert_eq!(names.last().unwrap(), "debug 0 true");
}
