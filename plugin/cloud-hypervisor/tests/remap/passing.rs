//! Owns the tests that what is not a window's passes, above all where the traits have bodies of
//! their own.

use std::sync::Arc;

use hypervisor::{
    ClockData, ClockRestoreMode, InterruptSourceConfig, IoEventAddress, LegacyIrqSourceConfig, Vm,
};
use vm_remap::BackendKind::{Fixed, Memslot};
use vm_remap::Zap;
use vm_remap_cloud_hypervisor::{RemapOptions, RemapVm};
use vmm_sys_util::eventfd::EventFd;

use crate::recorder::Recorder;

#[test]
fn every_call_of_a_vm_passes() {
    let recorder = Recorder::alone();
    let remap = RemapVm::wrap(Arc::clone(&recorder) as _, RemapOptions::new(Fixed)).unwrap();
    let vm: &dyn Vm = remap.as_ref();
    let fd = EventFd::new(0).unwrap();
    let port = IoEventAddress::Pio(8);
    let clock = ClockData::Kvm(kvm_bindings::kvm_clock_data::default());
    vm.set_identity_map_address(0).unwrap();
    vm.set_tss_address(0).unwrap();
    vm.create_irq_chip().unwrap();
    vm.register_irqfd(&fd, 1).unwrap();
    vm.unregister_irqfd(&fd, 1).unwrap();
    vm.register_ioevent(&fd, &port, None).unwrap();
    vm.unregister_ioevent(&fd, &port).unwrap();
    let legacy = LegacyIrqSourceConfig { irqchip: 0, pin: 1 };
    vm.make_routing_entry(1, &InterruptSourceConfig::LegacyIrq(legacy));
    vm.set_gsi_routing(&[]).unwrap();
    vm.enable_split_irq().unwrap();
    vm.get_clock().unwrap();
    vm.set_clock(&clock).unwrap();
    vm.create_passthrough_device().unwrap_err();
    vm.start_dirty_log().unwrap();
    vm.stop_dirty_log().unwrap();
    vm.get_dirty_log(0, 0, 4096).unwrap();
    assert_eq!(
        recorder.names(),
        [
            "set_identity_map_address",
            "set_tss_address",
            "create_irq_chip",
            "register_irqfd",
            "unregister_irqfd",
            "register_ioevent",
            "unregister_ioevent",
            "make_routing_entry",
            "set_gsi_routing",
            "enable_split_irq",
            "get_clock",
            "set_clock",
            "create_passthrough_device",
            "start_dirty_log",
            "stop_dirty_log",
            "get_dirty_log",
        ]
    );
}

#[test]
fn calls_with_bodies_of_their_own_in_the_trait_pass() {
    let recorder = Recorder::alone();
    let remap = RemapVm::wrap(Arc::clone(&recorder) as _, RemapOptions::new(Memslot)).unwrap();
    let vm: &dyn Vm = remap.as_ref();
    let clock = ClockData::Kvm(kvm_bindings::kvm_clock_data::default());
    vm.init().unwrap();
    vm.pause().unwrap();
    vm.resume().unwrap();
    vm.enable_x2apic_api().unwrap();
    vm.restore_clock(&[], &clock, ClockRestoreMode::SameHostResume)
        .unwrap();
    let passed = [
        "init",
        "pause",
        "resume",
        "enable_x2apic_api",
        "restore_clock",
    ];
    assert_eq!(recorder.names(), passed);
}

#[test]
fn of_finds_the_decorator_and_as_any_what_is_inside() {
    let recorder = Recorder::alone();
    let remap = RemapVm::wrap(Arc::clone(&recorder) as _, RemapOptions::new(Fixed)).unwrap();
    let vm: Arc<dyn Vm> = Arc::clone(&remap) as _;
    assert!(std::ptr::eq(
        RemapVm::of(vm.as_ref()).unwrap(),
        remap.as_ref()
    ));
    assert!(RemapVm::of(recorder.as_ref()).is_none());
    assert!(vm.as_any().is::<Recorder>());
}

#[test]
fn precise_zapping_is_not_claimed_without_a_descriptor() {
    let options = RemapOptions::new(Fixed);
    let remap = RemapVm::wrap(Recorder::alone(), options.clone()).unwrap();
    assert_eq!(remap.zap(), Zap::All);
    let remap = RemapVm::wrap(Recorder::alone(), options.vm_descriptor(|_| None)).unwrap();
    assert_eq!(remap.zap(), Zap::All);
    // No VM's: it answers neither question.
    let file = |_: &dyn Vm| Some(std::fs::File::open("/dev/null").ok()?.into());
    let options = RemapOptions::new(Fixed).vm_descriptor(file);
    assert_eq!(
        RemapVm::wrap(Recorder::alone(), options).unwrap().zap(),
        Zap::All
    );
}
