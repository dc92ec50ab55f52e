//! Owns what one instruction touches: the linear address, length and kind of each access. Never
//! looks at memory, and never executes anything.

use iced_x86::{
    Decoder, DecoderOptions, Instruction, InstructionInfoFactory, MemorySize, OpAccess, Register,
    UsedMemory,
};

use super::vcpu::{CodeSize, Registers};

/// The longest instruction there is.
pub(super) const LONGEST: usize = 15;

/// What an access of unknown length is taken for: an XSAVE area, or what a string instruction does
/// at once.
const UNKNOWN_LEN: u64 = 4096;

/// One access of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Access {
    pub(super) linear: u64,
    pub(super) len: u64,
    pub(super) write: bool,
}

/// What an instruction does to memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Decoded {
    pub(super) accesses: Vec<Access>,
    /// Whether it is one that repeats until a counter is used up.
    pub(super) repeats: bool,
}

/// Reads the instruction at RIP. An access whose address cannot be computed, of a gather for
/// instance, is left out.
pub(super) fn decode(code: &[u8], registers: &Registers) -> Decoded {
    let bits = registers.code_size.bits();
    let mut decoder = Decoder::with_ip(bits, code, registers.rip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    if instruction.is_invalid() {
        return Decoded::default();
    }
    let mut factory = InstructionInfoFactory::new();
    let used = factory.info(&instruction).used_memory();
    let accesses = used
        .iter()
        .filter_map(|used| access(used, &instruction, registers));
    let repeats = instruction.is_string_instruction()
        && (instruction.has_rep_prefix() || instruction.has_repne_prefix());
    Decoded {
        accesses: accesses.collect(),
        repeats,
    }
}

fn access(used: &UsedMemory, instruction: &Instruction, registers: &Registers) -> Option<Access> {
    let write = match used.access() {
        OpAccess::Read | OpAccess::CondRead => false,
        OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite => {
            true
        }
        OpAccess::None | OpAccess::NoMemAccess => return None,
    };
    let linear = used.virtual_address(0, |register, _, _| value(register, registers))?;
    let linear = registers.wrapped(linear);
    let size = match used.memory_size() {
        MemorySize::Unknown => instruction.memory_size(),
        known => known,
    };
    let len = match size.size() {
        0 => UNKNOWN_LEN,
        known => known as u64,
    };
    Some(Access { linear, len, write })
}

/// What `register` holds; for a segment, its base.
fn value(register: Register, registers: &Registers) -> Option<u64> {
    if register == Register::RIP || register == Register::EIP {
        // The decoder has added it already.
        return Some(0);
    }
    if register.is_segment_register() {
        let flat = registers.code_size == CodeSize::Bits64
            && !matches!(register, Register::FS | Register::GS);
        let base = registers.segment_bases.get(register.number())?;
        return Some(if flat { 0 } else { *base });
    }
    let full = register.full_register();
    if !full.is_gpr() {
        return None;
    }
    let value = *registers.general.get(full.number())?;
    Some(match register.size() {
        2 => value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    })
}

#[cfg(test)]
mod tests;
