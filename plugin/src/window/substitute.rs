//! Owns the pages that stand in for a hole or a read-only page while a guest instruction runs:
//! putting them there, and putting back what was there. Never decides which page gets one.
//!
//! A substitute is private memory, so what the guest writes there goes with it; one that is only to
//! be read cannot be written. Whatever else changes the window ends the substitutes in its way
//! first: the vCPU that needed one touches the page again and faults again.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;

use super::armed::Armed;
use super::saved::save_one;
use super::shared::Shared;
use super::transaction::State;
use crate::arena::{Refused, Staged};
use crate::error::StateAfter;
use crate::layout::Mapping;
use crate::range::{PAGE_SIZE, PageRange};
use crate::source::Protection;

/// How many substitutes a window has at most: several for each of the vCPUs that can be between two
/// instructions at once. The oldest goes when one more comes, and its vCPU faults again.
const MOST: usize = 64;

/// What a substitute holds.
#[derive(Clone, Debug)]
pub(super) enum Content {
    Ones,
    Zeroes,
    Bytes(Vec<u8>),
}

/// The number of a substitute, never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

#[derive(Debug)]
struct Substitute {
    ticket: Ticket,
    range: PageRange,
    protection: Protection,
    /// How many vCPUs need it.
    holders: usize,
    /// What was there; nothing where it was a hole.
    saved: Option<Staged>,
}

/// The substitutes that a window has now, and the holes that are armed.
#[derive(Debug, Default)]
pub(super) struct Substitutes {
    pub(super) armed: Armed,
    live: Vec<Substitute>,
    next: u64,
}

impl Substitutes {
    /// Where they are.
    pub(super) fn ranges(&self) -> impl Iterator<Item = PageRange> {
        self.live.iter().map(|there| there.range)
    }
}

impl State {
    /// Puts a substitute at `range`, which is a part of `over` or a hole, or shares the one that is
    /// there already. `None` where one vCPU reads what another one's step is writing: it can, until
    /// that is over, and no longer.
    pub(super) fn substitute(
        &mut self,
        shared: &Shared,
        range: PageRange,
        over: Option<&Mapping>,
        content: Content,
        protection: Protection,
    ) -> rustix::io::Result<Option<Ticket>> {
        let live = &mut self.substitutes.live;
        if let Some(there) = live.iter_mut().find(|there| there.range == range) {
            match (there.protection, protection) {
                (Protection::ReadWrite, Protection::ReadOnly) => return Ok(None),
                (Protection::ReadOnly, Protection::ReadWrite) => {
                    let readers = there.ticket;
                    self.end(shared, &[readers], true);
                }
                _ => {
                    there.holders = there.holders.saturating_add(1);
                    return Ok(Some(there.ticket));
                }
            }
        }
        let live = &self.substitutes.live;
        if live.len() >= MOST
            && let Some(oldest) = live.first().map(|oldest| oldest.ticket)
        {
            self.end(shared, &[oldest], true);
        }
        if self.poisoned {
            return Err(Errno::IO);
        }
        let part = over.and_then(|mapping| mapping.clipped(range));
        let saved = part
            .map(|part| save_one(shared, range, &part))
            .transpose()?;
        let page = stand_in(range.len(), content, protection)?;
        let ticket = Ticket(self.substitutes.next);
        self.substitutes.next = self.substitutes.next.wrapping_add(1);
        let mut new = Substitute {
            ticket,
            range,
            protection,
            holders: 1,
            saved,
        };
        if let Err(refused) = shared.arena.place(range, page) {
            let mended = match refused.state {
                StateAfter::Unchanged => true,
                StateAfter::Hole => new.leave(shared).is_ok(),
                StateAfter::Poisoned => false,
            };
            if !mended {
                self.poison();
            }
            return Err(refused.errno);
        }
        self.substitutes.live.push(new);
        self.substitutes.armed.cover(range);
        Ok(Some(ticket))
    }

    /// Whether one of `tickets` stands at `offset` and allows the access.
    pub(super) fn stands_at(&self, offset: u64, write: bool, tickets: &[Ticket]) -> bool {
        let mut live = self.substitutes.live.iter();
        live.any(|there| {
            there.range.contains(offset)
                && tickets.contains(&there.ticket)
                && (there.protection.is_writable() || !write)
        })
    }

    /// Gives `tickets` up, and ends the substitutes that nobody needs any more; all, if `forced`.
    pub(super) fn end(&mut self, shared: &Shared, tickets: &[Ticket], forced: bool) {
        if forced {
            // Who needed them faults again, and not for nothing.
            self.changes = self.changes.wrapping_add(1);
        }
        let mut lost = false;
        self.substitutes.live.retain_mut(|there| {
            if !tickets.contains(&there.ticket) {
                return true;
            }
            there.holders = there.holders.saturating_sub(1);
            if there.holders > 0 && !forced {
                return true;
            }
            let left = there.leave(shared);
            lost |= left == Err(StateAfter::Poisoned);
            left == Err(StateAfter::Unchanged)
        });
        if lost {
            self.poison();
        }
    }

    /// Ends every substitute that `ranges`, or a mapping that they touch, has. Tells whether none
    /// is left there.
    pub(super) fn end_in_the_way(
        &mut self,
        shared: &Shared,
        ranges: impl Iterator<Item = PageRange>,
    ) -> Result<(), Refused> {
        if self.substitutes.live.is_empty() {
            return Ok(());
        }
        for range in ranges {
            let met = self.layout.overlapping(range).map(Mapping::range);
            let hull = met.fold(range, PageRange::hull);
            let mut worst = None;
            self.substitutes.live.retain_mut(|there| {
                if there.range.intersection(hull).is_none() {
                    return true;
                }
                let left = there.leave(shared);
                let stays = left == Err(StateAfter::Unchanged);
                // What is poisoned stays so, whatever comes after it.
                if worst != Some(StateAfter::Poisoned) {
                    worst = left.err().or(worst);
                }
                stays
            });
            match worst {
                None => {}
                Some(state) => {
                    if state == StateAfter::Poisoned {
                        self.poison();
                    }
                    let errno = Errno::NOMEM;
                    return Err(Refused { errno, state });
                }
            }
        }
        Ok(())
    }
}

impl Substitute {
    /// Puts back what was there. Where that fails, it stands there still, or what lies there is not
    /// known.
    fn leave(&mut self, shared: &Shared) -> Result<(), StateAfter> {
        let put_back = match &mut self.saved {
            Some(saved) => shared.arena.put_back(self.range, saved),
            None => shared.arena.punch(self.range),
        };
        let Err(refused) = put_back else {
            return Ok(());
        };
        let (range, errno) = (self.range, refused.errno);
        log::error!("cannot take the stand-in at {range} away: {errno}");
        match (refused.state, &mut self.saved) {
            // The kernel had unmapped the stand-in, and a hole is what there should be.
            (StateAfter::Hole, None) => Ok(()),
            // Once more, over the hole that fills the gap.
            (StateAfter::Hole, Some(saved)) => shared
                .arena
                .put_back(self.range, saved)
                .map_err(|_| StateAfter::Poisoned),
            (state, _) => Err(state),
        }
    }
}

/// A page of ones, and after it one of zeroes, that nobody can change.
fn pattern() -> rustix::io::Result<&'static OwnedFd> {
    static PATTERN: OnceLock<OwnedFd> = OnceLock::new();
    if let Some(made) = PATTERN.get() {
        return Ok(made);
    }
    let page = usize::try_from(PAGE_SIZE).map_err(|_| Errno::INVAL)?;
    let mut bytes = vec![0xff; page];
    bytes.resize(page.saturating_mul(2), 0);
    let made = file_of(&bytes)?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
    fcntl_add_seals(&made, seals)?;
    Ok(PATTERN.get_or_init(|| made))
}

fn stand_in(len: u64, content: Content, protection: Protection) -> rustix::io::Result<Staged> {
    match content {
        Content::Ones => Staged::private(len, pattern()?.as_fd(), 0, protection),
        Content::Zeroes => Staged::private(len, pattern()?.as_fd(), PAGE_SIZE, protection),
        Content::Bytes(bytes) => Staged::private(len, file_of(&bytes)?.as_fd(), 0, protection),
    }
}

fn file_of(bytes: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = std::fs::File::from(memfd_create("vm-remap-stand-in", flags)?);
    file.write_all(bytes)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Ok(file.into())
}
