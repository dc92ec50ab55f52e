//! Owns what becomes of one touch of the guest that its page tables did not serve: what lies there
//! decides. Never looks at an instruction, and never runs a vCPU.

use std::io;

use rustix::io::Errno;

use super::Window;
use super::batch::Change;
use super::holes::{HolePolicy, ReadOnlyWrites};
use super::recovery::OnFailure;
use super::substitute::{Content, Ticket};
use super::transaction::State;
use crate::arena::Populate;
use crate::error::Error;
use crate::layout::{Mapping, Origin};
use crate::range::{GuestAddress, HUGE_2M, PAGE_SIZE, PageRange};
use crate::source::Protection;
use crate::source::descriptor::DescriptorKind;

/// Fills a buffer from a host address, with an error and no signal where nothing can be read.
pub(crate) type Copier<'a> = &'a dyn Fn(u64, &mut [u8]) -> io::Result<()>;

/// What stood in the way of a guest's touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Obstacle {
    /// A hole of the window.
    Hole,
    /// A read-only mapping, and the touch was a write.
    ReadOnly {
        /// The mapping's label.
        label: u64,
    },
    /// A mapping whose page cannot be made present.
    Mapping {
        /// The mapping's label.
        label: u64,
        /// What the kernel says of its page: `EHWPOISON` for broken memory, `ENOMEM` where the
        /// host has none left, `EFAULT` where the page is there and KVM does not reach it all
        /// the same.
        errno: i32,
    },
    /// The hole or the mapping is as it should be, but nothing could be put in its place.
    Substitute {
        /// What the kernel said.
        errno: i32,
    },
    /// An earlier failure poisoned the window.
    Poisoned,
    /// It is not known which address was touched.
    Unknown,
}

/// A mapping that has lost its pages, because the file behind it has become shorter. One whose file
/// system has no room, or no huge page, for a page that is not there yet counts as such: the rest
/// of it becomes a hole as well, pages that are there included, and can be mapped again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Guest address of the window.
    pub window: GuestAddress,
    /// The lost part, which is a hole now.
    pub range: PageRange,
    /// The mapping's label.
    pub label: u64,
}

/// What to do about a touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Touched {
    /// Nothing is in the way any more. The number grows with every change of the window.
    Present(u64),
    /// A substitute is there: for a write, until the one instruction is over. With the number that
    /// [`Present`](Self::Present) has.
    Substituted(Ticket, u64),
    /// A substitute of the caller's is there.
    Standing,
    /// Nothing is there, and nothing stands in, since nothing was to.
    Absent,
    /// Nothing can be done, or policy says so.
    Refused(Obstacle),
}

/// A touch at the window's byte `offset`.
#[derive(Clone, Copy)]
pub(crate) struct Touch<'a> {
    pub(crate) offset: u64,
    /// Whether it may be a write.
    pub(crate) write: bool,
    /// Whether a page may stand in; otherwise it is only found out what is there.
    pub(crate) stand_in: bool,
    /// Substitutes that its vCPU has already.
    pub(crate) own: &'a [Ticket],
    pub(crate) copy: Copier<'a>,
}

impl Window {
    /// How far into the window a guest address lies.
    pub(crate) fn offset_of(&self, guest: GuestAddress) -> Option<u64> {
        let offset = guest.0.checked_sub(self.base().0)?;
        (offset < self.len()).then_some(offset)
    }

    /// Where the window's arena begins.
    pub(crate) fn host_base(&self) -> u64 {
        self.shared.arena.address(0)
    }

    /// How far into the window's arena a host address lies.
    pub(crate) fn offset_of_host(&self, host: u64) -> Option<u64> {
        let offset = host.checked_sub(self.host_base())?;
        (offset < self.len()).then_some(offset)
    }

    pub(crate) fn hole_policy(&self) -> HolePolicy {
        self.shared.holes
    }

    pub(crate) fn drops_read_only_writes(&self) -> bool {
        self.shared.read_only_writes == ReadOnlyWrites::Drop
    }

    /// Finds out what lies at a touch, and does what can be done.
    pub(crate) fn touch(&self, touch: Touch<'_>, lost: &mut Option<Lost>) -> Touched {
        let mut state = self.state();
        if state.poisoned {
            return Touched::Refused(Obstacle::Poisoned);
        }
        if state.stands_at(touch.offset, touch.write, touch.own) {
            return Touched::Standing;
        }
        let Some(mapping) = state.layout.at(touch.offset).cloned() else {
            return self.touch_hole(&mut state, touch);
        };
        if mapping.in_place().is_some() {
            return Touched::Present(state.changes);
        }
        let read_only = touch.write && !mapping.protection.is_writable();
        if read_only && self.shared.read_only_writes == ReadOnlyWrites::Report {
            let label = mapping.label;
            return Touched::Refused(Obstacle::ReadOnly { label });
        }
        let changes = state.changes;
        drop(state);
        self.touch_mapping(&mapping, changes, touch, lost)
    }

    /// Gives up substitutes.
    pub(crate) fn end_substitutes(&self, tickets: &[Ticket]) {
        if !tickets.is_empty() {
            self.state().end(&self.shared, tickets, false);
        }
    }

    fn touch_hole(&self, state: &mut State, touch: Touch<'_>) -> Touched {
        let Some(page) = page_at(touch.offset) else {
            return Touched::Refused(Obstacle::Unknown);
        };
        let content = match self.shared.holes {
            HolePolicy::Stop => return Touched::Refused(Obstacle::Hole),
            HolePolicy::Zero if !touch.write => return Touched::Present(state.changes),
            // Without a memslot the hypervisor asks by an exit of its own.
            _ if !state.slots.covers(page) => return Touched::Present(state.changes),
            _ if !touch.stand_in => return Touched::Absent,
            HolePolicy::Zero => Content::Zeroes,
            HolePolicy::Trap => Content::Ones,
        };
        let protection = if touch.write {
            Protection::ReadWrite
        } else {
            Protection::ReadOnly
        };
        match state.substitute(&self.shared, page, None, content, protection) {
            Ok(Some(ticket)) => Touched::Substituted(ticket, state.changes),
            Ok(None) => Touched::Present(state.changes),
            Err(errno) => refused(errno),
        }
    }

    /// What becomes of a touch of a mapping: its page is brought in, outside the lock, since that
    /// can take as long as a file takes.
    fn touch_mapping(
        &self,
        mapping: &Mapping,
        changes: u64,
        touch: Touch<'_>,
        lost: &mut Option<Lost>,
    ) -> Touched {
        let writable = mapping.protection.is_writable();
        let how = if touch.write && writable {
            Populate::Write
        } else {
            Populate::Read
        };
        let present = |offset| match unit_at(mapping, offset) {
            Some(unit) => self.shared.arena.make_present(unit, how),
            None => Ok(()),
        };
        let label = mapping.label;
        match present(touch.offset) {
            Ok(()) if touch.write && !writable => self.drop_write(mapping, changes, touch),
            Ok(()) => Touched::Present(changes),
            Err(Errno::FAULT) => {
                let first = first_lost(mapping, touch.offset, &present);
                match self.lose(mapping, first, changes) {
                    Ok(Some(found)) => {
                        *lost = Some(found);
                        self.touch_lost(touch)
                    }
                    // Somebody else changed the window meanwhile: what is there now?
                    Ok(None) => Touched::Present(changes.wrapping_add(1)),
                    Err(error) => {
                        let errno = error.errno();
                        Touched::Refused(Obstacle::Mapping { label, errno })
                    }
                }
            }
            Err(errno) => Touched::Refused(Obstacle::Mapping {
                label,
                errno: errno.raw_os_error(),
            }),
        }
    }

    /// A touch of what was made a hole a moment ago. Another thread may have mapped something there
    /// since: nothing stands in for that.
    fn touch_lost(&self, touch: Touch<'_>) -> Touched {
        let mut state = self.state();
        if state.poisoned {
            return Touched::Refused(Obstacle::Poisoned);
        }
        if state.layout.at(touch.offset).is_some() {
            return Touched::Present(state.changes);
        }
        self.touch_hole(&mut state, touch)
    }

    /// A write to a read-only page that is there: it goes to a copy. The copy is made under the
    /// lock, so that nothing but the page's other users can change it before the step.
    fn drop_write(&self, mapping: &Mapping, changes: u64, touch: Touch<'_>) -> Touched {
        if !touch.stand_in {
            return Touched::Present(changes);
        }
        let mut state = self.state();
        let unit = unit_at(mapping, touch.offset);
        let Some(unit) = unit.filter(|_| state.changes == changes && !state.poisoned) else {
            return Touched::Present(changes.wrapping_add(1));
        };
        if unit.len() > HUGE_2M {
            return refused(Errno::NOTSUP);
        }
        let mut bytes = vec![0; usize::try_from(unit.len()).unwrap_or(0)];
        // Gone again: the next fault finds out why.
        if (touch.copy)(self.shared.arena.address(unit.start()), &mut bytes).is_err() {
            return Touched::Present(changes);
        }
        let (content, protection) = (Content::Bytes(bytes), Protection::ReadWrite);
        match state.substitute(&self.shared, unit, Some(mapping), content, protection) {
            Ok(Some(ticket)) => Touched::Substituted(ticket, state.changes),
            Ok(None) => Touched::Present(changes),
            Err(errno) => refused(errno),
        }
    }

    /// Makes a hole of `mapping` from `first` on, unless the window has changed since.
    fn lose(
        &self,
        mapping: &Mapping,
        first: PageRange,
        changes: u64,
    ) -> Result<Option<Lost>, Error> {
        let end = mapping.range.end();
        let range = PageRange::between(first.start(), end).unwrap_or(first);
        let ready = self.shared.prepare(&[Change::Unmap { range }])?;
        let mut state = self.state();
        if state.changes != changes {
            return Ok(None);
        }
        // Pins do not hold it back: what a pin has of it is gone already, and never was stable.
        state.commit(&self.shared, ready, OnFailure::Hole)?;
        Ok(Some(Lost {
            window: state.slots.base(),
            range,
            label: mapping.label,
        }))
    }
}

fn refused(errno: Errno) -> Touched {
    let errno = errno.raw_os_error();
    Touched::Refused(Obstacle::Substitute { errno })
}

fn page_at(offset: u64) -> Option<PageRange> {
    let start = offset.wrapping_sub(offset % PAGE_SIZE);
    PageRange::new(start, PAGE_SIZE).ok()
}

/// The page of `mapping` at `offset`, of the size that its memory has.
fn unit_at(mapping: &Mapping, offset: u64) -> Option<PageRange> {
    let size = match mapping.origin {
        Origin::Descriptor {
            kind: DescriptorKind::Hugetlb { page_size },
            ..
        } => page_size,
        _ => PAGE_SIZE,
    };
    let into = mapping.range.distance_to(offset).checked_rem(size)?;
    let page = PageRange::new(offset.checked_sub(into)?, size).ok()?;
    page.intersection(mapping.range)
}

/// The first page of `mapping` that is not there, given that the one at `offset` is not: a file
/// loses its pages from the end.
fn first_lost(
    mapping: &Mapping,
    offset: u64,
    present: &impl Fn(u64) -> rustix::io::Result<()>,
) -> PageRange {
    let touched = unit_at(mapping, offset).unwrap_or(mapping.range);
    let size = touched.len();
    let before = mapping.range.distance_to(touched.start());
    let pages = before.checked_div(size).unwrap_or(0);
    let at = |page: u64| {
        mapping
            .range
            .start()
            .saturating_add(page.saturating_mul(size))
    };
    let (mut low, mut high) = (0, pages);
    while low < high {
        let middle = low.midpoint(high);
        if present(at(middle)) == Err(Errno::FAULT) {
            high = middle;
        } else {
            low = middle.saturating_add(1);
        }
    }
    unit_at(mapping, at(high)).unwrap_or(touched)
}

#[cfg(test)]
#[path = "touch_tests.rs"]
mod tests;
