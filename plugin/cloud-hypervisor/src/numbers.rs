//! Owns which memslot numbers are the windows'. Never registers a slot.
//!
//! cloud-hypervisor counts its own from 0 up and uses again what came back, so the windows take
//! theirs from the top down, and from the upper half only.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::error::RemapError;

/// How many memslots KVM has on x86, unless it says otherwise (Linux: `KVM_USER_MEM_SLOTS`,
/// `arch/x86/include/asm/kvm_host.h` and `include/linux/kvm_host.h`).
pub(crate) const MEMSLOTS: u32 = 32764;

#[derive(Debug)]
pub(crate) struct Numbers {
    pool: Range<u32>,
    /// Ranges that windows have, end by start.
    used: BTreeMap<u32, u32>,
    /// The VMM has used a number of the pool itself.
    foreign: Option<u32>,
}

impl Numbers {
    /// The numbers of a VM with `memslots` memslots.
    pub(crate) fn new(memslots: u32) -> Self {
        Self {
            pool: memslots / 2..memslots,
            used: BTreeMap::new(),
            foreign: None,
        }
    }

    /// Takes `count` numbers in a row, as high as there are any.
    pub(crate) fn take(&mut self, count: u32) -> Result<Range<u32>, RemapError> {
        if let Some(slot) = self.foreign {
            return Err(self.reserved(slot));
        }
        let mut top = self.pool.end;
        for (start, end) in self.used.iter().rev() {
            if top.saturating_sub(*end) >= count {
                break;
            }
            top = *start;
        }
        let start = top.checked_sub(count).filter(|at| *at >= self.pool.start);
        let start = start.ok_or(RemapError::SlotNumbers { needed: count })?;
        self.used.insert(start, top);
        Ok(start..top)
    }

    pub(crate) fn give_back(&mut self, range: &Range<u32>) {
        self.used.remove(&range.start);
    }

    /// The VMM is about to create a region with `slot` itself. It may have any number, as long as no
    /// window is there.
    pub(crate) fn pass(&mut self, slot: u32) -> Result<(), RemapError> {
        self.check(slot)?;
        if self.pool.contains(&slot) {
            self.foreign = Some(slot);
        }
        Ok(())
    }

    /// Whether `slot` cannot be a window's.
    pub(crate) fn check(&self, slot: u32) -> Result<(), RemapError> {
        if self.used.is_empty() || !self.pool.contains(&slot) {
            return Ok(());
        }
        Err(self.reserved(slot))
    }

    fn reserved(&self, slot: u32) -> RemapError {
        RemapError::SlotReserved {
            slot,
            first: self.pool.start,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_taken_from_the_top_and_used_again() {
        let mut numbers = Numbers::new(200);
        assert_eq!(numbers.take(30).unwrap(), 170..200);
        assert_eq!(numbers.take(20).unwrap(), 150..170);
        numbers.give_back(&(170..200));
        assert_eq!(numbers.take(40).unwrap(), 110..150);
        assert_eq!(numbers.take(30).unwrap(), 170..200);
        assert_eq!(
            numbers.take(11).unwrap_err().to_string(),
            "cannot open the window: it needs 11 memslot numbers in a row, and the windows' share of \
             KVM's has no such; use larger segments, or close windows"
        );
        assert_eq!(numbers.take(10).unwrap(), 100..110);
    }

    #[test]
    fn the_vmm_and_the_windows_never_share_a_number() {
        let mut numbers = Numbers::new(200);
        numbers.pass(99).unwrap();
        let taken = numbers.take(10).unwrap();
        assert_eq!(
            numbers.pass(100).unwrap_err().to_string(),
            "cannot use memslot 100 beside windows: the numbers from 100 on are theirs; use a lower one"
        );
        numbers.give_back(&taken);
        numbers.pass(100).unwrap();
        numbers.take(1).unwrap_err();
    }
}
