//! Owns the judgement of KVM's device: is it there, may we open it, which
//! module is behind it, does it work. Never judges memslots.

use std::io;

use super::{About, Finding, about};
use crate::doctor::kvm::{KvmFacts, KvmState};
use crate::doctor::probe::Probe;
use crate::doctor::probe::device::{Module, Node};

const ID: &str = "kvm-device";
/// The module that needs no help from the CPU.
const PVM: &str = "kvm_pvm";
const NO_KVM: &str = "Without /dev/kvm no guest can run, so nothing can be remapped.";

pub(super) fn file(probe: &Probe) -> Finding {
    let node = probe.node.as_ref().map(describe);
    match probe.kvm {
        KvmState::Open(_) => opened(probe, about(ID, node.unwrap_or_else(|| "open".to_owned()))),
        KvmState::Closed(errno) => {
            let why = io::Error::from_raw_os_error(errno);
            let value = match node {
                Some(node) => format!("{node}; cannot open: {why}"),
                None => format!("cannot open: {why}"),
            };
            about(ID, value).bad(NO_KVM, &mend(probe, errno))
        }
    }
}

fn opened(probe: &Probe, finding: About) -> Finding {
    let meaning = "This user may open it, so a VMM of this user runs.";
    let only_root = probe
        .node
        .as_ref()
        .is_some_and(|node| node.uid == 0 && node.mode & 0o066 == 0);
    if only_root {
        finding.note(
            "Only root may open it; a VMM should run as a user of its own.",
            "chgrp kvm /dev/kvm; chmod 660 /dev/kvm; and put the VMM's user into group kvm.",
        )
    } else {
        finding.ok(meaning)
    }
}

fn describe(node: &Node) -> String {
    let group = match &node.group {
        Some(name) => name.clone(),
        None => node.gid.to_string(),
    };
    let kind = if node.is_device { "" } else { "not a device, " };
    format!(
        "{kind}mode {:04o}, owner {}, group {group}",
        node.mode, node.uid
    )
}

/// What to do about a device that does not open.
fn mend(probe: &Probe, errno: i32) -> String {
    match (errno, &probe.node) {
        (libc::EACCES, Some(node)) => permission(probe, node),
        (libc::EACCES, None) => {
            "A directory on the way to /dev/kvm may not be entered: check the mode of /dev.".into()
        }
        (libc::EPERM, _) => "The file's mode allows it and something above it forbids it, most \
             likely a container's device list: pass the device in (--device /dev/kvm), or allow \
             c 10:232 rw (systemd: DeviceAllow=/dev/kvm rw)."
            .into(),
        (libc::ENOENT, _) if probe.registered => "The kernel has KVM and this file system has no \
             file for it: in a container pass it in (--device /dev/kvm); else mknod /dev/kvm c 10 \
             232."
            .into(),
        (libc::ENOENT | libc::ENODEV | libc::ENXIO, _) => load(probe),
        (libc::EMFILE | libc::ENFILE, _) => "Too many files are open: raise ulimit -n.".into(),
        _ => "See what `dmesg | grep -i kvm` says.".into(),
    }
}

fn permission(probe: &Probe, node: &Node) -> String {
    let group = match &node.group {
        Some(name) => name.clone(),
        None => format!("with number {}", node.gid),
    };
    if node.mode & 0o060 != 0o060 {
        return "Its group may not open it. As root: chgrp kvm /dev/kvm; chmod 660 /dev/kvm; then \
                put this user into group kvm (usermod -aG kvm <user>) and log in again."
            .into();
    }
    if probe.user.groups.contains(&node.gid) {
        return "This user is in the right group and is refused all the same: look for an ACL \
                (getfacl /dev/kvm), for SELinux or AppArmor, and for a container's limits."
            .into();
    }
    let user = match probe.user.uid {
        Some(uid) => format!("User {uid}"),
        None => "This user".into(),
    };
    if node.gid == 0 {
        return format!(
            "{user} is not in the device's group, which is root's. As root: chgrp kvm /dev/kvm; \
             then put this user into group kvm (usermod -aG kvm <user>) and log in again."
        );
    }
    format!(
        "{user} is not in group {group}. As root: usermod -aG {} <user>; then log in again. For \
         one try: setfacl -m u:<user>:rw /dev/kvm.",
        node.group.as_deref().unwrap_or("<its name>")
    )
}

/// KVM is not running: why not depends on the CPU.
fn load(probe: &Probe) -> String {
    let Some(cpu) = probe.cpu else {
        return "Load KVM (modprobe kvm_intel or modprobe kvm_amd); dmesg says why it will not."
            .into();
    };
    if let Some(module) = cpu.module() {
        return format!(
            "Load the module: modprobe {module}. Where it will not load, `dmesg | grep -i kvm` \
             says why; often virtualization is off in the firmware."
        );
    }
    if cpu.guest {
        return "This host is itself a guest, and its hypervisor gives it no vmx or svm. Switch \
                nested virtualization on outside (kvm_intel or kvm_amd with nested=1 and CPU model \
                host; in a cloud a machine type that offers it), or use a bare machine."
            .into();
    }
    "The CPU shows neither vmx nor svm: switch virtualization on in the firmware (VT-x, SVM mode)."
        .into()
}

/// Which module serves this host.
pub(super) fn module(probe: &Probe) -> Finding {
    let id = "kvm-module";
    let cpu = probe.cpu.unwrap_or_default();
    // A built-in module is listed whatever the CPU is.
    let serves = |module: &&Module| {
        !module.built_in
            || module.name == PVM
            || probe.cpu.is_none()
            || cpu.module() == Some(module.name.as_str())
    };
    let candidates: Vec<&Module> = probe.vendors.iter().filter(serves).collect();
    let name = match candidates.as_slice() {
        [] => return no_module(probe, about(id, "none found")),
        [only] => only.name.as_str(),
        _ => "",
    };
    let described: Vec<String> = candidates
        .iter()
        .map(|module| describe_module(module))
        .collect();
    let finding = about(id, described.join(" or "));
    match name {
        PVM => finding.note(
            "A KVM that needs no virtualization in the CPU: guest user code runs natively, guest \
             kernel code instruction by instruction. Keep guest work in ring 3 when measuring. \
             `vm-remap run` refuses such a host: a stock kernel would seem to hang.",
            "For `vm-remap run`, take a host with VMX or SVM, or the lab (docs/run.md).",
        ),
        _ if cpu.guest => finding.note(
            "This host is itself a guest, so its guests are nested: each exit costs several.",
            "Measure on a bare machine where figures matter.",
        ),
        _ => finding.ok("It drives the CPU's virtualization."),
    }
}

fn no_module(probe: &Probe, finding: About) -> Finding {
    match probe.kvm {
        KvmState::Open(_) => finding.note(
            "KVM runs, and /sys does not tell which module drives it.",
            "Mount /sys and ask again.",
        ),
        KvmState::Closed(_) => finding.note(
            "No module that fits this CPU is loaded.",
            "See what kvm-device says.",
        ),
    }
}

fn describe_module(module: &Module) -> String {
    let how = if module.built_in {
        "built in"
    } else {
        "loaded"
    };
    format!("{}, {how}", module.name)
}

pub(super) fn speaks_kvm(facts: &KvmFacts) -> bool {
    u32::try_from(facts.api_version) == Ok(kvm_bindings::KVM_API_VERSION)
}

/// The interface's version, and whether a VM can be made.
pub(super) fn interface(facts: &KvmFacts) -> Vec<Finding> {
    if !speaks_kvm(facts) {
        let value = match facts.api_version {
            negative if negative < 0 => "no answer".to_owned(),
            version => version.to_string(),
        };
        return vec![about("kvm-api", value).bad(
            "The file opens and does not speak KVM's interface, version 12.",
            "Make the device anew: rm /dev/kvm; mknod /dev/kvm c 10 232.",
        )];
    }
    let api = about("kvm-api", facts.api_version.to_string())
        .ok("The stable interface; there has been no other since 2007.");
    let vm = match facts.vm_error {
        None => about("kvm-vm", "can be created").ok("The module and the CPU work together."),
        Some(errno) => {
            let why = io::Error::from_raw_os_error(errno);
            about("kvm-vm", format!("cannot create: {why}")).bad(
                "KVM is there and refuses to create a VM.",
                match errno {
                    libc::EBUSY => {
                        "Another hypervisor holds the CPU's virtualization: stop it and unload \
                         its module."
                    }
                    libc::ENOMEM => "Free memory, or raise the memory limit of the control group.",
                    _ => "See what `dmesg | grep -i kvm` says.",
                },
            )
        }
    };
    vec![api, vm]
}
