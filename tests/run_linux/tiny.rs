//! Owns the proof that each end of a guest has its exit code, and that the serial port works both
//! ways: with kernels of a few instructions.

use std::io::Read as _;
use std::path::PathBuf;
use std::process::Command;

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::support::{run, runs_guests, said, start};

/// Where the kernels are loaded.
const BASE: u64 = 0x10_0000;

/// What a guest may take from the tables that it is given.
const SLEEP_PORT: u32 = 0x600;
const RESET_PORT: u32 = 0x602;
const PANIC_PORT: u32 = 0x505;
const SERIAL: u32 = 0x3f8;
const LINE_STATUS: u32 = 0x3fd;
const POWER_OFF: u32 = 5 << 2 | 1 << 5;

/// An ELF file with `code` at [`BASE`], which is also its entry.
fn kernel(code: &[u8]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    // An executable for x86-64, its headers, and one program header of 56 bytes.
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    file.extend([BASE, 64, 0].map(u64::to_le_bytes).concat());
    file.extend([0_u8; 4]);
    file.extend([64_u16, 56, 1, 0, 0, 0].map(u16::to_le_bytes).concat());
    // A segment to load, readable and executable.
    file.extend([1_u32, 5].map(u32::to_le_bytes).concat());
    let len = u64::try_from(code.len()).unwrap();
    file.extend(
        [120, BASE, BASE, len, len, 1]
            .map(u64::to_le_bytes)
            .concat(),
    );
    file.extend(code);
    file
}

struct Tiny {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Tiny {
    fn new(program: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Self {
        let mut a = CodeAssembler::new(64).unwrap();
        program(&mut a).unwrap();
        let code = a.assemble(BASE).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernel");
        std::fs::write(&path, kernel(&code)).unwrap();
        Self {
            _folder: folder,
            path,
        }
    }

    fn arguments(&self) -> [&str; 2] {
        ["--kernel", self.path.to_str().unwrap()]
    }
}

fn out_byte(a: &mut CodeAssembler, port: u32, value: u32) -> Result<(), IcedError> {
    a.mov(edx, port)?;
    a.mov(eax, value)?;
    a.out(dx, al)
}

fn stay(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut here = a.create_label();
    a.set_label(&mut here)?;
    a.hlt()?;
    a.jmp(here)
}

#[test]
fn each_end_of_a_guest_has_its_exit_code() {
    if !runs_guests("each_end_of_a_guest_has_its_exit_code") {
        return;
    }
    let ends = [
        (SLEEP_PORT, POWER_OFF, 0, "the guest powered off"),
        (
            RESET_PORT,
            1,
            3,
            "the guest asked for a reboot; start it again for one",
        ),
        (PANIC_PORT, 1, 4, "the guest's kernel panicked"),
    ];
    for (port, value, code, text) in ends {
        let tiny = Tiny::new(|a| {
            out_byte(a, port, value)?;
            stay(a)
        });
        let ended = said(&run(&tiny.arguments(), b""));
        assert_eq!(ended, (Some(code), format!("vm-remap: {text}\n")));
    }
}

#[test]
fn a_fault_that_nobody_handles_is_told_from_a_reboot() {
    if !runs_guests("a_fault_that_nobody_handles_is_told_from_a_reboot") {
        return;
    }
    let tiny = Tiny::new(CodeAssembler::ud2);
    let (code, text) = said(&run(&tiny.arguments(), b""));
    assert_eq!(text, "vm-remap: the guest stopped with a triple fault\n");
    assert_eq!(code, Some(4));
}

#[test]
fn what_is_typed_comes_back_and_keys_for_the_vmm_do_not() {
    if !runs_guests("what_is_typed_comes_back_and_keys_for_the_vmm_do_not") {
        return;
    }
    // Sends back each byte, up to a dot.
    let tiny = Tiny::new(|a| {
        let (mut next, mut got) = (a.create_label(), a.create_label());
        a.set_label(&mut next)?;
        a.mov(edx, LINE_STATUS)?;
        a.in_(al, dx)?;
        a.test(al, 1)?;
        a.jz(next)?;
        a.set_label(&mut got)?;
        a.mov(edx, SERIAL)?;
        a.in_(al, dx)?;
        a.out(dx, al)?;
        a.cmp(al, i32::from(b'.'))?;
        a.jne(next)?;
        out_byte(a, SLEEP_PORT, POWER_OFF)?;
        stay(a)
    });
    // More than the chip, and the queue in front of it, take at once.
    let long = vec![b'-'; 10_000];
    let typed = [b"one\r\ntwo \x01\x01 \x01b", long.as_slice(), b"."].concat();
    let expected = [b"one\r\ntwo \x01 ", long.as_slice(), b"."].concat();
    let output = run(&tiny.arguments(), &typed);
    assert_eq!(said(&output).0, Some(0));
    assert_eq!(output.stdout, expected);
}

#[test]
fn a_guest_that_never_ends_is_ended_from_outside() {
    if !runs_guests("a_guest_that_never_ends_is_ended_from_outside") {
        return;
    }
    let ended = (
        Some(6),
        "vm-remap: the guest was ended from outside\n".to_owned(),
    );
    let tiny = Tiny::new(stay);
    assert_eq!(said(&run(&tiny.arguments(), b"\x01x")), ended);
    // The same by a signal, to a guest that is known to run by then.
    let busy = Tiny::new(|a| {
        out_byte(a, SERIAL, u32::from(b'!'))?;
        let mut here = a.create_label();
        a.set_label(&mut here)?;
        a.jmp(here)
    });
    let mut child = start(&busy.arguments());
    let mut first = [0];
    let stdout = child.stdout.as_mut().unwrap();
    stdout.read_exact(&mut first).unwrap();
    assert_eq!(first, *b"!");
    let id = child.id().to_string();
    let kill = Command::new("kill").arg(id).status().unwrap();
    assert!(kill.success());
    assert_eq!(said(&child.wait_with_output().unwrap()), ended);
}

#[test]
fn what_is_not_there_reads_as_ones() {
    if !runs_guests("what_is_not_there_reads_as_ones") {
        return;
    }
    // A port, and a place among the devices: both are all ones, or the guest stops with a fault.
    let tiny = Tiny::new(|a| {
        let mut wrong = a.create_label();
        a.mov(edx, 0x80)?;
        a.in_(al, dx)?;
        a.cmp(al, -1)?;
        a.jne(wrong)?;
        a.mov(esi, 0xc000_0000_u32)?;
        a.mov(eax, dword_ptr(rsi))?;
        a.cmp(eax, -1)?;
        a.jne(wrong)?;
        a.mov(dword_ptr(rsi), eax)?;
        out_byte(a, SLEEP_PORT, POWER_OFF)?;
        stay(a)?;
        a.set_label(&mut wrong)?;
        a.ud2()
    });
    assert_eq!(said(&run(&tiny.arguments(), b"")).0, Some(0));
}

#[test]
fn boot_parameters_and_tables_are_where_the_protocol_says() {
    if !runs_guests("boot_parameters_and_tables_are_where_the_protocol_says") {
        return;
    }
    // RSI has the parameters; there, the command line and the root of the ACPI tables. The guest
    // sends the line up to its 0, and the first byte of "RSD PTR ".
    let tiny = Tiny::new(|a| {
        let (mut next, mut done) = (a.create_label(), a.create_label());
        a.mov(edx, SERIAL)?;
        a.mov(ebx, dword_ptr(rsi + 0x228))?;
        a.set_label(&mut next)?;
        a.mov(al, byte_ptr(rbx))?;
        a.test(al, al)?;
        a.jz(done)?;
        a.out(dx, al)?;
        a.inc(rbx)?;
        a.jmp(next)?;
        a.set_label(&mut done)?;
        a.mov(rbx, qword_ptr(rsi + 0x70))?;
        a.mov(al, byte_ptr(rbx))?;
        a.out(dx, al)?;
        out_byte(a, SLEEP_PORT, POWER_OFF)?;
        stay(a)
    });
    let [kernel, path] = tiny.arguments();
    let output = run(&[kernel, path, "--cmdline", "one two=3"], b"");
    assert_eq!(output.stdout, b"one two=3R");
    let long = "x".repeat(2048);
    let (code, text) = said(&run(&[kernel, path, "--cmdline", &long], b""));
    assert_eq!(code, Some(1));
    assert_eq!(
        text,
        "vm-remap: cannot pass a command line of 2048 bytes to the kernel: it takes 2047; shorten \
         it\n"
    );
}
