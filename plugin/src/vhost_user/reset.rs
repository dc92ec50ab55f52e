//! Owns the way back of a device's windows to holes. Never maps.

use super::handler::{Books, ResetError, ShmemHandler};
use super::tally::count;
use crate::error::{Error, StateAfter};
use crate::range::PageRange;
use crate::window::Window;
use crate::window::batch::Batch;
use crate::window::pins::OnPinned;

impl<I> ShmemHandler<I> {
    /// Returns every window to a hole, as the specification asks for when the device is reset, and
    /// as must be when its backend is gone: one call to the kernel for each window.
    ///
    /// Where a pin is in the way, the call waits as long as the window's
    /// [`OnPinned`](crate::OnPinned) says. What is pinned then stays, everything else goes.
    ///
    /// # Errors
    /// [`ResetError`], with what is left. Until a reset succeeds, maps into those regions are
    /// refused with `EBUSY`, so nothing new lies beside the old. A poisoned window is an error as
    /// well, but nothing of it reaches the guest any more.
    pub fn reset(&self) -> Result<(), ResetError> {
        let mut books = self.books();
        let mut first = None;
        for (region, window) in &self.windows {
            if let Err(error) = empty(&mut books, *region, window) {
                log::warn!("cannot return region {region} to a hole: {error}");
                first.get_or_insert((*region, error));
            }
        }
        let Some((region, source)) = first else {
            count(&mut books.counters.resets);
            return Ok(());
        };
        count(&mut books.counters.failed_resets);
        let left = books.by_region.values().map(|book| book.all().len()).sum();
        Err(ResetError {
            region,
            left,
            source,
        })
    }
}

/// Makes all of one window a hole.
fn empty(books: &mut Books, region: u8, window: &Window) -> Result<(), Error> {
    let book = books.by_region.entry(region).or_default();
    // A window's length has been checked when it was opened.
    let whole = PageRange::new(0, window.len())?;
    let error = match window.unmap(whole) {
        Ok(()) => {
            book.clear(&mut books.usage);
            book.reset_pending = false;
            return Ok(());
        }
        Err(error) => error,
    };
    if error.state_after() != StateAfter::Unchanged {
        book.clear(&mut books.usage);
        return Err(error);
    }
    book.reset_pending = true;
    // What is in the way has been waited for once.
    for range in book.all() {
        let one = Batch::new().unmap(range).on_pinned(OnPinned::Refuse);
        if window.commit(&one).is_ok() {
            book.take(range, &mut books.usage);
        }
    }
    if book.all().is_empty() {
        book.reset_pending = false;
        return Ok(());
    }
    Err(error)
}
