//! Owns what can go wrong with the guest. Never does a system call.

use std::io;

use thiserror::Error;

/// Why the guest could not be made, started, stopped or asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GuestError {
    /// `/dev/kvm` did not open.
    #[error("cannot open /dev/kvm: {advice}")]
    OpenKvm {
        /// What the user can do about it.
        advice: &'static str,
        /// The answer of `open`.
        source: io::Error,
    },
    /// `KVM_CREATE_VM` was refused.
    #[error("cannot create a virtual machine: {advice}")]
    CreateVm {
        /// What the user can do about it.
        advice: &'static str,
        /// The answer of the kernel.
        source: io::Error,
    },
    /// Another KVM call failed.
    #[error("cannot {what}")]
    Kvm {
        /// What was tried, as a verb with its object.
        what: &'static str,
        /// The answer of the kernel.
        source: io::Error,
    },
    /// The host has no memory for the guest.
    #[error("cannot map {len:#x} bytes of guest memory: ask for less, or free some")]
    MapRam {
        /// The size asked for, in bytes.
        len: u64,
        /// What the mapping answered.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A place inside guest memory did not take a word.
    #[error("cannot reach guest memory at {gpa:#x}")]
    RamAccess {
        /// The guest-physical address.
        gpa: u64,
        /// What the memory answered.
        source: vm_memory::GuestMemoryError,
    },
    /// The sizes asked for do not make a guest.
    #[error("cannot lay the guest out: {reason}")]
    Layout {
        /// Which figure is wrong, and what it must be.
        reason: String,
    },
    /// A guest program did not assemble.
    #[error("cannot assemble the guest program {name}")]
    Assemble {
        /// The program.
        name: &'static str,
        /// What the assembler answered.
        source: iced_x86::IcedError,
    },
    /// An assembled guest program is longer than its place.
    #[error("cannot place the guest program {name}: {len} bytes, and its place has {place}")]
    ProgramLen {
        /// The program.
        name: &'static str,
        /// Its length in bytes.
        len: usize,
        /// The length of its place in bytes.
        place: usize,
    },
    /// The guest's own tables do not map this, or the program may not go there.
    #[error(
        "cannot let the guest use [{base:#x}, +{len:#x}): it must be aligned to {align} bytes, \
         not empty, and inside the working set or the window"
    )]
    Range {
        /// The first guest-physical address.
        base: u64,
        /// The length in bytes.
        len: u64,
        /// The alignment of both, in bytes.
        align: u64,
    },
    /// There is no such vCPU.
    #[error("cannot find vCPU {vcpu}: the guest has {count}, counted from 0")]
    NoVcpu {
        /// The number asked for.
        vcpu: usize,
        /// How many there are, counted from 0.
        count: usize,
    },
    /// The vCPU is running a program; stop it first.
    #[error("cannot start on vCPU {vcpu}: it runs a program; stop that first")]
    Busy {
        /// The vCPU.
        vcpu: usize,
    },
    /// The vCPU runs nothing that could be stopped.
    #[error("cannot stop vCPU {vcpu}: it runs no program; start one first")]
    Idle {
        /// The vCPU.
        vcpu: usize,
    },
    /// The guest left its program by an exit no program asks for.
    #[error(
        "cannot keep vCPU {vcpu} running: KVM_RUN ended with {exit} at rip {rip:#x}; \
         the guest programs cause no such exit, so look at the kernel log"
    )]
    Exit {
        /// The vCPU.
        vcpu: usize,
        /// The name of the exit, or of the error of `KVM_RUN`.
        exit: String,
        /// Where the guest stood.
        rip: u64,
    },
    /// The vCPU thread was kicked and did not come back.
    #[error(
        "cannot get vCPU {vcpu} out of KVM_RUN: no answer to {kicks} signals in {seconds} s; \
         its thread may be asleep in a page fault (userfaultfd on old kernels)"
    )]
    Stuck {
        /// The vCPU.
        vcpu: usize,
        /// How many signals were sent.
        kicks: u64,
        /// For how long, in seconds.
        seconds: u64,
    },
    /// A one-shot program did not end in time and was given up.
    #[error("cannot finish on vCPU {vcpu}: the program did not end in {seconds} s")]
    Timeout {
        /// The vCPU.
        vcpu: usize,
        /// The time it had, in seconds.
        seconds: u64,
    },
    /// The vCPU thread is gone.
    #[error("cannot reach the thread of vCPU {vcpu}: it ended; make a new guest")]
    ThreadGone {
        /// The vCPU.
        vcpu: usize,
    },
    /// The vCPU thread could not be started, or not be signalled.
    #[error("cannot {what} of vCPU {vcpu}")]
    Thread {
        /// The vCPU.
        vcpu: usize,
        /// What was tried, as a verb with its object.
        what: &'static str,
        /// The answer of the system.
        source: io::Error,
    },
}

impl GuestError {
    /// Makes the error of a KVM call from its errno.
    pub(super) fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |errno| Self::Kvm {
            what,
            source: io::Error::from_raw_os_error(errno.errno()),
        }
    }

    /// `/dev/kvm` did not open: say what to do for the usual reasons.
    pub(crate) fn open_kvm(errno: i32) -> Self {
        let advice = match errno {
            libc::ENOENT => {
                "there is none; load kvm-intel or kvm-amd, switch nested virtualization on, \
                 or hand the device into the container"
            }
            libc::EACCES | libc::EPERM => {
                "no permission; join the group that owns it (usually kvm) or run as root"
            }
            libc::ENODEV | libc::ENXIO => {
                "the module is loaded but found no virtualization; switch it on in the firmware \
                 or in the outer hypervisor"
            }
            _ => "see the cause; the kernel log may say more",
        };
        Self::OpenKvm {
            advice,
            source: io::Error::from_raw_os_error(errno),
        }
    }

    /// `KVM_CREATE_VM` failed: say what to do for the usual reasons.
    pub(crate) fn create_vm(errno: i32) -> Self {
        let advice = match errno {
            libc::EBUSY => "another hypervisor holds the processor; stop it first",
            libc::ENOMEM => "no memory, or the control group's limit is reached; free some",
            libc::EMFILE | libc::ENFILE => "too many open files; raise the limit (ulimit -n)",
            _ => "see the cause; the kernel log may say more",
        };
        Self::CreateVm {
            advice,
            source: io::Error::from_raw_os_error(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn open_kvm_missing_device_says_what_to_load() {
        let error = GuestError::open_kvm(libc::ENOENT);
        assert_eq!(
            error.to_string(),
            "cannot open /dev/kvm: there is none; load kvm-intel or kvm-amd, switch nested \
             virtualization on, or hand the device into the container"
        );
        assert!(error.source().is_some());
    }

    #[test]
    fn open_kvm_no_permission_names_the_group() {
        let text = GuestError::open_kvm(libc::EACCES).to_string();
        assert!(text.contains("join the group"), "{text}");
    }

    #[test]
    fn create_vm_busy_names_the_other_hypervisor() {
        let text = GuestError::create_vm(libc::EBUSY).to_string();
        assert_eq!(
            text,
            "cannot create a virtual machine: another hypervisor holds the processor; \
             stop it first"
        );
    }
}
