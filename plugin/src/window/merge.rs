//! Owns which changes of a batch the arena gets together: what of each is left when all are made,
//! and which neighbours are one system call. Pure; never maps anything and never asks a descriptor.

use std::collections::BTreeMap;

use crate::layout::{Mapping, Origin};
use crate::range::PageRange;
use crate::source::descriptor::DescriptorKind;

/// What is left of one change, or of a part of it, when the later ones are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) range: PageRange,
    /// Which change of the batch, counted from 0.
    pub(super) change: usize,
}

/// Neighbours that are put in place together.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Joined {
    pub(super) range: PageRange,
    pub(super) parts: Vec<Part>,
}

/// What is left of each change, by ascending offset; a later change covers an earlier one.
pub(super) fn left_over(changes: impl Iterator<Item = PageRange>) -> Vec<Part> {
    let whole: Vec<Part> = changes
        .enumerate()
        .map(|(change, range)| Part { range, change })
        .collect();
    // As most batches are, and all single changes.
    if whole.is_sorted_by(|a, b| a.range.end() <= b.range.start()) {
        return whole;
    }
    let mut parts: BTreeMap<u64, Part> = BTreeMap::new();
    for Part { range, change } in whole {
        let before = parts.range(..range.start()).next_back();
        let from = before
            .filter(|(_, old)| old.range.end() > range.start())
            .map_or(range.start(), |(start, _)| *start);
        let met: Vec<Part> = parts
            .range(from..range.end())
            .map(|(_, old)| *old)
            .collect();
        for old in met {
            parts.remove(&old.range.start());
            let left = PageRange::between(old.range.start(), range.start());
            let right = PageRange::between(range.end(), old.range.end());
            for range in [left, right].into_iter().flatten() {
                let change = old.change;
                parts.insert(range.start(), Part { range, change });
            }
        }
        parts.insert(range.start(), Part { range, change });
    }
    parts.into_values().collect()
}

/// Joins each part to the one before it, where they touch and `joins` has no objection.
pub(super) fn join(parts: Vec<Part>, joins: impl Fn(Part, Part) -> bool) -> Vec<Joined> {
    let mut runs: Vec<Joined> = Vec::new();
    for part in parts {
        if let Some(run) = runs.last_mut()
            && let Some(last) = run.parts.last()
            && last.range.end() == part.range.start()
            && joins(*last, part)
        {
            run.range = run.range.hull(part.range);
            run.parts.push(part);
            continue;
        }
        runs.push(Joined {
            range: part.range,
            parts: vec![part],
        });
    }
    runs
}

/// The pages of all `ranges`, in as few ranges as can be.
pub(super) fn without_seams(mut ranges: Vec<PageRange>) -> Vec<PageRange> {
    ranges.sort_unstable();
    let mut joined: Vec<PageRange> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.end() >= range.start() => *last = last.hull(range),
            _ => joined.push(range),
        }
    }
    joined
}

/// Whether the bytes of `next` follow those of `last`, in the window and in one file, so that one
/// mapping can hold both. On tmpfs only, where the kernel itself numbers the files: another file
/// system can give two files the same number.
pub(super) fn continues(last: &Mapping, next: &Mapping) -> bool {
    let (
        Origin::Descriptor {
            kind: DescriptorKind::Shmem,
            device,
            inode,
            offset,
        },
        Origin::Descriptor {
            kind: DescriptorKind::Shmem,
            device: next_device,
            inode: next_inode,
            offset: next_offset,
        },
    ) = (last.origin, next.origin)
    else {
        return false;
    };
    (device, inode, last.protection) == (next_device, next_inode, next.protection)
        && last.range.end() == next.range.start()
        && offset.checked_add(last.range.len()) == Some(next_offset)
}

#[cfg(test)]
#[path = "merge_tests.rs"]
mod tests;
