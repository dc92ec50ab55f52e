//! Owns where things lie in guest-physical memory. Never touches that memory.
//!
//! ```text
//! 0x0000_1000  GDT                0x0000_2000  TSS (all zero)
//! 0x0000_3000  code, all programs 0x0000_4000  code of the caller's
//! 0x0001_0000  counters, one page per vCPU
//! 0x0005_0000  page tables, then, from the next 2 MiB on, the working set
//! end of RAM   ... the window, and the doorbell beside it: no slot made here
//! ```

use std::ops::RangeInclusive;

use super::error::GuestError;

/// The page size all programs step by, in bytes.
pub const PAGE: u64 = 4096;
/// The size of a large page in the guest's own tables, in bytes.
pub const BLOCK: u64 = 2 << 20;
/// The first guest-physical address the guest's tables cannot map.
pub const TOP: u64 = 512 << 30;
/// The most vCPUs a guest can have.
pub const MAX_VCPUS: usize = 64;

pub(super) const GDT: u64 = 0x1000;
pub(super) const TSS: u64 = 0x2000;
pub(super) const CODE: u64 = 0x3000;
/// Code of the caller's, a page for each of the first vCPUs.
pub(super) const OWN_CODE: u64 = 0x4000;
pub(super) const OWN_CODE_END: u64 = COUNTERS;
const COUNTERS: u64 = 0x1_0000;
pub(super) const TABLES: u64 = 0x5_0000;
const GIB: u64 = 1 << 30;
/// Sizes of RAM that have room for tables and a working set.
const RAM_LEN: RangeInclusive<u64> = 8 << 20..=256 << 30;

/// Completed passes of an endless program, as an offset in the counter page.
pub(super) const PASSES: u32 = 0;
/// Stale reads seen by `Watch`, as an offset in the counter page.
pub(super) const STALE: u32 = 64;
/// The word `Watch` compares with, as an offset in the counter page.
pub(super) const EXPECTED: u32 = 128;

/// A guest-physical range.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct GpaRange {
    /// The first address.
    pub base: u64,
    /// The length in bytes.
    pub len: u64,
}

impl GpaRange {
    /// The first address after the range.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.base.saturating_add(self.len)
    }

    /// Whether all of `inner` lies inside.
    #[must_use]
    pub const fn contains(self, inner: Self) -> bool {
        inner.base >= self.base
            && match inner.base.checked_add(inner.len) {
                Some(end) => end <= self.end(),
                None => false,
            }
    }

    const fn overlaps(self, other: Self) -> bool {
        self.base < other.end() && other.base < self.end()
    }

    /// The smallest run of whole 2 MiB blocks around the range.
    const fn blocks(self) -> Self {
        let base = self.base & !(BLOCK.wrapping_sub(1));
        let end = round_up(self.end());
        Self {
            base,
            len: end.saturating_sub(base),
        }
    }
}

/// Rounds up to 2 MiB; addresses here stay far below the end of `u64`.
const fn round_up(address: u64) -> u64 {
    address.saturating_add(BLOCK.wrapping_sub(1)) & !(BLOCK.wrapping_sub(1))
}

/// Where everything lies in one guest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Layout {
    ram: GpaRange,
    window: Option<GpaRange>,
    working_set: GpaRange,
    doorbell: u64,
}

impl Layout {
    /// Places the parts of a guest.
    ///
    /// # Errors
    /// [`GuestError::Layout`] names the figure that is wrong.
    pub fn new(ram_len: u64, window: Option<GpaRange>) -> Result<Self, GuestError> {
        let wrong = |reason: String| Err(GuestError::Layout { reason });
        if !RAM_LEN.contains(&ram_len) || !ram_len.is_multiple_of(BLOCK) {
            return wrong(format!(
                "{ram_len:#x} bytes of RAM; it must be a multiple of 2 MiB from 8 MiB to 256 GiB"
            ));
        }
        let ram = GpaRange {
            base: 0,
            len: ram_len,
        };
        if let Some(w) = window {
            let fits = w.base.checked_add(w.len).is_some_and(|end| end <= TOP);
            let aligned = w.base.is_multiple_of(PAGE) && w.len.is_multiple_of(PAGE);
            if w.len == 0 || !fits || !aligned || w.overlaps(ram) {
                return wrong(format!(
                    "a window at [{:#x}, +{:#x}); it must be whole 4 KiB pages between the end \
                     of RAM ({ram_len:#x}) and 512 GiB",
                    w.base, w.len
                ));
            }
        }
        let Some(doorbell) = doorbell(ram, window) else {
            return wrong("the window leaves no 2 MiB for the doorbell; make it smaller".into());
        };
        let mut layout = Self {
            ram,
            window,
            working_set: ram,
            doorbell,
        };
        let start = round_up(layout.tables_end());
        let len = ram_len.saturating_sub(start);
        layout.working_set = GpaRange { base: start, len };
        if len == 0 {
            return wrong(format!(
                "{ram_len:#x} bytes of RAM have no room for a working set after the page \
                 tables, which end at {start:#x}"
            ));
        }
        Ok(layout)
    }

    /// All of RAM, memslot 0.
    #[must_use]
    pub const fn ram(&self) -> GpaRange {
        self.ram
    }

    /// The window as it was asked for.
    #[must_use]
    pub const fn window(&self) -> Option<GpaRange> {
        self.window
    }

    /// The part of RAM that is free for the caller's programs, 2 MiB-aligned.
    #[must_use]
    pub const fn working_set(&self) -> GpaRange {
        self.working_set
    }

    /// The page a finished one-shot program writes to. No slot may cover it.
    #[must_use]
    pub const fn doorbell(&self) -> u64 {
        self.doorbell
    }

    /// The counter page of a vCPU.
    pub(super) fn counters(vcpu: usize) -> u64 {
        COUNTERS.wrapping_add((vcpu as u64).wrapping_mul(PAGE))
    }

    /// The ranges the guest's page tables map, in whole 2 MiB blocks.
    pub(super) fn mapped(&self) -> impl Iterator<Item = GpaRange> {
        let bell = GpaRange {
            base: self.doorbell,
            len: BLOCK,
        };
        [
            Some(self.ram),
            self.window.map(GpaRange::blocks),
            Some(bell),
        ]
        .into_iter()
        .flatten()
    }

    /// The end of the page tables: the top two levels, and one table per GiB.
    fn tables_end(&self) -> u64 {
        let gibs = |r: GpaRange| {
            let last = r.end().saturating_sub(1) / GIB;
            last.saturating_sub(r.base / GIB).saturating_add(1)
        };
        // Ranges in one GiB are counted twice: a few pages too many, never too few.
        let tables = self.mapped().map(gibs).sum::<u64>().saturating_add(2);
        TABLES.saturating_add(tables.saturating_mul(PAGE))
    }

    /// Refuses a range a program has no business in.
    pub(super) fn check(&self, base: u64, len: u64, align: u64) -> Result<(), GuestError> {
        let range = GpaRange { base, len };
        let window = self.window.map(GpaRange::blocks);
        let inside = self.working_set.contains(range) || window.is_some_and(|w| w.contains(range));
        if len > 0 && base.is_multiple_of(align) && len.is_multiple_of(align) && inside {
            Ok(())
        } else {
            Err(GuestError::Range { base, len, align })
        }
    }
}

/// The first 2 MiB block above RAM that the window does not touch.
fn doorbell(ram: GpaRange, window: Option<GpaRange>) -> Option<u64> {
    let beside_ram = GpaRange {
        base: ram.end(),
        len: BLOCK,
    };
    let base = match window.map(GpaRange::blocks) {
        Some(w) if w.overlaps(beside_ram) => w.end(),
        _ => beside_ram.base,
    };
    (base.saturating_add(BLOCK) <= TOP).then_some(base)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn range(base: u64, len: u64) -> GpaRange {
        GpaRange { base, len }
    }

    #[test]
    fn layout_without_window_puts_the_doorbell_after_ram() {
        let layout = Layout::new(80 * MIB, None).unwrap();
        assert_eq!(layout.doorbell(), 80 * MIB);
        assert_eq!(layout.working_set(), range(2 * MIB, 78 * MIB));
    }

    #[test]
    fn layout_with_window_beside_ram_moves_the_doorbell_behind_it() {
        let window = range(80 * MIB, 3 * PAGE);
        let layout = Layout::new(80 * MIB, Some(window)).unwrap();
        assert_eq!(layout.doorbell(), 82 * MIB);
    }

    #[test]
    fn layout_with_window_to_the_top_keeps_the_doorbell_low() {
        let layout = Layout::new(80 * MIB, Some(range(4 << 30, TOP - (4 << 30)))).unwrap();
        assert_eq!(layout.doorbell(), 80 * MIB);
        // 508 tables for the window, and the working set starts after them.
        assert_eq!(layout.working_set().base, 4 * MIB);
    }

    #[test]
    fn layout_window_everywhere_leaves_no_doorbell() {
        let window = range(80 * MIB, TOP - 80 * MIB);
        let text = Layout::new(80 * MIB, Some(window)).unwrap_err().to_string();
        assert_eq!(
            text,
            "cannot lay the guest out: the window leaves no 2 MiB for the doorbell; \
             make it smaller"
        );
    }

    #[test]
    fn layout_refuses_windows_that_cannot_be() {
        let ram = 80 * MIB;
        for (base, len) in [
            (ram, 0),
            (ram + 1, PAGE),
            (ram, PAGE + 1),
            (ram - PAGE, PAGE),
            (TOP, PAGE),
            (u64::MAX - PAGE + 1, PAGE),
            (PAGE, u64::MAX - PAGE + 1),
        ] {
            let made = Layout::new(ram, Some(range(base, len)));
            assert!(made.is_err(), "window {base:#x} +{len:#x}");
        }
    }

    #[test]
    fn layout_refuses_ram_that_cannot_be() {
        for len in [0, 2 * MIB, 9 * MIB, 80 * MIB + 1, u64::MAX] {
            assert!(Layout::new(len, None).is_err(), "RAM {len:#x}");
        }
    }

    #[test]
    fn check_keeps_programs_out_of_tables_and_doorbell() {
        let window = range(4 << 30, PAGE);
        let layout = Layout::new(80 * MIB, Some(window)).unwrap();
        let allowed = |base, len| layout.check(base, len, PAGE).is_ok();
        assert!(allowed(2 * MIB, 78 * MIB));
        assert!(allowed(4 << 30, 2 * MIB), "the whole block is mapped");
        assert!(!allowed(TABLES, PAGE));
        assert!(!allowed(layout.doorbell(), PAGE));
        assert!(!allowed(2 * MIB, 79 * MIB));
        assert!(!allowed(2 * MIB, 0));
        assert!(!allowed(2 * MIB + 8, PAGE));
        assert!(!allowed(u64::MAX - PAGE + 1, PAGE));
    }
}
