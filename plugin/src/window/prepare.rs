//! Owns the first half of a change: the source is checked and, where its owner could make the
//! kernel fail half-way, mapped elsewhere; neighbours of a batch together, where one mapping can
//! hold them. Never touches the arena, the layout or a slot, so that whatever fails here has
//! changed nothing.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::Errno;

use super::batch::Change;
use super::content::{Content, Last, Refusal, duplicate};
use super::merge::{self, Joined, Part};
use super::prefault::{Filled, allocate};
use super::shared::Shared;
use super::transaction::huge_page_cut;
use crate::arena::{Populate, Site, Staged};
use crate::error::Error;
use crate::layout::Mapping;
use crate::range::{HUGE_2M, PageRange};
use crate::source::Protection;
use crate::source::descriptor::{DescriptorKind, access_refused};
use crate::source::prefault::Prefault;

/// Changes that are ready to be made.
#[derive(Debug)]
pub(super) struct Ready<'fd> {
    /// What the layout gets, in the caller's order.
    pub(super) changes: Vec<Prepared>,
    /// What the arena gets; none over another.
    pub(super) runs: Vec<Run<'fd>>,
    /// How many changes, or parts of them, need no run of their own.
    pub(super) joined: usize,
}

/// A change as far as the layout goes.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) range: PageRange,
    /// Whether the range must be a hole.
    pub(super) into_hole: bool,
    /// What the layout will say, `None` for a hole.
    pub(super) mapping: Option<Mapping>,
    /// What has come of its prefault so far.
    pub(super) filled: Filled,
    /// Whether its pages were made huge ones, where that was asked.
    pub(super) collapsed: Option<bool>,
}

/// One system call on the arena.
#[derive(Debug)]
pub(super) struct Run<'fd> {
    pub(super) range: PageRange,
    pub(super) placement: Placement<'fd>,
}

impl Run<'_> {
    /// Whether the arena gets memory, not a hole.
    pub(super) fn makes_memory(&self) -> bool {
        !matches!(self.placement, Placement::Hole)
    }
}

/// What the arena gets.
#[derive(Debug)]
pub(super) enum Placement<'fd> {
    /// A mapping that was made elsewhere.
    Staged(Staged),
    /// A mapping that is made in place.
    Direct {
        fd: BorrowedFd<'fd>,
        offset: u64,
        protection: Protection,
    },
    /// A hole: the range is unmapped, or memory elsewhere gets a slot of its own.
    Hole,
}

/// A change whose source was found good, and what its memory is made from.
#[derive(Debug)]
struct Checked<'fd> {
    prepared: Prepared,
    content: Content<'fd>,
    prefault: Prefault,
    collapse: bool,
}

impl Placement<'_> {
    /// The first to be placed is the least: what can fail half-way comes before what cannot, so that
    /// little has to be saved for the last.
    fn order(&self) -> u8 {
        match self {
            Self::Staged(_) => 0,
            Self::Direct { .. } => 1,
            Self::Hole => 2,
        }
    }
}

impl Shared {
    /// Checks all changes, joins them, and makes elsewhere what is to be made there.
    pub(super) fn prepare<'fd>(&self, changes: &[Change<'fd>]) -> Result<Ready<'fd>, Error> {
        let mut last = None;
        if let [change] = changes {
            // Nothing to join: the way of every map and unmap.
            let mut checked = self.check(change, &mut last)?;
            let (run, filled, collapsed) = self.run(change.range(), &mut checked)?;
            checked.prepared.became(filled, collapsed);
            return Ok(Ready {
                changes: vec![checked.prepared.done()],
                runs: vec![run],
                joined: 0,
            });
        }
        let mut checked = changes
            .iter()
            .map(|change| self.check(change, &mut last))
            .collect::<Result<Vec<_>, _>>()?;
        let parts = merge::left_over(changes.iter().map(Change::range));
        if let Some(error) = cut_by_a_later_one(&parts, &checked) {
            return Err(error);
        }
        let count = parts.len();
        let joined = merge::join(parts, |a, b| {
            match (checked.get(a.change), checked.get(b.change)) {
                (Some(first), Some(second)) => joins((a, first), (b, second)),
                _ => false,
            }
        });
        let mut runs = Vec::with_capacity(joined.len());
        for Joined { range, parts } in joined {
            let Some(first) = parts.first().and_then(|part| checked.get_mut(part.change)) else {
                continue;
            };
            let (run, filled, collapsed) = self.run(range, first)?;
            for part in parts {
                if let Some(change) = checked.get_mut(part.change) {
                    change.prepared.became(filled, collapsed);
                }
            }
            runs.push(run);
        }
        runs.sort_by_key(|run| run.placement.order());
        let changes = checked.into_iter().map(|change| change.prepared.done());
        let joined = count.saturating_sub(runs.len());
        Ok(Ready {
            changes: changes.collect(),
            runs,
            joined,
        })
    }

    /// Makes what the arena gets at `range`, which begins in `first`, as its source asks: what has
    /// come of its prefault, and of its collapse.
    fn run<'fd>(
        &self,
        range: PageRange,
        first: &mut Checked<'fd>,
    ) -> Result<(Run<'fd>, Filled, Option<bool>), Error> {
        let collapse = first.collapse;
        let placement = self.stage(range, first)?;
        let collapsed = collapse.then(|| collapse_all(range, &placement));
        let filled = self.fill(range, &placement, first.prefault, first.protection())?;
        Ok((Run { range, placement }, filled, collapsed))
    }

    fn check<'fd>(&self, change: &Change<'fd>, last: &mut Last) -> Result<Checked<'fd>, Error> {
        let range = change.range();
        if !self.geometry.window.covers(range) {
            return Err(Error::OutsideWindow {
                range,
                window: self.geometry.window.len(),
            });
        }
        let mut prepared = Prepared {
            range,
            into_hole: matches!(change, Change::Map { .. }),
            mapping: None,
            filled: Filled::NotAsked,
            collapsed: None,
        };
        let (source, protection) = match *change {
            Change::Unmap { .. } => {
                return Ok(Checked {
                    prepared,
                    content: Content::Hole,
                    prefault: Prefault::None,
                    collapse: false,
                });
            }
            Change::Map {
                source, protection, ..
            }
            | Change::Replace {
                source, protection, ..
            } => (source, protection),
        };
        let (content, mapping) = self.content(range, &source, protection, last)?;
        prepared.mapping = Some(mapping);
        Ok(Checked {
            prepared,
            content,
            prefault: source.prefault,
            collapse: source.collapse,
        })
    }

    /// Makes what the arena gets at `range`, which begins in `first` and goes on in others that
    /// have the same content.
    fn stage<'fd>(
        &self,
        range: PageRange,
        first: &mut Checked<'fd>,
    ) -> Result<Placement<'fd>, Error> {
        let whole = first.prepared.range == range;
        let distance = first.prepared.range.distance_to(range.start());
        let protection = first.protection();
        let site = self.arena.site(range);
        Ok(match &mut first.content {
            Content::Hole => Placement::Hole,
            Content::Anonymous => Placement::Staged(
                Staged::anonymous(range.len(), protection, site)
                    .map_err(|errno| stage_failed(range, errno))?,
            ),
            Content::Duplicate { address, staged } => {
                let staged = staged.take().filter(|_| whole).map_or_else(
                    || {
                        let distance = usize::try_from(distance).unwrap_or(usize::MAX);
                        duplicate(range, address.wrapping_add(distance), protection)
                    },
                    Ok,
                );
                Placement::Staged(staged.map_err(
                    |(Refusal::Duplicate(errno) | Refusal::Protection(errno))| {
                        stage_failed(range, errno)
                    },
                )?)
            }
            Content::Descriptor {
                fd,
                offset,
                direct,
                sparse,
                ..
            } => {
                // The whole mapping was checked not to wrap.
                let (fd, offset) = (*fd, offset.wrapping_add(distance));
                if *direct {
                    Placement::Direct {
                        fd,
                        offset,
                        protection,
                    }
                } else {
                    if *sparse && first.prefault == Prefault::HostWrite {
                        allocate(fd, offset, range.len());
                    }
                    Placement::Staged(map_elsewhere(range, fd, offset, protection, site)?)
                }
            }
        })
    }
}

impl Checked<'_> {
    /// What the guest may do with it; nothing to speak of for a hole.
    fn protection(&self) -> Protection {
        let mapping = self.prepared.mapping.as_ref();
        mapping.map_or(Protection::ReadOnly, |mapping| mapping.protection)
    }
}

impl Prepared {
    /// Adds what has become of a part of the change.
    fn became(&mut self, filled: Filled, collapsed: Option<bool>) {
        self.filled = self.filled.max(filled);
        if let Some(done) = collapsed {
            self.collapsed = Some(done && self.collapsed.unwrap_or(true));
        }
    }

    /// With what has become of all its parts.
    fn done(mut self) -> Self {
        if let (Some(mapping), Some(true)) = (&mut self.mapping, self.collapsed) {
            mapping.huge = true;
        }
        self
    }
}

/// Makes huge pages of all that can be; whether that was done.
fn collapse_all(range: PageRange, placement: &Placement<'_>) -> bool {
    let collapsed = match placement {
        // The kernel refuses a block of which no page is there yet (seen on 6.18).
        Placement::Staged(staged) if range.len() >= HUGE_2M => {
            let populated = staged.populate(Populate::Read);
            populated.and_then(|()| staged.collapse())
        }
        _ => Err(Errno::INVAL),
    };
    if let Err(errno) = collapsed {
        log::debug!("cannot make huge pages of the memory for {range}: {errno}");
    }
    collapsed.is_ok()
}

/// What is wrong where a change of the batch cuts what an earlier one maps inside a huge page. The
/// kernel would map that page whole, and longer than the part, and not unmap the part of it again.
fn cut_by_a_later_one(parts: &[Part], checked: &[Checked<'_>]) -> Option<Error> {
    parts.iter().find_map(|part| {
        let mapping = checked.get(part.change)?.prepared.mapping.as_ref()?;
        mapping.cut_inside_huge_page(part.range)?;
        let mut later = checked.iter().skip(part.change.saturating_add(1));
        later.find_map(|change| huge_page_cut(mapping, change.prepared.range))
    })
}

/// Whether one mapping, or one hole, can hold both parts.
fn joins((a, first): (Part, &Checked<'_>), (b, second): (Part, &Checked<'_>)) -> bool {
    let (
        Content::Descriptor {
            fd,
            offset,
            kind,
            file,
            direct,
            ..
        },
        Content::Descriptor {
            fd: next_fd,
            offset: next_offset,
            kind: next_kind,
            file: next_file,
            direct: next_direct,
            ..
        },
    ) = (&first.content, &second.content)
    else {
        // Only unmaps: a hole beside memory in place counts its prefault on its own.
        return first.prepared.mapping.is_none() && second.prepared.mapping.is_none();
    };
    let end = |part: Part, change: &Checked<'_>, offset: u64, at: u64| {
        // Checked not to wrap, with the whole change.
        debug_assert!(change.prepared.range.covers(part.range));
        offset.wrapping_add(change.prepared.range.distance_to(at))
    };
    end(a, first, *offset, a.range.end()) == end(b, second, *next_offset, b.range.start())
        && first.protection() == second.protection()
        && (first.prefault, first.collapse, direct)
            == (second.prefault, second.collapse, next_direct)
        && (file, kind) == (next_file, next_kind)
        && same_access(*kind, *fd, *next_fd)
}

/// Whether two descriptors of files with the same numbers are one file, open in the same way. On
/// tmpfs the kernel itself numbers the files; another file system could give two the same number.
fn same_access(kind: DescriptorKind, fd: BorrowedFd<'_>, next: BorrowedFd<'_>) -> bool {
    let mode = |fd| fcntl_getfl(fd).map(|flags| flags & OFlags::ACCMODE).ok();
    fd.as_raw_fd() == next.as_raw_fd()
        || (kind == DescriptorKind::Shmem && mode(fd).is_some() && mode(fd) == mode(next))
}

pub(super) fn stage_failed(range: PageRange, errno: Errno) -> Error {
    Error::Stage {
        range,
        source: errno.into(),
    }
}

pub(super) fn map_elsewhere(
    range: PageRange,
    fd: BorrowedFd<'_>,
    offset: u64,
    protection: Protection,
    site: Site,
) -> Result<Staged, Error> {
    let staged = Staged::descriptor(range.len(), fd, offset, protection, site);
    staged.map_err(|errno| {
        let access = (errno == Errno::ACCESS)
            .then(|| access_refused(fd, range, protection))
            .flatten();
        access.unwrap_or_else(|| stage_failed(range, errno))
    })
}
