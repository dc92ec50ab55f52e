//! Owns the guest-physical map: where RAM, devices and windows lie. Never touches memory.
//!
//! ```text
//! 0           RAM; its first MiB as a PC has it: 640 KiB, and what the loader leaves the kernel
//! LOW_END     the gap: devices, I/O APIC, local APIC, what KVM needs for itself
//! HIGH_START  the rest of RAM, where there is more than LOW_END of it
//! windows     from the next GiB on, as far as the CPU's addresses reach
//! ```

use anyhow::{Context as _, Result, ensure};

/// 1 MiB in bytes.
pub(super) const MIB: u64 = 1 << 20;
/// 1 GiB in bytes.
pub(super) const GIB: u64 = 1 << 30;

/// A global descriptor table for the first moments of the kernel.
pub(super) const GDT: u64 = 0x500;
/// The kernel's boot parameters, one page ("zero page").
pub(super) const ZERO_PAGE: u64 = 0x7000;
/// Page tables for the first moments of the kernel: six pages.
pub(super) const PAGE_TABLES: u64 = 0x9000;
/// The kernel's command line.
pub(super) const COMMAND_LINE: u64 = 0x2_0000;
/// Above it, a PC keeps data of its firmware.
const LOW_RAM_END: u64 = 0x9_fc00;
/// ACPI tables, up to [`RESET_VECTOR`].
pub(super) const ACPI: u64 = 0xe_0000;
/// Where a PC without power starts, in real mode.
pub(super) const RESET_VECTOR: u64 = 0xf_fff0;
/// RAM above the first MiB, where the kernel is loaded.
pub(super) const HIGH_RAM_START: u64 = MIB;

/// Where RAM stops for the gap.
const LOW_END: u64 = 3 * GIB;
/// Where RAM goes on behind the gap.
const HIGH_START: u64 = 4 * GIB;

/// The virtio-mmio devices, one page for each.
pub(super) const VIRTIO: u64 = 0xd000_0000;
/// The size of a virtio-mmio device's registers in the map.
pub(super) const VIRTIO_LEN: u64 = 0x1000;
/// The registers of the I/O APIC, where KVM has it.
pub(super) const IO_APIC: u32 = 0xfec0_0000;
/// The registers of each local APIC, where KVM has it.
pub(super) const LOCAL_APIC: u32 = 0xfee0_0000;
/// A page that KVM needs for itself on some Intel CPUs.
pub(super) const IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages that KVM needs for itself on Intel CPUs.
pub(super) const TSS: usize = 0xfffb_d000;

/// On AMD CPUs with 40 address bits or more, the last 12 GiB below 1 TiB belong to the machine.
const WINDOWS_END: u64 = 0xfd_0000_0000;

/// A range of guest-physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    /// The first address.
    pub(super) base: u64,
    /// The length in bytes.
    pub(super) len: u64,
}

impl Range {
    const fn between(base: u64, end: u64) -> Self {
        Self {
            base,
            len: end.saturating_sub(base),
        }
    }

    /// The first address behind it.
    #[must_use]
    pub(super) const fn end(&self) -> u64 {
        self.base.saturating_add(self.len)
    }
}

/// What the kernel is told of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum E820 {
    Ram = 1,
    Reserved = 2,
    Acpi = 3,
}

/// What the size of RAM has to be.
pub(super) const RAM_RULE: &str = "it must be a multiple of 2M, from 16M to 512G";

/// Whether a guest can have `ram` bytes of RAM.
pub(super) fn ram_fits(ram: u64) -> bool {
    ram.is_multiple_of(2 * MIB) && (16 * MIB..=512 * GIB).contains(&ram)
}

/// Where RAM and windows lie for one size of RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    ram: u64,
}

impl Layout {
    /// A guest with `ram` bytes of RAM.
    ///
    /// # Errors
    /// A size that is no multiple of 2 MiB, below 16 MiB, or beyond what any CPU can address.
    pub(super) fn new(ram: u64) -> Result<Self> {
        ensure!(
            ram_fits(ram),
            "cannot give the guest {ram} bytes of memory: {RAM_RULE}"
        );
        Ok(Self { ram })
    }

    /// The ranges of RAM, one or two, in order.
    #[must_use]
    pub(super) fn ram(&self) -> Vec<Range> {
        let mut ranges = vec![self.low_ram()];
        let rest = self.ram.saturating_sub(LOW_END);
        if rest > 0 {
            ranges.push(Range {
                base: HIGH_START,
                len: rest,
            });
        }
        ranges
    }

    /// The range of RAM at 0, where kernel and initramfs go.
    #[must_use]
    pub(super) fn low_ram(&self) -> Range {
        Range::between(0, self.ram.min(LOW_END))
    }

    /// Where windows may lie on a CPU with that many address bits.
    ///
    /// # Errors
    /// RAM leaves no GiB of addresses.
    pub(super) fn windows(&self, address_bits: u8) -> Result<Range> {
        let end = 1_u64
            .checked_shl(address_bits.into())
            .unwrap_or(u64::MAX)
            .min(WINDOWS_END);
        let ram_end = self.ram().last().map_or(0, Range::end).max(HIGH_START);
        let base = ram_end.next_multiple_of(GIB);
        let range = Range::between(base, end);
        ensure!(
            range.len >= GIB,
            "cannot find a place for windows: RAM ends at {ram_end:#x}, and guest addresses end at \
             {end:#x}; give the guest less memory"
        );
        Ok(range)
    }

    /// The memory map for the kernel.
    pub(super) fn e820(&self) -> Vec<(Range, E820)> {
        let low = self.low_ram();
        let mut map = vec![
            (Range::between(0, LOW_RAM_END), E820::Ram),
            (Range::between(LOW_RAM_END, 0xa_0000), E820::Reserved),
            (Range::between(ACPI, HIGH_RAM_START), E820::Acpi),
            (Range::between(HIGH_RAM_START, low.end()), E820::Ram),
        ];
        map.extend(self.ram().into_iter().skip(1).map(|high| (high, E820::Ram)));
        map
    }

    /// Where `len` bytes fit at the top of low RAM, above `floor` and below `limit`.
    ///
    /// # Errors
    /// They do not.
    pub(super) fn top_of_low_ram(&self, len: u64, floor: u64, limit: u64) -> Result<u64> {
        let end = self.low_ram().end().min(limit);
        end.checked_sub(len)
            .map(|base| base & !0xfff)
            .filter(|base| *base >= floor)
            .with_context(|| {
                let (need, have) = (floor.saturating_add(len), end);
                format!(
                    "cannot place the initramfs of {len} bytes: kernel and initramfs need {} MiB \
                     and {} MiB are there; give the guest more memory",
                    need.div_ceil(MIB),
                    have / MIB
                )
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_cut_at_the_gap_and_loses_nothing() {
        for ram in [16 * MIB, 512 * MIB, 3 * GIB, 3 * GIB + 2 * MIB, 9 * GIB] {
            let layout = Layout::new(ram).unwrap();
            let ranges = layout.ram();
            assert_eq!(ranges.iter().map(|range| range.len).sum::<u64>(), ram);
            assert!(
                ranges
                    .iter()
                    .all(|r| r.end() <= LOW_END || r.base == HIGH_START)
            );
        }
    }

    #[test]
    fn sizes_that_make_no_guest_are_refused() {
        for ram in [0, 2 * MIB, 16 * MIB + 4096, 513 * GIB, u64::MAX] {
            let error = Layout::new(ram).unwrap_err().to_string();
            assert!(error.starts_with(&format!("cannot give the guest {ram} bytes")));
        }
    }

    #[test]
    fn the_map_for_the_kernel_is_sorted_and_has_all_ram_but_the_firmware_s() {
        for ram in [64 * MIB, 5 * GIB] {
            let map = Layout::new(ram).unwrap().e820();
            let ends = map.iter().map(|(range, _)| range.end());
            let next = map.iter().skip(1).map(|(range, _)| range.base);
            assert!(ends.zip(next).all(|(end, base)| end <= base), "{map:x?}");
            let usable: u64 = map
                .iter()
                .filter(|(_, kind)| *kind == E820::Ram)
                .map(|(range, _)| range.len)
                .sum();
            assert_eq!(usable, ram - (HIGH_RAM_START - LOW_RAM_END));
        }
    }

    #[test]
    fn windows_lie_above_ram_and_the_gap_on_a_gib() {
        let range = |ram, bits| Layout::new(ram).unwrap().windows(bits);
        assert_eq!(
            range(64 * MIB, 36).unwrap(),
            Range::between(4 * GIB, 64 * GIB)
        );
        assert_eq!(range(5 * GIB, 46).unwrap().base, 6 * GIB);
        assert_eq!(range(5 * GIB + 2 * MIB, 46).unwrap().base, 7 * GIB);
        assert_eq!(range(64 * MIB, 64).unwrap().end(), WINDOWS_END);
        let error = range(64 * GIB, 36).unwrap_err().to_string();
        assert!(
            error.starts_with("cannot find a place for windows: RAM ends at"),
            "{error}"
        );
    }

    #[test]
    fn the_initramfs_goes_to_the_top_and_never_into_the_kernel() {
        let layout = Layout::new(64 * MIB).unwrap();
        let place = |len, floor, limit| layout.top_of_low_ram(len, floor, limit);
        assert_eq!(place(5000, 32 * MIB, u64::MAX).unwrap(), 64 * MIB - 8192);
        assert_eq!(place(4096, 32 * MIB, 40 * MIB).unwrap(), 40 * MIB - 4096);
        assert_eq!(place(32 * MIB, 32 * MIB, u64::MAX).unwrap(), 32 * MIB);
        let error = place(33 * MIB, 32 * MIB, u64::MAX).unwrap_err().to_string();
        assert_eq!(
            error,
            "cannot place the initramfs of 34603008 bytes: kernel and initramfs need 65 MiB and \
             64 MiB are there; give the guest more memory"
        );
    }
}
