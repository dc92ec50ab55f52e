//! Owns the machine code the guest runs. Never runs it.
//!
//! Registers at the start of every program:
//!
//! ```text
//! rsi  first guest-physical address   rdi  end of the range (exclusive)
//! rbx  counter page of this vCPU      rdx  doorbell page
//! rax  the value to write             r15  0; counts the accesses done
//! ```

use iced_x86::IcedError;
use iced_x86::code_asm::{
    AsmMemoryOperand, CodeAssembler, qword_ptr, r8, r15, rax, rbx, rcx, rdi, rdx,
    registers::gpr64::rsi,
};
use kvm_bindings::kvm_regs;

use super::error::GuestError;
use super::memory::{CODE, EXPECTED, Layout, PAGE, PASSES, STALE};

const PAGE_STEP: i32 = 4096;
/// The room each routine has in the code page, in bytes.
const PLACE: usize = 128;
/// Interrupts on, as ring 3 always has them, and the bit that is always 1.
const RFLAGS: u64 = 0x202;

/// A program that runs until it is stopped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Program {
    /// Read one word in each 4 KiB page of the range, count a pass, again.
    Walk {
        /// The first guest-physical address, 4 KiB-aligned.
        base: u64,
        /// The length in bytes, whole 4 KiB pages.
        len: u64,
    },
    /// Compare the first word of a page with the newest number the host
    /// promised; anything older is a stale read.
    Watch {
        /// The guest-physical address of the page, 4 KiB-aligned.
        page: u64,
        /// The number to start with; see `Guest::set_expected`.
        expected: u64,
    },
}

/// What one page access of a one-shot `touch` is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Touch {
    /// Load the first word of each page.
    Read,
    /// Store its own guest-physical address as the first word of each page.
    Write,
}

/// One piece of guest code, at a fixed place in the code page.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Routine {
    Walk,
    Watch,
    Read,
    Write,
    TouchRead,
    TouchWrite,
}

impl Routine {
    const ALL: [Self; 6] = [
        Self::Walk,
        Self::Watch,
        Self::Read,
        Self::Write,
        Self::TouchRead,
        Self::TouchWrite,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Walk => "walk",
            Self::Watch => "watch",
            Self::Read => "read",
            Self::Write => "write",
            Self::TouchRead => "touch for reading",
            Self::TouchWrite => "touch for writing",
        }
    }

    /// Where the routine lies, as an offset in the code page.
    const fn offset(self) -> usize {
        (self as usize).wrapping_mul(PLACE)
    }

    fn code(self) -> Result<Vec<u8>, IcedError> {
        let mut a = CodeAssembler::new(64)?;
        match self {
            Self::Walk => walk(&mut a)?,
            Self::Watch => watch(&mut a)?,
            Self::Read => {
                a.mov(rax, qword_ptr(rsi))?;
                ring(&mut a)?;
            }
            Self::Write => {
                a.mov(qword_ptr(rsi), rax)?;
                ring(&mut a)?;
            }
            Self::TouchRead => touch(&mut a, Touch::Read)?,
            Self::TouchWrite => touch(&mut a, Touch::Write)?,
        }
        a.assemble(self.entry())
    }

    fn entry(self) -> u64 {
        CODE.wrapping_add(self.offset() as u64)
    }
}

/// A word of the counter page, as an operand.
#[expect(
    clippy::arithmetic_side_effects,
    reason = "it computes nothing, it writes an operand down"
)]
fn counter(offset: u32) -> AsmMemoryOperand {
    qword_ptr(rbx + offset)
}

/// Proves how much work a vCPU gets done: every page costs one load, so lost
/// translations show as lost passes.
fn walk(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut pass = a.create_label();
    let mut page = a.create_label();
    a.mov(r8, rsi)?;
    a.set_label(&mut pass)?;
    a.mov(rsi, r8)?;
    a.set_label(&mut page)?;
    a.mov(rax, qword_ptr(rsi))?;
    a.inc(r15)?;
    a.add(rsi, PAGE_STEP)?;
    a.cmp(rsi, rdi)?;
    a.jb(page)?;
    a.inc(counter(PASSES))?;
    a.jmp(pass)
}

/// Proves that a replace has no gap and leaves nothing stale. The promise is
/// loaded before the page, and loads stay in order on x86: a page older than
/// the promise was readable after the host had said that it is gone.
fn watch(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    let mut fresh = a.create_label();
    a.set_label(&mut again)?;
    a.mov(rcx, counter(EXPECTED))?;
    a.mov(rax, qword_ptr(rsi))?;
    a.inc(r15)?;
    a.cmp(rax, rcx)?;
    a.jae(fresh)?;
    a.inc(counter(STALE))?;
    a.set_label(&mut fresh)?;
    a.inc(counter(PASSES))?;
    a.jmp(again)
}

/// Proves what one access to each page of a range does, and how long it takes.
fn touch(a: &mut CodeAssembler, kind: Touch) -> Result<(), IcedError> {
    let mut page = a.create_label();
    a.set_label(&mut page)?;
    match kind {
        Touch::Read => a.mov(rax, qword_ptr(rsi))?,
        Touch::Write => a.mov(qword_ptr(rsi), rsi)?,
    }
    a.inc(r15)?;
    a.add(rsi, PAGE_STEP)?;
    a.cmp(rsi, rdi)?;
    a.jb(page)?;
    a.mov(rax, r15)?;
    ring(a)
}

/// Hands rax to the host by the doorbell. The host does not run the guest on;
/// should it, the guest only rings again.
fn ring(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.mov(qword_ptr(rdx), rax)?;
    a.jmp(again)
}

/// Code of the caller's, and the doorbell after it.
pub(super) fn own(
    body: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    entry: u64,
) -> Result<Vec<u8>, GuestError> {
    let assemble = || {
        let mut a = CodeAssembler::new(64)?;
        body(&mut a)?;
        ring(&mut a)?;
        a.assemble(entry)
    };
    let name = "code of the caller's";
    assemble().map_err(|source| GuestError::Assemble { name, source })
}

/// The code page: every routine at its place.
pub(super) fn code_page() -> Result<Vec<u8>, GuestError> {
    let mut page = Vec::new();
    for routine in Routine::ALL {
        let name = routine.name();
        let code = routine
            .code()
            .map_err(|source| GuestError::Assemble { name, source })?;
        if code.len() > PLACE {
            return Err(GuestError::ProgramLen {
                name,
                len: code.len(),
                place: PLACE,
            });
        }
        page.resize(routine.offset(), 0xcc);
        page.extend(code);
    }
    Ok(page)
}

/// The registers that start a routine.
pub(super) fn registers(
    routine: Routine,
    vcpu: usize,
    range: (u64, u64),
    value: u64,
    doorbell: u64,
) -> kvm_regs {
    kvm_regs {
        rip: routine.entry(),
        rflags: RFLAGS,
        rsi: range.0,
        rdi: range.0.saturating_add(range.1),
        rbx: Layout::counters(vcpu),
        rdx: doorbell,
        rax: value,
        ..Default::default()
    }
}

impl Program {
    /// The code and the range of this program.
    pub(super) const fn parts(self) -> (Routine, (u64, u64)) {
        match self {
            Self::Walk { base, len } => (Routine::Walk, (base, len)),
            Self::Watch { page, .. } => (Routine::Watch, (page, PAGE)),
        }
    }
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions, Mnemonic};

    use super::*;

    fn decode(routine: Routine) -> Vec<iced_x86::Instruction> {
        let code = routine.code().unwrap();
        let mut decoder = Decoder::with_ip(64, &code, routine.entry(), DecoderOptions::NONE);
        decoder.iter().collect()
    }

    #[test]
    fn code_page_holds_every_routine_at_its_entry() {
        let page = code_page().unwrap();
        assert!(page.len() as u64 <= PAGE);
        for routine in Routine::ALL {
            let code = routine.code().unwrap();
            let at = usize::try_from(routine.entry() - CODE).unwrap();
            assert_eq!(&page[at..at + code.len()], &code, "{}", routine.name());
        }
    }

    #[test]
    fn routines_decode_whole_and_end_in_a_jump_back() {
        for routine in Routine::ALL {
            let start = routine.entry();
            let code = decode(routine);
            assert!(code.iter().all(|i| !i.is_invalid()), "{}", routine.name());
            let last = code.last().unwrap();
            assert_eq!(last.mnemonic(), Mnemonic::Jmp);
            let jumps = [Mnemonic::Jmp, Mnemonic::Jb, Mnemonic::Jae];
            for i in code.iter().filter(|i| jumps.contains(&i.mnemonic())) {
                let target = i.near_branch_target();
                assert!((start..=last.ip()).contains(&target), "{}", routine.name());
            }
        }
    }

    #[test]
    fn routines_use_nothing_ring_3_may_not() {
        let allowed = [
            Mnemonic::Mov,
            Mnemonic::Inc,
            Mnemonic::Add,
            Mnemonic::Cmp,
            Mnemonic::Jb,
            Mnemonic::Jae,
            Mnemonic::Jmp,
        ];
        for routine in Routine::ALL {
            for i in decode(routine) {
                assert!(allowed.contains(&i.mnemonic()), "{:?}", i.mnemonic());
            }
        }
    }

    #[test]
    fn walk_registers_span_the_range() {
        let program = Program::Walk {
            base: 0x20_0000,
            len: 0x3000,
        };
        let (routine, range) = program.parts();
        let regs = registers(routine, 1, range, 7, 0x500_0000);
        assert_eq!((regs.rsi, regs.rdi), (0x20_0000, 0x20_3000));
        assert_eq!((regs.rbx, regs.rdx), (0x1_1000, 0x500_0000));
        assert_eq!((regs.rip, regs.rax, regs.r15), (CODE, 7, 0));
    }
}
