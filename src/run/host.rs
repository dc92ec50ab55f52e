//! Owns the question whether this host can run a stock kernel, and the opening of KVM. Never
//! changes anything on the host.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use kvm_ioctls::{Cap, Kvm};

use crate::guest::GuestError;

/// What the machine is made of.
const NEEDED: [(Cap, &str); 7] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SyncMmu, "KVM_CAP_SYNC_MMU"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// Opens KVM, if it can run a stock kernel for `cpus` CPUs.
///
/// # Errors
/// There is no KVM, or one that cannot; the text says what to do.
pub(super) fn open(cpus: u8) -> Result<Kvm> {
    refuse_pvm(Path::new("/"))?;
    let kvm = Kvm::new().map_err(|error| GuestError::open_kvm(error.errno()))?;
    for (cap, name) in NEEDED {
        ensure!(
            kvm.check_extension(cap),
            "cannot run a guest on this host's KVM: it lacks {name}; `vm-remap doctor` says which \
             KVM it is"
        );
    }
    let most = kvm.get_max_vcpus();
    // A larger number would need other interrupt controllers.
    ensure!(
        cpus > 0 && usize::from(cpus) <= most && cpus < 255,
        "cannot give the guest {cpus} CPUs: this host's KVM takes 1 to {}",
        most.min(254)
    );
    Ok(kvm)
}

/// KVM's PVM flavour runs guest user code natively, and guest kernel code instruction by
/// instruction: a stock kernel seems to hang. It drives the machine if its module is there and the
/// CPU shows no virtualization: one that is part of the kernel image is listed everywhere, and two
/// modules cannot drive KVM at once.
fn refuse_pvm(root: &Path) -> Result<()> {
    if !root.join("sys/module/kvm_pvm").exists() {
        return Ok(());
    }
    let loaded = root.join("sys/module/kvm_pvm/initstate").exists();
    let cpus = std::fs::read_to_string(root.join("proc/cpuinfo"))
        .context("cannot read /proc/cpuinfo: mount /proc")?;
    let mut words = cpus.split_ascii_whitespace();
    let virtualization = words.any(|word| matches!(word, "vmx" | "svm"));
    if loaded || !virtualization {
        bail!(
            "cannot run a stock kernel on this host: its KVM is the PVM flavour (kvm_pvm), which \
             emulates guest kernel code instruction by instruction; use a host whose CPU has VMX \
             or SVM, or the lab (docs/run.md has the command)"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host with this module and these CPU flags.
    fn host(module: &str, loaded: bool, flags: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("sys/module").join(module);
        std::fs::create_dir_all(&folder).unwrap();
        if loaded {
            std::fs::write(folder.join("initstate"), "live\n").unwrap();
        }
        std::fs::create_dir(root.path().join("proc")).unwrap();
        let text = format!("processor : 0\nflags\t\t: fpu {flags} hypervisor\n");
        std::fs::write(root.path().join("proc/cpuinfo"), text).unwrap();
        root
    }

    #[test]
    fn the_pvm_flavour_is_refused_where_it_drives_the_machine() {
        for (loaded, flags) in [(true, "svm"), (true, ""), (false, "")] {
            let host = host("kvm_pvm", loaded, flags);
            let error = refuse_pvm(host.path()).unwrap_err().to_string();
            assert!(error.starts_with("cannot run a stock kernel on this host: its KVM"));
        }
    }

    #[test]
    fn a_module_that_is_only_listed_is_no_reason() {
        refuse_pvm(host("kvm_pvm", false, "vmx").path()).unwrap();
        refuse_pvm(host("kvm_amd", true, "svm").path()).unwrap();
    }
}
