//! Owns the proof that each end of a guest has its exit code, and that the serial port works both
//! ways: with kernels of a few instructions.

use std::io::Read as _;
use std::process::Command;
use std::sync::{Arc, Mutex};

use iced_x86::code_asm::*;
use vm_device::MutDeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};
use vm_remap_cli::run::{GuestEnd, Machine};
use vmm_sys_util::eventfd::EventFd;

use crate::program::{POWER_OFF, SLEEP_PORT, Tiny, out_byte, stay};
use crate::support::{run, runs_guests, said, start};

/// What a guest may take from the tables that it is given.
const RESET_PORT: u32 = 0x602;
const PANIC_PORT: u32 = 0x505;
const SERIAL: u32 = 0x3f8;
const LINE_STATUS: u32 = 0x3fd;

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
fn huge_pages_are_taken_at_once_or_the_guest_does_not_start() {
    if !runs_guests("huge_pages_are_taken_at_once_or_the_guest_does_not_start") {
        return;
    }
    let tiny = Tiny::new(|a| {
        out_byte(a, SLEEP_PORT, POWER_OFF)?;
        stay(a)
    });
    let [kernel, path] = tiny.arguments();
    let memory = ["--memory", "size=64M,hugepages=on,hugepage_size=2M"];
    let (code, text) = said(&run(&[&[kernel, path], &memory[..]].concat(), b""));
    let free = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    let free: u32 = free.map_or(0, |text| text.trim().parse().unwrap());
    if free >= 32 {
        assert_eq!(code, Some(0), "{text}");
    } else {
        let refused = "vm-remap: cannot take 64 MiB of huge pages for guest memory: reserve";
        assert!(text.starts_with(refused), "{text}");
        assert_eq!(code, Some(1));
    }
}

#[test]
fn a_device_that_panics_ends_the_guest() {
    let name = "a_device_that_panics_ends_the_guest";
    if !runs_guests(name) {
        return;
    }
    struct Panics;
    impl MutDeviceMmio for Panics {
        fn mmio_read(&mut self, _: MmioAddress, _: MmioAddressOffset, _: &mut [u8]) {
            panic!("on purpose");
        }
        fn mmio_write(&mut self, _: MmioAddress, _: MmioAddressOffset, _: &[u8]) {}
    }
    let tiny = Tiny::new(|a| {
        a.mov(esi, 0xd000_0000_u32)?;
        a.mov(eax, dword_ptr(rsi))?;
        stay(a)
    });
    let launch = tiny.launch("size=16M");
    let mut machine = Machine::new(&launch).unwrap();
    let interrupt = EventFd::new(0).unwrap();
    let device = Arc::new(Mutex::new(Panics));
    machine.add_virtio_mmio(device, &interrupt).unwrap();
    let end = machine.run(&launch).unwrap();
    let why = "cannot run the guest on: the thread of vCPU 0 panicked";
    assert_eq!(end, GuestEnd::Broken(why.to_owned()));
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
