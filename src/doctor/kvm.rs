//! Owns the questions put to `/dev/kvm`. Never judges the answers and never
//! registers memory: the one VM it creates is dropped at once.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use kvm_bindings::{
    KVM_API_VERSION, KVM_CAP_DISABLE_QUIRKS2, KVM_CAP_MEMORY_FAULT_INFO, KVM_CAP_NR_MEMSLOTS,
    KVM_CAP_PRE_FAULT_MEMORY, KVM_CAP_SYNC_MMU, KVM_CAP_USER_MEMORY,
};
use kvm_ioctls::{Error, Kvm, VmFd};

/// How many times an interrupted creation of a VM is tried again.
const ATTEMPTS: usize = 16;

/// What came of opening the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KvmState {
    /// It could not be opened; the system's error number.
    Closed(i32),
    /// It answered.
    Open(KvmFacts),
}

/// KVM's answers, as it gave them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct KvmFacts {
    /// `KVM_GET_API_VERSION`; negative where the device is not KVM's.
    pub(super) api_version: i32,
    /// Why no VM could be created (error number); `None` where one could.
    pub(super) vm_error: Option<i32>,
    /// `KVM_CAP_USER_MEMORY`.
    pub(super) user_memory: i32,
    /// `KVM_CAP_SYNC_MMU`.
    pub(super) sync_mmu: i32,
    /// `KVM_CAP_NR_MEMSLOTS`.
    pub(super) memslots: i32,
    /// `KVM_CAP_DISABLE_QUIRKS2`: a mask of quirks.
    pub(super) quirks: i32,
    /// `KVM_CAP_MEMORY_FAULT_INFO`.
    pub(super) memory_fault_info: i32,
    /// `KVM_CAP_PRE_FAULT_MEMORY`.
    pub(super) pre_fault_memory: i32,
}

impl KvmState {
    /// Opens the device at `path` and asks.
    pub(super) fn probe(path: &Path) -> Self {
        let Ok(path) = CString::new(path.as_os_str().as_bytes()) else {
            return Self::Closed(libc::EINVAL);
        };
        match Kvm::new_with_path(path) {
            Ok(kvm) => Self::Open(KvmFacts::ask(&kvm)),
            Err(err) => Self::Closed(err.errno()),
        }
    }
}

impl KvmFacts {
    fn ask(kvm: &Kvm) -> Self {
        let api_version = kvm.get_api_version();
        if u32::try_from(api_version) != Ok(KVM_API_VERSION) {
            // The numbers of all other calls mean nothing to this device.
            return Self {
                api_version,
                ..Self::default()
            };
        }
        // A VM's own answer is the exact one where the two differ.
        let (vm, vm_error) = match create_vm(kvm) {
            Ok(vm) => (Some(vm), None),
            Err(err) => (None, Some(err.errno())),
        };
        let check = |capability: u32| match &vm {
            Some(vm) => vm.check_extension_raw(capability.into()),
            None => kvm.check_extension_raw(capability.into()),
        };
        Self {
            api_version,
            vm_error,
            user_memory: check(KVM_CAP_USER_MEMORY),
            sync_mmu: check(KVM_CAP_SYNC_MMU),
            memslots: check(KVM_CAP_NR_MEMSLOTS),
            quirks: check(KVM_CAP_DISABLE_QUIRKS2),
            memory_fault_info: check(KVM_CAP_MEMORY_FAULT_INFO),
            pre_fault_memory: check(KVM_CAP_PRE_FAULT_MEMORY),
        }
    }
}

/// A signal may interrupt the call; nothing has happened then.
fn create_vm(kvm: &Kvm) -> Result<VmFd, Error> {
    let mut result = kvm.create_vm();
    for _ in 1..ATTEMPTS {
        match &result {
            Err(err) if err.errno() == libc::EINTR => result = kvm.create_vm(),
            _ => break,
        }
    }
    result
}
