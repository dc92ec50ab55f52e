//! Owns the DAX window as the daemon knows it: which files are mapped where. Never opens a file.
//!
//! Linux asks for 2 MiB at a time, also of a file of five bytes, and takes what lies past the end
//! for mapped from then on. A frontend that looks at the descriptor refuses what lies past its end.
//! So a range is filled as far as its file goes, and filled up later, before the guest learns that
//! the file is longer. Each message names a hole or exactly what one earlier message mapped, so
//! that it is plain to any frontend.

mod link;
mod table;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::counters::Counters;
pub(crate) use link::Frontend;
use link::Link;
pub(crate) use table::Wish;
use table::{Range, Table};

/// The DAX window.
pub(crate) struct Cache {
    size: u64,
    state: Mutex<State>,
    /// How many ranges could grow: most of the time none, and then nobody waits for the lock.
    unfinished: AtomicUsize,
}

struct State {
    link: Link,
    table: Table,
}

impl Cache {
    /// A window of `size` bytes that no frontend has yet.
    pub(crate) fn new(size: u64, counters: Arc<Counters>) -> Self {
        let state = State {
            link: Link::new(counters),
            table: Table::default(),
        };
        Self {
            size,
            state: Mutex::new(state),
            unfinished: AtomicUsize::new(0),
        }
    }

    /// The size of the window, in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Takes the way to the frontend. Its window is empty.
    pub(crate) fn attach(&self, frontend: Box<Frontend>) {
        let mut state = self.lock();
        state.link.attach(frontend);
        state.table.take_all();
        self.recount(&state);
    }

    /// Maps what `wish` asks for, as far as a file of `size` bytes goes, over what lay there. It
    /// has been mapped when the call returns.
    ///
    /// # Errors
    /// `EINVAL` for what does not lie in the window in whole pages, which changes nothing; else the
    /// number of the frontend's refusal. Pieces of the same bytes that lay there stay then, anything
    /// else that did is unmapped.
    pub(crate) fn place(&self, wish: &Wish, size: u64, file: &dyn AsRawFd) -> io::Result<()> {
        wish.check(self.size)?;
        let mut state = self.lock();
        let mut range = state.room_for(wish, size);
        let protection = range.wish.writable;
        range.wish.writable |= wish.writable;
        let placed = state.fill(&mut range, size, file);
        if placed.is_err() {
            range.wish.writable = protection;
        }
        if placed.is_ok() || !range.pieces.is_empty() {
            state.table.insert(range);
        }
        self.recount(&state);
        placed
    }

    /// Fills up a range of [`short`](Self::short), unless it has gone meanwhile.
    ///
    /// # Errors
    /// The number of the frontend's refusal; the range stays as it was.
    pub(crate) fn grow(&self, wish: &Wish, size: u64, file: &dyn AsRawFd) -> io::Result<()> {
        let mut state = self.lock();
        let Some(mut range) = state.table.take_same(wish) else {
            return Ok(());
        };
        let grown = state.extend(&mut range, size, file);
        state.table.insert(range);
        self.recount(&state);
        grown
    }

    /// The ranges of a file of `size` bytes that end before the file does.
    pub(crate) fn short(&self, inode: u64, size: u64) -> Vec<Wish> {
        if self.unfinished.load(Ordering::Acquire) == 0 {
            return Vec::new();
        }
        self.lock().table.short(inode, size)
    }

    /// Unmaps `len` bytes of the window from `start` on. Where nothing is mapped there is nothing
    /// to do.
    ///
    /// # Errors
    /// `EINVAL` where a range lies there in part, which changes nothing; else the number of the
    /// frontend's refusal, and the rest is unmapped all the same.
    pub(crate) fn remove(&self, start: u64, len: u64) -> io::Result<()> {
        let mut state = self.lock();
        if !state.table.is_whole(start, len) {
            log::debug!("cannot unmap {len:#x} bytes at {start:#x}: a range lies there in part");
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let ranges = state.table.take_overlapping(start, len);
        self.recount(&state);
        state.unmap(&ranges)
    }

    /// Unmaps what is left of a file that the guest has forgotten.
    ///
    /// # Errors
    /// Like [`remove`](Self::remove).
    pub(crate) fn forget(&self, inode: u64) -> io::Result<()> {
        let mut state = self.lock();
        let ranges = state.table.take_inode(inode);
        self.recount(&state);
        state.unmap(&ranges)
    }

    /// Unmaps everything, as far as it is still there.
    pub(crate) fn clear(&self) {
        let mut state = self.lock();
        let ranges = state.table.take_all();
        self.recount(&state);
        for range in &ranges {
            state.link.discard(range);
        }
    }

    /// Whether a range of this file is mapped.
    pub(crate) fn has(&self, inode: u64) -> bool {
        self.lock().table.has(inode)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recount(&self, state: &State) {
        self.unfinished
            .store(state.table.unfinished(), Ordering::Release);
    }
}

impl State {
    /// The range that stands for the same bytes already, or an empty one where there is room now.
    fn room_for(&mut self, wish: &Wish, size: u64) -> Range {
        let same = self.table.take_same(wish);
        let old = match same {
            Some(range) if range.filled() <= wish.fillable(size) => return range,
            Some(range) => vec![range],
            None => self.table.take_overlapping(wish.window, wish.len),
        };
        // What could not be unmapped has been logged; the map that follows tells the guest.
        self.unmap(&old).unwrap_or_default();
        Range::new(*wish)
    }

    /// Maps every piece of a range again, with its protection, and then what is missing.
    fn fill(&self, range: &mut Range, size: u64, file: &dyn AsRawFd) -> io::Result<()> {
        for piece in &range.pieces {
            self.link.map(&range.wish, piece, file)?;
        }
        self.extend(range, size, file)
    }

    fn extend(&self, range: &mut Range, size: u64, file: &dyn AsRawFd) -> io::Result<()> {
        if let Some(piece) = range.missing(size) {
            self.link.map(&range.wish, &piece, file)?;
            range.pieces.push(piece);
        }
        Ok(())
    }

    fn unmap(&self, ranges: &[Range]) -> io::Result<()> {
        ranges
            .iter()
            .map(|range| self.link.unmap(range))
            .reduce(Result::and)
            .unwrap_or(Ok(()))
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}
