//! Owns what makes a vCPU start in 64-bit mode, ring 3: page tables, GDT and
//! special registers. Never runs a vCPU.
//!
//! Ring 3 on purpose: some hosts run only ring 3 natively and emulate ring 0
//! instruction by instruction, which would measure the emulator.

use std::collections::BTreeMap;

use kvm_bindings::{CpuId, kvm_cpuid_entry2, kvm_segment, kvm_sregs, kvm_xcrs};

use super::memory::{BLOCK, GDT, Layout, PAGE, TABLES, TSS};

/// Present, writable, open to ring 3, and already accessed: KVM has nothing
/// to write back into a table entry.
const TABLE: u64 = 0x27;
/// The same for a 2 MiB page, which is also dirty.
const LARGE: u64 = 0xe7;

// The selectors Linux uses for 64-bit user code: hosts that run ring 3
// natively have just these in the real GDT.
const USER_DATA: u16 = 0x2b;
const USER_CODE: u16 = 0x33;
const TASK: u16 = 0x40;

const CR0_PE: u64 = 1 << 0;
const CR0_MP: u64 = 1 << 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_WP: u64 = 1 << 16;
const CR0_AM: u64 = 1 << 18;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXMMEXCPT: u64 = 1 << 10;
const CR4_OSXSAVE: u64 = 1 << 18;
const CR4_SMAP: u64 = 1 << 21;
/// CPUID leaf 7, EBX: the processor has SMAP.
const CPUID_SMAP: u32 = 1 << 20;
/// x87, SSE and AVX state.
const XCR0: u64 = 7;
/// CPUID leaf 1, ECX: the processor has XSAVE.
const CPUID_XSAVE: u32 = 1 << 26;
const EFER_SCE: u64 = 1 << 0;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// Every entry of the page tables, as (guest-physical address, value).
pub(super) fn page_tables(layout: &Layout) -> Vec<(u64, u64)> {
    let slot = |table: u64, index: u64| table.wrapping_add((index % 512).wrapping_mul(8));
    let pdpt = TABLES.wrapping_add(PAGE);
    let mut next = pdpt;
    let mut directories = BTreeMap::new();
    let mut entries = vec![(TABLES, pdpt | TABLE)];
    for range in layout.mapped() {
        let mut block = range.base;
        while block < range.end() {
            let gib = block >> 30;
            let directory = *directories.entry(gib).or_insert_with(|| {
                next = next.wrapping_add(PAGE);
                entries.push((slot(pdpt, gib), next | TABLE));
                next
            });
            entries.push((slot(directory, block >> 21), block | LARGE));
            block = block.saturating_add(BLOCK);
        }
    }
    entries
}

fn segment(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: 3,
        s: 1,
        g: 1,
        ..Default::default()
    }
}

/// Read/write data, accessed.
fn user_data() -> kvm_segment {
    let mut data = segment(USER_DATA, 3);
    data.db = 1;
    data
}

/// Execute/read code, accessed, 64-bit.
fn user_code() -> kvm_segment {
    let mut code = segment(USER_CODE, 11);
    code.l = 1;
    code
}

/// A busy 64-bit TSS.
fn task() -> kvm_segment {
    kvm_segment {
        base: TSS,
        limit: 0x67,
        selector: TASK,
        type_: 11,
        present: 1,
        ..Default::default()
    }
}

/// The GDT the selectors above point into, as (guest-physical address, value).
/// The programs load no segment; it is there for whoever reads it.
pub(super) fn gdt() -> [(u64, u64); 4] {
    let at = |selector: u16| GDT.wrapping_add(u64::from(selector & !7));
    [
        (at(USER_DATA), 0x00cf_f300_0000_ffff),
        (at(USER_CODE), 0x00af_fb00_0000_ffff),
        (at(TASK), 0x0000_8b00_0000_0067 | (TSS << 16)),
        (at(TASK).wrapping_add(8), 0),
    ]
}

/// Turns a fresh vCPU's special registers into those of ring 3, 64-bit mode.
pub(super) fn enter(sregs: &mut kvm_sregs) {
    sregs.cs = user_code();
    sregs.ss = user_data();
    sregs.ds = user_data();
    sregs.es = user_data();
    sregs.fs = user_data();
    sregs.gs = user_data();
    sregs.tr = task();
    sregs.ldt = kvm_segment {
        type_: 2,
        unusable: 1,
        ..Default::default()
    };
    sregs.gdt.base = GDT;
    sregs.gdt.limit = 0x4f;
    // No interrupt ever arrives, and an exception is a bug: it ends as a
    // shutdown exit, which names itself.
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cr3 = TABLES;
    sregs.cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT;
    sregs.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG;
    sregs.efer = EFER_SCE | EFER_LME | EFER_LMA;
}

/// Keeps ring 0 out of the pages of ring 3, where `cpuid` has it, as every stock kernel does: the
/// hypervisor's own walk of the page tables is a ring 0 one.
pub(super) fn enter_smap(sregs: &mut kvm_sregs, cpuid: &CpuId) {
    if leaf(cpuid, 7).is_some_and(|leaf| leaf.ebx & CPUID_SMAP != 0) {
        sregs.cr4 |= CR4_SMAP;
    }
}

/// Lets the guest use AVX, where `cpuid` has it; registers for [`kvm_xcrs`] come with it.
pub(super) fn enter_avx(sregs: &mut kvm_sregs, cpuid: &CpuId) -> Option<kvm_xcrs> {
    let xsave = leaf(cpuid, 1)?.ecx & CPUID_XSAVE != 0;
    if !xsave || u64::from(leaf(cpuid, 0xd)?.eax) & XCR0 != XCR0 {
        return None;
    }
    sregs.cr4 |= CR4_OSXSAVE;
    let mut xcrs = kvm_xcrs {
        nr_xcrs: 1,
        ..Default::default()
    };
    xcrs.xcrs[0].value = XCR0;
    Some(xcrs)
}

fn leaf(cpuid: &CpuId, function: u32) -> Option<&kvm_cpuid_entry2> {
    let mut leaves = cpuid.as_slice().iter();
    leaves.find(|leaf| leaf.function == function && leaf.index == 0)
}

#[cfg(test)]
#[expect(
    clippy::arithmetic_side_effects,
    reason = "figures of a test are small"
)]
mod tests {
    use super::super::memory::GpaRange;
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Walks the tables as the processor does.
    fn translate(entries: &[(u64, u64)], address: u64) -> Option<u64> {
        let memory: BTreeMap<u64, u64> = entries.iter().copied().collect();
        let mut table = TABLES;
        for shift in [39, 30] {
            let entry = memory.get(&(table + (address >> shift) % 512 * 8))?;
            assert_eq!(entry & 0xfff, TABLE);
            table = entry & !0xfff;
        }
        let entry = memory.get(&(table + (address >> 21) % 512 * 8))?;
        assert_eq!(entry & (BLOCK - 1), LARGE);
        Some((entry & !(BLOCK - 1)) | (address & (BLOCK - 1)))
    }

    fn check(ram: u64, window: Option<GpaRange>) {
        let layout = Layout::new(ram, window).unwrap();
        let entries = page_tables(&layout);
        let mut mapped = 0;
        for range in layout.mapped() {
            mapped += range.len / BLOCK;
            for address in [range.base, range.base + range.len / 2, range.end() - 1] {
                assert_eq!(translate(&entries, address), Some(address));
            }
        }
        let large = entries.iter().filter(|(_, e)| e & 0x80 != 0).count() as u64;
        assert_eq!(large, mapped, "nothing but the layout is mapped");
        let end = entries.iter().map(|(at, _)| at + 8).max().unwrap();
        assert!(end <= layout.working_set().base, "tables end at {end:#x}");
    }

    #[test]
    fn page_tables_map_ram_and_doorbell_onto_themselves() {
        check(80 * MIB, None);
        check(8 * MIB, None);
    }

    #[test]
    fn page_tables_round_the_window_outward() {
        let window = GpaRange {
            base: (4 << 30) + 3 * PAGE,
            len: 2 * MIB,
        };
        check(80 * MIB, Some(window));
    }

    #[test]
    fn page_tables_reach_across_gibs_and_up_to_the_top() {
        for (base, len) in [(3 << 30, 64 << 30), ((512 << 30) - PAGE, PAGE)] {
            check(80 * MIB, Some(GpaRange { base, len }));
        }
        check(5 << 30, None);
    }

    #[test]
    fn page_tables_leave_the_rest_unmapped() {
        let layout = Layout::new(80 * MIB, None).unwrap();
        let entries = page_tables(&layout);
        assert_eq!(translate(&entries, 82 * MIB), None);
        assert_eq!(translate(&entries, 4 << 30), None);
    }

    #[test]
    fn enter_makes_ring_3_long_mode() {
        let mut sregs = kvm_sregs::default();
        enter(&mut sregs);
        assert_eq!((sregs.cs.dpl, sregs.cs.l, sregs.cs.db), (3, 1, 0));
        assert_eq!((sregs.ss.dpl, sregs.ss.selector & 3), (3, 3));
        assert_eq!(sregs.efer & (EFER_LME | EFER_LMA), EFER_LME | EFER_LMA);
        assert_eq!(sregs.cr0 & (CR0_PG | CR0_PE), CR0_PG | CR0_PE);
    }
}
