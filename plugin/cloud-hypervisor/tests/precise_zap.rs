//! Owns the test of precise zapping, which needs the VM's descriptor: the only one that this process
//! has. Nothing else runs in this binary.

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;

use hypervisor::{Hypervisor, HypervisorVmConfig, Vm};
use kvm_bindings::KVM_CAP_DISABLE_QUIRKS2;
use kvm_ioctls::Kvm;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use vm_remap::BackendKind::{Fixed, Memslot};
use vm_remap::{GuestAddress, Zap};
use vm_remap_cloud_hypervisor::{RemapHypervisor, RemapOptions, RemapVm};

/// A duplicate of the VM's descriptor, found among this process's.
fn descriptor(_: &dyn Vm) -> Option<OwnedFd> {
    let own = pidfd_open(getpid(), PidfdFlags::empty()).ok()?;
    let mut found = fs::read_dir("/proc/self/fd").ok()?.filter_map(|entry| {
        let path = entry.ok()?.path();
        let target = fs::read_link(&path).ok()?;
        let number = path.file_name()?.to_str()?.parse().ok()?;
        (target.to_str()? == "anon_inode:kvm-vm").then_some(number)
    });
    pidfd_getfd(own, found.next()?, PidfdGetfdFlags::empty()).ok()
}

#[test]
fn precise_zap_is_on_where_kvm_offers_it_and_the_descriptor_is_lent() {
    let Ok(kvm) = Kvm::new() else {
        let test = "precise_zap_is_on_where_kvm_offers_it_and_the_descriptor_is_lent";
        writeln!(std::io::stderr(), "SKIP {test}: no /dev/kvm here").unwrap();
        return;
    };
    let quirks = kvm.check_extension_raw(KVM_CAP_DISABLE_QUIRKS2.into());
    let offered = match quirks & 0x80 {
        0 => Zap::All,
        _ => Zap::Precise,
    };
    let zap = |options: RemapOptions| {
        let options = options.vm_descriptor(descriptor);
        let hypervisor = RemapHypervisor::wrap(hypervisor::new().unwrap(), options).unwrap();
        let vm = hypervisor.create_vm(HypervisorVmConfig::default()).unwrap();
        let remap = RemapVm::of(vm.as_ref()).unwrap();
        let window = remap.open_window(GuestAddress(1 << 30), 1 << 20).unwrap();
        assert_eq!(window.zap(), remap.zap());
        remap.zap()
    };
    assert_eq!(zap(RemapOptions::new(Fixed)), offered);
    assert_eq!(zap(RemapOptions::new(Memslot)), Zap::All);
    assert_eq!(zap(RemapOptions::new(Memslot).zap(Zap::Precise)), offered);
}
