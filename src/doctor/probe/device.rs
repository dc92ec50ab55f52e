//! Owns the reading of what stands around KVM's device: its file, the
//! modules behind it and the CPU below them. Never opens the device.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use vm_remap::host::Host;

/// The KVM modules that drive a kind of CPU.
const VENDORS: [&str; 3] = ["kvm_intel", "kvm_amd", "kvm_pvm"];

/// A device file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::doctor) struct Node {
    /// Whether it is a character device at all.
    pub(in crate::doctor) is_device: bool,
    /// The permission bits.
    pub(in crate::doctor) mode: u32,
    /// The owner.
    pub(in crate::doctor) uid: u32,
    /// The group.
    pub(in crate::doctor) gid: u32,
    /// The group's name, where the host has one for it.
    pub(in crate::doctor) group: Option<String>,
}

impl Node {
    pub(super) fn read(host: &Host, path: &str) -> Option<Self> {
        let meta = fs::metadata(host.path(path)).ok()?;
        let groups = host.text("/etc/group").unwrap_or_default();
        Some(Self {
            is_device: meta.file_type().is_char_device(),
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            group: group_name(&groups, meta.gid()),
        })
    }
}

/// The name of a group in a file of lines `name:password:gid:members`.
fn group_name(groups: &str, gid: u32) -> Option<String> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let found: u32 = fields.nth(1)?.parse().ok()?;
        (found == gid).then(|| name.to_owned())
    })
}

/// A kernel module that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::doctor) struct Module {
    /// Its name.
    pub(in crate::doctor) name: String,
    /// Whether it is part of the kernel image. One that is part of it is
    /// listed even where the CPU is not of its kind.
    pub(in crate::doctor) built_in: bool,
}

impl Module {
    pub(in crate::doctor) fn vendors(host: &Host) -> Vec<Self> {
        VENDORS
            .iter()
            .filter_map(|name| {
                let dir = host.path(&format!("/sys/module/{name}"));
                dir.exists().then(|| Self {
                    name: (*name).to_owned(),
                    // Only a module that was loaded has a state.
                    built_in: !dir.join("initstate").exists(),
                })
            })
            .collect()
    }
}

/// What the CPU's flags say of virtualization.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::doctor) struct Cpu {
    /// Intel's extension.
    pub(in crate::doctor) vmx: bool,
    /// AMD's extension.
    pub(in crate::doctor) svm: bool,
    /// This host is itself a guest.
    pub(in crate::doctor) guest: bool,
}

impl Cpu {
    pub(super) fn read(host: &Host) -> Option<Self> {
        Self::parse(&host.text("/proc/cpuinfo").ok()?)
    }

    fn parse(cpuinfo: &str) -> Option<Self> {
        let flags = cpuinfo
            .lines()
            .find(|line| line.starts_with("flags"))?
            .split_once(':')?
            .1;
        let has = |flag: &str| flags.split_ascii_whitespace().any(|word| word == flag);
        Some(Self {
            vmx: has("vmx"),
            svm: has("svm"),
            guest: has("hypervisor"),
        })
    }

    /// The module for this CPU; `None` where it has no extension.
    pub(in crate::doctor) fn module(self) -> Option<&'static str> {
        match (self.vmx, self.svm) {
            (true, _) => Some("kvm_intel"),
            (_, true) => Some("kvm_amd"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_name_finds_the_line_with_the_number() {
        let groups = "root:x:0:\nbroken\nkvm:x:104:alice\n";
        assert_eq!(group_name(groups, 104).as_deref(), Some("kvm"));
        assert_eq!(group_name(groups, 7), None);
    }

    #[test]
    fn cpu_flags_are_whole_words() {
        let cpu = Cpu::parse("processor\t: 0\nflags\t\t: fpu svm_lock hypervisor\n").unwrap();
        assert_eq!((cpu.vmx, cpu.svm, cpu.guest), (false, false, true));
        assert_eq!(cpu.module(), None);
        let cpu = Cpu::parse("flags : fpu svm\n").unwrap();
        assert_eq!(cpu.module(), Some("kvm_amd"));
    }
}
