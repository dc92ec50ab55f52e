//! Owns the tests of what the decoder makes of instructions, by their bytes.

use super::*;

fn registers() -> Registers {
    let mut general = [0; 16];
    for (value, register) in general.iter_mut().zip(1_u64..) {
        *value = register << 20;
    }
    Registers {
        general,
        rip: 0x40_0000,
        segment_bases: [1 << 40, 2 << 40, 3 << 40, 4 << 40, 5 << 40, 6 << 40],
        ..Registers::default()
    }
}

/// RAX, RCX, RBX, RSP, RSI, RDI as [`registers`] has them.
const RAX: u64 = 1 << 20;
const RCX: u64 = 2 << 20;
const RBX: u64 = 4 << 20;
const RSP: u64 = 5 << 20;
const RSI: u64 = 7 << 20;
const RDI: u64 = 8 << 20;

fn accesses(code: &[u8]) -> Vec<(u64, u64, bool)> {
    let found = decode(code, &registers()).accesses.into_iter();
    found.map(|a| (a.linear, a.len, a.write)).collect()
}

#[test]
fn decode_finds_operands_with_base_index_and_segment() {
    // mov rax, [rbx + rcx * 8 + 0x10]
    assert_eq!(
        accesses(&[0x48, 0x8b, 0x44, 0xcb, 0x10]),
        [(RBX + RCX * 8 + 16, 8, false)]
    );
    // mov fs:[rsi], eax
    assert_eq!(accesses(&[0x64, 0x89, 0x06]), [((5 << 40) + RSI, 4, true)]);
    // mov ds:[rsi], eax: its base is no more than a number in 64-bit code
    assert_eq!(accesses(&[0x3e, 0x89, 0x06]), [(RSI, 4, true)]);
    // mov rax, [rip + 0x100], 7 bytes long
    let code = [0x48, 0x8b, 0x05, 0x00, 0x01, 0x00, 0x00];
    assert_eq!(accesses(&code), [(0x40_0107, 8, false)]);
    // mov eax, [esi]
    assert_eq!(accesses(&[0x67, 0x8b, 0x06]), [(RSI, 4, false)]);
}

#[test]
fn decode_finds_what_no_operand_names() {
    // push rax; pop rax; call +0; ret
    assert_eq!(accesses(&[0x50]), [(RSP - 8, 8, true)]);
    assert_eq!(accesses(&[0x58]), [(RSP, 8, false)]);
    assert_eq!(accesses(&[0xe8, 0, 0, 0, 0]), [(RSP - 8, 8, true)]);
    assert_eq!(accesses(&[0xc3]), [(RSP, 8, false)]);
    // movsq
    let mut moved = accesses(&[0x48, 0xa5]);
    moved.sort_unstable();
    assert_eq!(moved, [(RSI, 8, false), (RDI, 8, true)]);
}

#[test]
fn decode_knows_a_read_that_writes_and_one_that_does_not_touch() {
    // add [rsi], eax; lock cmpxchg [rsi], ecx; cmp [rsi], eax; lea rax, [rsi]
    assert_eq!(accesses(&[0x01, 0x06]), [(RSI, 4, true)]);
    assert_eq!(accesses(&[0xf0, 0x0f, 0xb1, 0x0e]), [(RSI, 4, true)]);
    assert_eq!(accesses(&[0x39, 0x06]), [(RSI, 4, false)]);
    assert_eq!(accesses(&[0x48, 0x8d, 0x06]), []);
    // movdqu xmm0, [rax]
    assert_eq!(accesses(&[0xf3, 0x0f, 0x6f, 0x00]), [(RAX, 16, false)]);
}

#[test]
fn decode_sees_that_an_instruction_repeats_and_takes_one_piece_of_it() {
    let decoded = decode(&[0xf3, 0x48, 0xab], &registers()); // rep stosq
    assert!(decoded.repeats);
    let access = decoded.accesses[0];
    assert_eq!((access.linear, access.len, access.write), (RDI, 8, true));
    assert!(!decode(&[0x48, 0xab], &registers()).repeats);
}

#[test]
fn decode_of_what_it_cannot_read_or_compute_finds_nothing() {
    assert_eq!(accesses(&[]), []);
    assert_eq!(accesses(&[0x48]), []);
    assert_eq!(accesses(&[0xff; 15]), []);
    // vpgatherdd ymm0, [rsi + ymm1 * 4], ymm2: the addresses are in a vector register
    assert_eq!(accesses(&[0xc4, 0xe2, 0x6d, 0x90, 0x04, 0x8e]), []);
}

#[test]
fn decode_in_32_bit_code_adds_the_segment() {
    let registers = Registers {
        code_size: CodeSize::Bits32,
        segment_bases: [1 << 24, 2 << 24, 3 << 24, 4 << 24, 5 << 24, 6 << 24],
        ..registers()
    };
    // mov eax, [esi]; push eax
    let at = |code: &[u8]| decode(code, &registers).accesses[0].linear;
    assert_eq!(at(&[0x8b, 0x06]), (4 << 24) + RSI);
    assert_eq!(at(&[0x50]), (3 << 24) + RSP - 4);
}

#[test]
fn decode_outside_64_bit_code_wraps_at_4_gib() {
    for code_size in [CodeSize::Bits16, CodeSize::Bits32] {
        let mut registers = Registers {
            code_size,
            ..registers()
        };
        registers.general[6] = 0x3000;
        registers.segment_bases[3] = 0xffff_f000;
        // mov eax, [si], or mov eax, [esi], by the size of the code
        let code: &[u8] = match code_size {
            CodeSize::Bits16 => &[0x8b, 0x04],
            _ => &[0x8b, 0x06],
        };
        assert_eq!(decode(code, &registers).accesses[0].linear, 0x2000);
    }
}
