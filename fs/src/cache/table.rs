//! Owns which file ranges the guest believes to be in the window, and how much of each really is.
//! Never talks to a frontend.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

/// The unit of a mapping, in bytes.
pub(crate) const PAGE: u64 = 4096;

/// What the guest asked for: so many bytes of a file at a place of the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) inode: u64,
    /// Where in the file, in bytes.
    pub(crate) file: u64,
    /// Where in the window, in bytes.
    pub(crate) window: u64,
    pub(crate) len: u64,
    pub(crate) writable: bool,
}

impl Wish {
    /// Checks that the wish lies in a window of `size` bytes, in whole pages.
    pub(crate) fn check(&self, size: u64) -> io::Result<()> {
        let whole = [self.file, self.window, self.len]
            .iter()
            .all(|value| value.is_multiple_of(PAGE));
        let inside = self
            .window
            .checked_add(self.len)
            .is_some_and(|end| end <= size);
        if whole && inside && self.len > 0 && self.file.checked_add(self.len).is_some() {
            return Ok(());
        }
        log::debug!("cannot map {self:x?}: it is not in a window of {size:#x} bytes");
        Err(io::Error::from_raw_os_error(libc::EINVAL))
    }

    /// How much of the wish a file of `size` bytes can fill, in whole pages.
    pub(crate) fn fillable(&self, size: u64) -> u64 {
        size.saturating_sub(self.file)
            .checked_next_multiple_of(PAGE)
            .map_or(self.len, |bytes| bytes.min(self.len))
    }

    /// Whether both stand for the same bytes at the same place; the guest asks again to write.
    fn is_same_place(&self, other: &Self) -> bool {
        Self {
            writable: other.writable,
            ..*self
        } == *other
    }
}

/// One message's worth of window: what was mapped at once is unmapped at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) file: u64,
    pub(crate) window: u64,
    pub(crate) len: u64,
}

/// A wish with the pieces that fulfil it, from its start on and without a gap.
#[derive(Clone, Debug)]
pub(crate) struct Range {
    pub(crate) wish: Wish,
    pub(crate) pieces: Vec<Piece>,
}

impl Range {
    pub(crate) fn new(wish: Wish) -> Self {
        Self {
            wish,
            pieces: Vec::new(),
        }
    }

    /// How many bytes are mapped.
    pub(crate) fn filled(&self) -> u64 {
        self.pieces
            .iter()
            .fold(0, |sum, piece| sum.saturating_add(piece.len))
    }

    /// The piece that is missing if the file has `size` bytes.
    pub(crate) fn missing(&self, size: u64) -> Option<Piece> {
        let filled = self.filled();
        let len = self.wish.fillable(size).checked_sub(filled)?;
        (len > 0).then(|| Piece {
            file: self.wish.file.saturating_add(filled),
            window: self.wish.window.saturating_add(filled),
            len,
        })
    }

    fn end(&self) -> u64 {
        self.wish.window.saturating_add(self.wish.len)
    }
}

/// The ranges, by their place in the window. They do not overlap.
///
/// A guest has thousands of them, and asks of one file at a time: what is asked for with each
/// request is found by the file.
#[derive(Debug, Default)]
pub(crate) struct Table {
    ranges: BTreeMap<u64, Range>,
    /// File and place of each range.
    files: BTreeSet<(u64, u64)>,
    /// Of those that end before their wish does, and so could grow.
    unfinished: BTreeSet<(u64, u64)>,
}

impl Table {
    pub(crate) fn insert(&mut self, range: Range) {
        let key = (range.wish.inode, range.wish.window);
        self.files.insert(key);
        if range.filled() < range.wish.len {
            self.unfinished.insert(key);
        }
        self.ranges.insert(range.wish.window, range);
    }

    /// Takes the range that stands for the same bytes at the same place.
    pub(crate) fn take_same(&mut self, wish: &Wish) -> Option<Range> {
        let range = self.ranges.get(&wish.window)?;
        if range.wish.is_same_place(wish) {
            return self.take(wish.window);
        }
        None
    }

    /// Takes every range that has a byte in `len` bytes of the window from `start` on.
    pub(crate) fn take_overlapping(&mut self, start: u64, len: u64) -> Vec<Range> {
        let found: Vec<u64> = self.overlapping(start, len).map(|(at, _)| at).collect();
        self.take_each(found)
    }

    /// Whether every range that has a byte there lies there wholly.
    pub(crate) fn is_whole(&self, start: u64, len: u64) -> bool {
        let end = start.saturating_add(len);
        self.overlapping(start, len)
            .all(|(at, range)| at >= start && range.end() <= end)
    }

    /// Takes every range of a file.
    pub(crate) fn take_inode(&mut self, inode: u64) -> Vec<Range> {
        let found: Vec<u64> = of(&self.files, inode).collect();
        self.take_each(found)
    }

    /// Whether a file has a range.
    pub(crate) fn has(&self, inode: u64) -> bool {
        of(&self.files, inode).next().is_some()
    }

    pub(crate) fn take_all(&mut self) -> Vec<Range> {
        std::mem::take(self).ranges.into_values().collect()
    }

    /// The wishes of a file of `size` bytes that are not fulfilled.
    pub(crate) fn short(&self, inode: u64, size: u64) -> Vec<Wish> {
        of(&self.unfinished, inode)
            .filter_map(|at| self.ranges.get(&at))
            .filter(|range| range.missing(size).is_some())
            .map(|range| range.wish)
            .collect()
    }

    /// How many ranges could grow.
    pub(crate) fn unfinished(&self) -> usize {
        self.unfinished.len()
    }

    fn overlapping(&self, start: u64, len: u64) -> impl Iterator<Item = (u64, &Range)> {
        self.ranges
            .range(..start.saturating_add(len))
            .rev()
            .take_while(move |(_, range)| range.end() > start)
            .map(|(&at, range)| (at, range))
    }

    fn take_each(&mut self, places: Vec<u64>) -> Vec<Range> {
        places.into_iter().filter_map(|at| self.take(at)).collect()
    }

    fn take(&mut self, at: u64) -> Option<Range> {
        let range = self.ranges.remove(&at)?;
        let key = (range.wish.inode, at);
        self.files.remove(&key);
        self.unfinished.remove(&key);
        Some(range)
    }
}

/// The places that a set has of a file.
fn of(set: &BTreeSet<(u64, u64)>, inode: u64) -> impl Iterator<Item = u64> {
    set.range((inode, 0)..=(inode, u64::MAX))
        .map(|&(_, place)| place)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB2: u64 = 2 << 20;

    fn wish(window: u64, len: u64) -> Wish {
        Wish {
            inode: 7,
            file: 0,
            window,
            len,
            writable: false,
        }
    }

    fn starts(ranges: &[Range]) -> Vec<u64> {
        let mut starts: Vec<u64> = ranges.iter().map(|range| range.wish.window).collect();
        starts.sort_unstable();
        starts
    }

    #[test]
    fn a_wish_lies_in_the_window_in_whole_pages() {
        wish(MIB2, MIB2).check(2 * MIB2).unwrap();
        for (window, len) in [
            (0, 0),
            (1, PAGE),
            (0, PAGE + 1),
            (MIB2, MIB2 + PAGE),
            (u64::MAX - PAGE + 1, PAGE),
        ] {
            let refused = wish(window, len).check(2 * MIB2).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
        }
        let far = Wish {
            file: u64::MAX - PAGE + 1,
            ..wish(0, PAGE)
        };
        far.check(MIB2).unwrap_err();
    }

    #[test]
    fn a_small_file_fills_its_last_page_and_no_more() {
        assert_eq!(wish(0, MIB2).fillable(5), PAGE);
        assert_eq!(wish(0, MIB2).fillable(0), 0);
        assert_eq!(wish(0, MIB2).fillable(PAGE), PAGE);
        assert_eq!(wish(0, MIB2).fillable(MIB2 + 1), MIB2);
        assert_eq!(wish(0, MIB2).fillable(u64::MAX), MIB2);
        let second = Wish {
            file: MIB2,
            ..wish(0, MIB2)
        };
        assert_eq!(second.fillable(MIB2), 0);
        assert_eq!(second.fillable(MIB2 + 1), PAGE);
    }

    #[test]
    fn a_grown_file_leaves_the_piece_behind_the_last_one_missing() {
        let mut range = Range::new(wish(MIB2, MIB2));
        let first = range.missing(5).unwrap();
        assert_eq!((first.window, first.len), (MIB2, PAGE));
        range.pieces.push(first);
        assert_eq!(range.missing(PAGE), None);
        assert_eq!(range.missing(1), None);
        let second = range.missing(3 * PAGE).unwrap();
        assert_eq!(
            (second.file, second.window, second.len),
            (PAGE, MIB2 + PAGE, 2 * PAGE)
        );
    }

    #[test]
    fn ranges_are_found_by_any_byte() {
        let mut table = Table::default();
        for at in [0, 1, 3] {
            table.insert(Range::new(wish(at * MIB2, MIB2)));
        }
        assert!(table.is_whole(0, 2 * MIB2));
        assert!(!table.is_whole(PAGE, 2 * MIB2));
        assert!(table.is_whole(2 * MIB2, MIB2));
        let taken = table.take_overlapping(2 * MIB2 - PAGE, MIB2 + PAGE + 1);
        assert_eq!(starts(&taken), [MIB2, 3 * MIB2]);
        assert_eq!(starts(&table.take_overlapping(0, u64::MAX)), [0]);
    }

    #[test]
    fn the_same_place_is_the_same_whatever_the_protection() {
        let mut table = Table::default();
        table.insert(Range::new(wish(0, MIB2)));
        let other_file = Wish {
            inode: 8,
            ..wish(0, MIB2)
        };
        assert!(table.take_same(&other_file).is_none());
        let upgrade = Wish {
            writable: true,
            ..wish(0, MIB2)
        };
        assert!(table.take_same(&upgrade).is_some());
        assert!(table.take_same(&upgrade).is_none());
    }

    #[test]
    fn a_file_has_its_own_ranges() {
        let mut table = Table::default();
        table.insert(Range::new(wish(0, MIB2)));
        table.insert(Range::new(Wish {
            inode: 8,
            ..wish(MIB2, MIB2)
        }));
        assert_eq!(table.unfinished(), 2);
        assert_eq!(table.short(8, 5).len(), 1);
        assert!(table.short(8, 0).is_empty());
        assert_eq!(starts(&table.take_inode(8)), [MIB2]);
        assert!(table.has(7) && !table.has(8));
        assert_eq!(starts(&table.take_all()), [0]);
        assert_eq!(table.unfinished(), 0);
    }
}
