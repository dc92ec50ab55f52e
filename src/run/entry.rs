//! Owns the state in which a vCPU starts: long mode with an identity map for the first one, reset
//! for the others, and what a PC's firmware leaves in each. Never runs a vCPU.

use anyhow::{Context as _, Result};
use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

use super::layout::{GDT, PAGE_TABLES, RESET_VECTOR, ZERO_PAGE};
use super::power::{RESET_PORT, RESET_VALUE};

const PAGE: u64 = 0x1000;
/// How much the page tables map onto itself, in GiB: all of low RAM, and the gap.
const MAPPED_GIB: u64 = 4;
const PRESENT_WRITABLE: u64 = 0x3;
/// The same, for a 2 MiB page.
const LARGE: u64 = 0x83;

// The selectors that the boot protocol asks for.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const TASK: u16 = 0x20;

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// `IA32_MISC_ENABLE` with fast strings, and `IA32_MTRR_DEF_TYPE`: on, write-back everywhere.
const MISC_ENABLE: (u32, u64) = (0x1a0, 1);
const MTRR_DEF_TYPE: (u32, u64) = (0x2ff, 0x806);

/// Vector registers of the local APIC that reach the CPU's pins, as offsets of its registers.
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const DELIVER_EXTERNAL: u32 = 0x700;
const DELIVER_NMI: u32 = 0x400;

/// Every page table entry and descriptor, as (guest-physical address, value).
fn tables() -> Vec<(u64, u64)> {
    let entry = |table: u64, index: u64| table.wrapping_add(index.wrapping_mul(8));
    let page = |number: u64| PAGE_TABLES.wrapping_add(number.wrapping_mul(PAGE));
    let mut entries = vec![
        (entry(GDT, u64::from(CODE >> 3)), 0x00af_9b00_0000_ffff),
        (entry(GDT, u64::from(DATA >> 3)), 0x00cf_9300_0000_ffff),
        (entry(GDT, u64::from(TASK >> 3)), 0x0000_8b00_0000_0067),
        (entry(PAGE_TABLES, 0), page(1) | PRESENT_WRITABLE),
    ];
    for gib in 0..MAPPED_GIB {
        let directory = page(gib.wrapping_add(2));
        entries.push((entry(page(1), gib), directory | PRESENT_WRITABLE));
        entries.extend((0..512).map(|index| {
            let address = gib << 30 | index << 21;
            (entry(directory, index), address | LARGE)
        }));
    }
    entries
}

/// All the firmware there is: what is started from the reset vector resets the machine.
///
/// Linux goes there to reboot: with ACPI of the hardware-reduced kind it leaves the reset register
/// alone, asks EFI, and where there is none, the BIOS (`arch/x86/kernel/reboot.c`).
fn firmware() -> [u8; 9] {
    let [low, high] = RESET_PORT.to_le_bytes();
    // mov dx, RESET_PORT; mov al, RESET_VALUE; out dx, al; hlt; and again.
    [0xba, low, high, 0xb0, RESET_VALUE, 0xee, 0xf4, 0xeb, 0xfd]
}

/// Writes what the first vCPU's registers point to, and the firmware.
pub(super) fn write_tables(memory: &GuestMemoryMmap) -> Result<()> {
    for (address, value) in tables() {
        memory
            .write_obj(value, GuestAddress(address))
            .context("cannot write page tables into guest memory")?;
    }
    memory
        .write_slice(&firmware(), GuestAddress(RESET_VECTOR))
        .context("cannot write the reset vector into guest memory")
}

fn segment(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        s: 1,
        g: 1,
        ..Default::default()
    }
}

fn long_mode(sregs: &mut kvm_sregs) {
    sregs.cs = segment(CODE, 0xb);
    sregs.cs.l = 1;
    let mut data = segment(DATA, 3);
    data.db = 1;
    (sregs.ss, sregs.ds, sregs.es, sregs.fs, sregs.gs) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        limit: 0x67,
        selector: TASK,
        type_: 0xb,
        present: 1,
        ..Default::default()
    };
    sregs.gdt.base = GDT;
    sregs.gdt.limit = TASK.saturating_add(15);
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cr3 = PAGE_TABLES;
    sregs.cr4 = CR4_PAE;
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.efer = EFER_LME | EFER_LMA;
}

/// Has the first vCPU start at `entry`, in long mode, with the boot parameters in RSI.
pub(super) fn enter(vcpu: &VcpuFd, entry: u64) -> Result<()> {
    let mut sregs = vcpu
        .get_sregs()
        .context("cannot read the registers of vCPU 0")?;
    long_mode(&mut sregs);
    vcpu.set_sregs(&sregs)
        .context("cannot put vCPU 0 into long mode")?;
    let regs = kvm_regs {
        rip: entry,
        rsi: ZERO_PAGE,
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&regs)
        .context("cannot set the registers of vCPU 0")
}

/// Leaves in a vCPU what firmware would have.
pub(super) fn prepare(vcpu: &VcpuFd, id: u8) -> Result<()> {
    let entries = [MISC_ENABLE, MTRR_DEF_TYPE].map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    });
    let msrs = Msrs::from_entries(&entries).context("cannot list registers")?;
    let set = vcpu
        .set_msrs(&msrs)
        .with_context(|| format!("cannot set the model-specific registers of vCPU {id}"))?;
    if set < entries.len() {
        // A CPU without one of them starts as it is.
        log::debug!(
            "vCPU {id} has {set} of {} model-specific registers",
            entries.len()
        );
    }
    let context = || format!("cannot set the local APIC of vCPU {id}");
    let mut apic = vcpu.get_lapic().with_context(context)?;
    for (at, deliver) in [(LVT_LINT0, DELIVER_EXTERNAL), (LVT_LINT1, DELIVER_NMI)] {
        let places = apic.regs.iter_mut().skip(at).take(4);
        for (place, byte) in places.zip(deliver.to_le_bytes()) {
            *place = byte.cast_signed();
        }
    }
    vcpu.set_lapic(&apic).with_context(context)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::layout::{COMMAND_LINE, GIB};
    use super::*;

    #[test]
    fn four_gib_are_mapped_onto_themselves() {
        let memory: BTreeMap<u64, u64> = tables().into_iter().collect();
        let walk = |address: u64| {
            let mut table = PAGE_TABLES;
            for shift in [39, 30] {
                let entry = memory.get(&(table + (address >> shift) % 512 * 8))?;
                assert_eq!(entry & 0xfff, PRESENT_WRITABLE);
                table = entry & !0xfff;
            }
            let entry = memory.get(&(table + (address >> 21) % 512 * 8))?;
            assert_eq!(entry & 0x1f_ffff, LARGE);
            Some(entry & !0x1f_ffff | address & 0x1f_ffff)
        };
        for address in [0, 0x10_0200, 3 * GIB - 1, 4 * GIB - 1] {
            assert_eq!(walk(address), Some(address));
        }
        assert_eq!(walk(4 * GIB), None);
    }

    #[test]
    fn the_firmware_is_what_it_says_and_ends_below_the_first_mib() {
        let code = firmware();
        assert!(code.len() <= 16);
        let decoder = iced_x86::Decoder::new(16, &code, iced_x86::DecoderOptions::NONE);
        let text: Vec<_> = decoder.into_iter().map(|i| i.mnemonic()).collect();
        use iced_x86::Mnemonic::{Hlt, Jmp, Mov, Out};
        assert_eq!(text, [Mov, Mov, Out, Hlt, Jmp]);
    }

    #[test]
    fn tables_lie_in_ram_and_off_what_else_lies_there() {
        let in_tables = |address: u64| (PAGE_TABLES..COMMAND_LINE).contains(&address);
        let in_gdt = |address: u64| (GDT..ZERO_PAGE).contains(&address);
        assert!(tables().iter().all(|(at, _)| in_tables(*at) || in_gdt(*at)));
    }
}
