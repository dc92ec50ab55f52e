//! Owns what can go wrong here beside what the library and the hypervisor say, and the error number
//! of each. Never makes an error.

use std::error::Error;
use std::io;

use hypervisor::HypervisorVmError;
use vm_remap::GuestAddress;

/// Why a decorated VM refused something. Everything is as it was, unless
/// [`vm_remap::Error::state_after`] of the inner error says otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemapError {
    /// The hypervisor is not KVM.
    #[error("cannot decorate the hypervisor: it is not KVM; use it as it is")]
    NotKvm,
    /// KVM offers precise zapping and refused it.
    #[error("cannot switch precise zapping on for the VM")]
    PreciseZap {
        /// What KVM said.
        #[source]
        source: io::Error,
    },
    /// A window is to lie where one is already.
    #[error(
        "cannot place a window of {len:#x} bytes at guest address {base}: the window of \
         {other_len:#x} bytes at {other} lies there; close that, or choose another place"
    )]
    Overlaps {
        /// Guest address of the new window.
        base: GuestAddress,
        /// Its length in bytes.
        len: u64,
        /// Guest address of the window that is there.
        other: GuestAddress,
        /// Its length in bytes.
        other_len: u64,
    },
    /// There are not enough memslot numbers.
    #[error(
        "cannot open the window: it needs {needed} memslot numbers in a row, and the windows' share of \
         KVM's has no such; use larger segments, or close windows"
    )]
    SlotNumbers {
        /// How many it needs.
        needed: u32,
    },
    /// The number of a region is one of those that the windows have.
    #[error(
        "cannot use memslot {slot} beside windows: the numbers from {first} on are theirs; use a lower \
         one"
    )]
    SlotReserved {
        /// The number.
        slot: u32,
        /// The first number of the windows.
        first: u32,
    },
    /// The number of a region belongs to another one, inside a window.
    #[error(
        "cannot create a region with the memslot number {slot}: the region of {len:#x} bytes at guest \
         address {guest} has it; remove that first"
    )]
    SlotInUse {
        /// The number.
        slot: u32,
        /// Guest address of the region that has it.
        guest: GuestAddress,
        /// Its length in bytes.
        len: u64,
    },
    /// A region reaches over the border of a window.
    #[error(
        "cannot create a region of {len:#x} bytes at guest address {guest}: it reaches over the border \
         of the window of {window:#x} bytes at {base}; keep it inside, or outside"
    )]
    Straddles {
        /// Guest address of the region.
        guest: GuestAddress,
        /// Its length in bytes.
        len: u64,
        /// Guest address of the window.
        base: GuestAddress,
        /// Its length in bytes.
        window: u64,
    },
    /// A region has no host memory.
    #[error(
        "cannot create a region of {len:#x} bytes at guest address {guest}: its host address is 0"
    )]
    NoHostMemory {
        /// Guest address of the region.
        guest: GuestAddress,
        /// Its length in bytes.
        len: u64,
    },
    /// A region is not the one that was created with its number.
    #[error(
        "cannot {verb} the region of {len:#x} bytes at guest address {guest} with the memslot number \
         {slot}: the one with this number has {own_len:#x} bytes at {own}, or other host memory; pass \
         the figures that it was created with"
    )]
    OtherFigures {
        /// What was to be done.
        verb: &'static str,
        /// The number.
        slot: u32,
        /// The guest address that was passed.
        guest: GuestAddress,
        /// The length that was passed, in bytes.
        len: u64,
        /// Where the region with this number lies.
        own: GuestAddress,
        /// Its length in bytes.
        own_len: u64,
    },
    /// A region lies inside a window, and none was created with its number.
    #[error(
        "cannot remove the region of {len:#x} bytes at guest address {guest}: it lies in the window at \
         {base}, and none was created with the memslot number {slot}"
    )]
    NoRegion {
        /// The number.
        slot: u32,
        /// The guest address that was passed.
        guest: GuestAddress,
        /// The length that was passed, in bytes.
        len: u64,
        /// Guest address of the window.
        base: GuestAddress,
    },
    /// The window is not one of this VM's.
    #[error("cannot use the window at {base}: it is not open in this VM")]
    NoWindow {
        /// Guest address of the window, or of what was looked for in one.
        base: GuestAddress,
    },
    /// A window that is to be closed has regions.
    #[error("cannot close the window at {base}: {regions} regions lie in it; remove them first")]
    RegionsLeft {
        /// Guest address of the window.
        base: GuestAddress,
        /// How many.
        regions: usize,
    },
    /// Somebody else holds the window.
    #[error("cannot close the window at {base}: something else still holds it; let go of it first")]
    WindowHeld {
        /// Guest address of the window.
        base: GuestAddress,
    },
    /// The dirty log of the VM is off.
    #[error("cannot take the dirty log of the window at {base}: it is off; start the VM's first")]
    DirtyLogOff {
        /// Guest address of the window.
        base: GuestAddress,
    },
    /// What the library said.
    #[error(transparent)]
    Window(#[from] vm_remap::Error),
    /// What the hypervisor said.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorVmError),
}

impl RemapError {
    /// The error number that tells the same, always positive.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::NotKvm => libc::EOPNOTSUPP,
            Self::PreciseZap { source } => source.raw_os_error().unwrap_or(libc::EIO),
            Self::Overlaps { .. } | Self::SlotInUse { .. } => libc::EEXIST,
            Self::SlotNumbers { .. } => libc::ENOSPC,
            Self::NoRegion { .. } | Self::NoWindow { .. } | Self::DirtyLogOff { .. } => {
                libc::ENOENT
            }
            Self::RegionsLeft { .. } | Self::WindowHeld { .. } => libc::EBUSY,
            Self::SlotReserved { .. }
            | Self::Straddles { .. }
            | Self::NoHostMemory { .. }
            | Self::OtherFigures { .. } => libc::EINVAL,
            Self::Window(error) => error.errno(),
            Self::Hypervisor(error) => errno_of(error).unwrap_or(libc::EIO),
        }
    }
}

/// The error number that a call of the hypervisor ended with, if it stands among the causes.
pub(crate) fn errno_of(error: &(dyn Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<vmm_sys_util::errno::Error>() {
            return Some(error.errno());
        }
        if let Some(error) = error.downcast_ref::<io::Error>()
            && let Some(errno) = error.raw_os_error()
        {
            return Some(errno);
        }
        next = error.source();
    }
    None
}

/// The same failure as an `io::Error`, with its number where there is one.
pub(crate) fn io_error(error: HypervisorVmError) -> io::Error {
    match errno_of(&error) {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::Error::other(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_say_what_to_do_next() {
        let refused = || io::Error::from_raw_os_error(libc::EPERM);
        let base = GuestAddress(0x1000);
        let cases = [
            (
                RemapError::NotKvm,
                libc::EOPNOTSUPP,
                "cannot decorate the hypervisor: it is not KVM; use it as it is",
            ),
            (
                RemapError::PreciseZap { source: refused() },
                libc::EPERM,
                "cannot switch precise zapping on for the VM",
            ),
            (
                RemapError::NoHostMemory {
                    guest: base,
                    len: 0x2000,
                },
                libc::EINVAL,
                "cannot create a region of 0x2000 bytes at guest address 0x1000: its host address is 0",
            ),
            (
                RemapError::DirtyLogOff { base },
                libc::ENOENT,
                "cannot take the dirty log of the window at 0x1000: it is off; start the VM's first",
            ),
        ];
        for (error, errno, text) in cases {
            assert_eq!((error.errno(), error.to_string().as_str()), (errno, text));
        }
    }

    #[test]
    fn errno_of_the_hypervisor_is_found_among_the_causes() {
        let cause = anyhow::Error::new(vmm_sys_util::errno::Error::new(libc::ENOSPC));
        let error = HypervisorVmError::CreateUserMemory(cause.context("on the way"));
        assert_eq!(errno_of(&error), Some(libc::ENOSPC));
        assert_eq!(RemapError::from(error).errno(), libc::ENOSPC);
        let error = HypervisorVmError::CreateUserMemory(anyhow::anyhow!("no number"));
        assert_eq!(io_error(error).raw_os_error(), None);
    }
}
