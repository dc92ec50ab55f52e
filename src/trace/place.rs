//! Owns where the mappings of a trace lie: those that leave it open get the first room that fits,
//! so that every rival replays the same. Never maps anything.

use std::collections::BTreeMap;
use std::time::Duration;

use vm_allocator::{AddressAllocator, AllocPolicy, RangeInclusive};
use vm_remap::PageRange;

use super::{Kind, Offset, Operation, Trace, TraceError};
use crate::guest::PAGE;

/// A step whose place is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// When, from the start.
    pub at: Duration,
    /// Where in the window.
    pub range: PageRange,
    /// What happens there.
    pub action: Action,
}

/// What happens to a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A hole becomes a mapping.
    Map(Kind),
    /// Other memory comes behind a mapping.
    Replace(Kind),
    /// A mapping becomes a hole.
    Unmap,
}

/// Finds a place for every mapping. `alignment` is asked with the length of those that may lie
/// anywhere, in bytes.
///
/// # Errors
/// [`TraceError`] names the step, counted from 1, that finds no room: where mappings would overlap,
/// or where the window is full.
pub fn place(trace: &Trace, alignment: impl Fn(u64) -> u64) -> Result<Vec<Placed>, TraceError> {
    let mut room = Room::new(trace.window)?;
    let steps = trace.steps.iter().enumerate();
    steps
        .map(|(index, step)| {
            let (range, action) = room
                .step(step.operation, &alignment)
                .map_err(|reason| TraceError::of_operation(index.saturating_add(1), reason))?;
            Ok(Placed {
                at: Duration::from_micros(step.at_us),
                range,
                action,
            })
        })
        .collect()
}

/// The window, as far as it is taken.
struct Room {
    free: AddressAllocator,
    /// By the number of the mapping.
    live: BTreeMap<u64, RangeInclusive>,
    /// First and last byte of each. The allocator does not see that an exact place is taken, where
    /// all of it lies inside one allocation (vm-allocator 0.1.4, `IntervalTree::find_candidate`).
    taken: BTreeMap<u64, u64>,
}

impl Room {
    fn new(window: u64) -> Result<Self, TraceError> {
        let free = AddressAllocator::new(0, window)
            .map_err(|error| TraceError::of_operation(0, format!("no window: {error}")))?;
        Ok(Self {
            free,
            live: BTreeMap::new(),
            taken: BTreeMap::new(),
        })
    }

    fn step(
        &mut self,
        operation: Operation,
        alignment: impl Fn(u64) -> u64,
    ) -> Result<(PageRange, Action), String> {
        match operation {
            Operation::Map {
                id,
                offset,
                len,
                kind,
            } => {
                let taken = match offset {
                    Offset::Auto => self.anywhere(len, alignment(len))?,
                    Offset::At(offset) => self.exactly(offset, len)?,
                };
                self.live.insert(id, taken);
                self.taken.insert(taken.start(), taken.end());
                Ok((range(&taken)?, Action::Map(kind)))
            }
            Operation::Replace { id, kind } => {
                Ok((range(self.living(id)?)?, Action::Replace(kind)))
            }
            Operation::Unmap { id } => {
                let taken = *self.living(id)?;
                self.live.remove(&id);
                self.taken.remove(&taken.start());
                let freed = self.free.free(&taken);
                freed.map_err(|error| format!("cannot free the mapping {id}: {error}"))?;
                Ok((range(&taken)?, Action::Unmap))
            }
        }
    }

    fn anywhere(&mut self, len: u64, alignment: u64) -> Result<RangeInclusive, String> {
        let found = self.free.allocate(len, alignment, AllocPolicy::FirstMatch);
        found.map_err(|_| format!("the window has no room for {len:#x} bytes"))
    }

    fn exactly(&mut self, at: u64, len: u64) -> Result<RangeInclusive, String> {
        let overlap = || format!("{len:#x} bytes at {at:#x} overlap a mapping that is there");
        // The trace was read: the mapping lies in the window.
        let last = at.saturating_add(len.saturating_sub(1));
        let before = self.taken.range(..=last).next_back();
        if before.is_some_and(|(_, end)| *end >= at) {
            return Err(overlap());
        }
        let found = self.free.allocate(len, PAGE, AllocPolicy::ExactMatch(at));
        found.map_err(|_| overlap())
    }

    fn living(&self, id: u64) -> Result<&RangeInclusive, String> {
        let found = self.live.get(&id);
        found.ok_or_else(|| format!("there is no mapping {id}"))
    }
}

fn range(taken: &RangeInclusive) -> Result<PageRange, String> {
    PageRange::new(taken.start(), taken.len()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(steps: &str) -> Result<Vec<Placed>, TraceError> {
        let text = format!("vm-remap-trace 1 16M\n{steps}");
        place(&Trace::read(text.as_bytes()).unwrap(), |len| {
            if len >= 2 << 20 { 2 << 20 } else { PAGE }
        })
    }

    #[test]
    fn what_is_left_open_gets_the_first_aligned_room() {
        let placed = placed(
            "0 map 1 0 4K own\n1 map 2 auto 2M peer\n2 map 3 auto 8K own\n3 unmap 2\n\
             4 map 4 auto 4M own\n5 replace 3 peer",
        );
        let found: Vec<(u64, Action)> = placed
            .unwrap()
            .iter()
            .map(|step| (step.range.start(), step.action))
            .collect();
        assert_eq!(
            found,
            [
                (0, Action::Map(Kind::Own)),
                (2 << 20, Action::Map(Kind::Peer)),
                (4096, Action::Map(Kind::Own)),
                (2 << 20, Action::Unmap),
                (2 << 20, Action::Map(Kind::Own)),
                (4096, Action::Replace(Kind::Peer)),
            ]
        );
    }

    #[test]
    fn overlaps_and_a_full_window_are_refused() {
        let said = placed("0 map 1 0 8K own\n1 map 2 4K 4K own\n").unwrap_err();
        assert_eq!(
            said.to_string(),
            "cannot use the trace: operation 2: 0x1000 bytes at 0x1000 overlap a mapping that is \
             there"
        );
        let said = placed("0 map 1 0 16M own\n1 map 2 auto 4K own\n").unwrap_err();
        assert!(said.to_string().ends_with("has no room for 0x1000 bytes"));
    }
}
