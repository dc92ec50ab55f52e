//! Owns the seam to the host hypervisor: what a resolver asks of a vCPU and of guest memory.
//! Never decides what to do with the answers.

use std::io;

use crate::range::GuestAddress;

/// What the processor makes of an address and of an instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CodeSize {
    /// 16-bit code.
    Bits16,
    /// 32-bit code.
    Bits32,
    /// 64-bit code: only the bases of FS and GS count.
    #[default]
    Bits64,
}

impl CodeSize {
    pub(super) fn bits(self) -> u32 {
        match self {
            Self::Bits16 => 16,
            Self::Bits32 => 32,
            Self::Bits64 => 64,
        }
    }
}

/// The registers that the address of an access is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15: the order of their numbers.
    pub general: [u64; 16],
    /// RIP.
    pub rip: u64,
    /// RFLAGS.
    pub flags: u64,
    /// Bases of ES, CS, SS, DS, FS, GS: the order of their numbers.
    pub segment_bases: [u64; 6],
    /// How code is read now.
    pub code_size: CodeSize,
}

impl Registers {
    pub(super) fn code_base(&self) -> u64 {
        match self.code_size {
            CodeSize::Bits64 => 0,
            _ => self.segment_bases[1],
        }
    }

    /// A linear address as the processor has it: outside 64-bit code it has 32 bits.
    pub(super) fn wrapped(&self, linear: u64) -> u64 {
        match self.code_size {
            CodeSize::Bits64 => linear,
            CodeSize::Bits32 | CodeSize::Bits16 => linear & 0xffff_ffff,
        }
    }
}

/// How a hypervisor that was asked for a single step says that it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepEnd {
    /// By a debug exit (`KVM_EXIT_DEBUG`).
    Debug,
    /// By a shutdown exit: see [`FaultedVcpu::begin_step`] of `kvm_ioctls::VcpuFd`.
    Shutdown,
}

/// A vCPU that has left the guest, and does not run while it is asked.
///
/// The feature `kvm` implements it for `kvm_ioctls::VcpuFd`.
pub trait FaultedVcpu {
    /// What [`end_step`](Self::end_step) needs to know.
    type Stepping;

    /// The registers now.
    ///
    /// # Errors
    /// What the hypervisor said.
    fn registers(&self) -> io::Result<Registers>;

    /// Where a linear address of the guest leads, by the guest's own page tables; `None` where they
    /// do not say. `KVM_TRANSLATE` does it, but sees the pages of ring 3 only while `RFLAGS.AC` is
    /// set, if the guest has set `CR4.SMAP`, as every stock kernel does.
    fn translate(&self, linear: u64) -> Option<GuestAddress>;

    /// Makes the next run of the vCPU end after one instruction, without interrupts if that can be
    /// had, and unseen by the guest.
    ///
    /// # Errors
    /// What the hypervisor said; nothing has changed then.
    fn begin_step(&mut self) -> io::Result<(Self::Stepping, StepEnd)>;

    /// Takes [`begin_step`](Self::begin_step) back.
    ///
    /// # Errors
    /// What the hypervisor said. The vCPU cannot go on then.
    fn end_step(&mut self, stepping: Self::Stepping) -> io::Result<()>;
}

/// The guest memory that instructions are read from, beside the windows: guest RAM.
///
/// Any `Fn(GuestAddress, &mut [u8]) -> bool` is one.
pub trait GuestCode: Send + Sync {
    /// Fills `into`, at most 15 bytes within one page, from `address` on; `false` where that is no
    /// RAM. The guest may be writing there: a volatile copy, and no reference.
    fn read(&self, address: GuestAddress, into: &mut [u8]) -> bool;
}

impl<F: Fn(GuestAddress, &mut [u8]) -> bool + Send + Sync> GuestCode for F {
    fn read(&self, address: GuestAddress, into: &mut [u8]) -> bool {
        self(address, into)
    }
}
