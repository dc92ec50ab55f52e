//! Owns the switching of the hypervisor's log of dirty pages for all slots of a window, and the
//! window's own bits beside it. Never registers or unregisters a slot.

// UNSAFETY: the flag of a slot is switched by the call that registers one.
#![expect(unsafe_code, reason = "switching the flag of a slot is an unsafe call")]

use std::io;

use super::Slot;
use super::dirty::DirtyBits;
use super::table::SlotTable;
use crate::error::Error;
use crate::range::PageRange;

impl SlotTable {
    /// The registered slots, by ascending guest address.
    pub(crate) fn slots(&self) -> Vec<Slot> {
        self.by_start.values().map(|(_, slot)| *slot).collect()
    }

    pub(crate) fn logs_dirty_pages(&self) -> bool {
        self.dirty.is_some()
    }

    /// Switches the log on for every slot or, after a failure, for none. A slot that cannot be
    /// put back goes on logging for nobody, and says so.
    pub(crate) fn start_dirty_log(&mut self) -> Result<(), Error> {
        if self.logs_dirty_pages() {
            return Err(Error::DirtyLogOn);
        }
        if !self.provider.can_log_dirty_pages() {
            return Err(Error::DirtyLogUnsupported);
        }
        if let Err(error) = self.switch_until_failure() {
            if let Err(second) = self.switch_off() {
                log::warn!("cannot put the memslots back: {second}");
            }
            return Err(error);
        }
        let mut dirty = DirtyBits::default();
        for (extent, _) in self.by_start.values() {
            dirty.came(extent.range);
        }
        self.dirty = Some(dirty);
        Ok(())
    }

    /// Ends the log, and switches it off for every slot that lets itself be switched. The first
    /// failure is reported.
    pub(crate) fn stop_dirty_log(&mut self) -> Result<(), Error> {
        let left = self
            .by_start
            .values()
            .any(|(_, slot)| slot.logs_dirty_pages);
        if self.dirty.take().is_none() && !left {
            return Err(Error::DirtyLogOff);
        }
        self.switch_off()
    }

    fn switch_until_failure(&mut self) -> Result<(), Error> {
        let starts: Vec<u64> = self.by_start.keys().copied().collect();
        starts
            .iter()
            .try_for_each(|start| self.switch(*start, true))
    }

    fn switch_off(&mut self) -> Result<(), Error> {
        let starts: Vec<u64> = self.by_start.keys().copied().collect();
        let mut first = Ok(());
        for start in starts {
            first = first.and(self.switch(start, false));
        }
        first
    }

    fn switch(&mut self, start: u64, on: bool) -> Result<(), Error> {
        let Some((_, slot)) = self.by_start.get_mut(&start) else {
            return Ok(());
        };
        if slot.logs_dirty_pages == on {
            return Ok(());
        }
        let switched = Slot {
            logs_dirty_pages: on,
            ..*slot
        };
        // SAFETY: what stands in the table is registered, with these figures, until `unregister`
        // takes it out.
        let answer = unsafe { self.provider.log_dirty_pages(&switched) };
        answer.map_err(|source| Error::DirtyLogSwitch {
            on,
            number: slot.number,
            guest: slot.guest,
            len: slot.len,
            source,
        })?;
        *slot = switched;
        Ok(())
    }

    /// The pages of `range` have changed.
    pub(crate) fn mark_dirty(&mut self, range: PageRange) {
        if let Some(dirty) = &mut self.dirty {
            dirty.mark(range);
        }
    }

    /// A change of slots has come to its end.
    pub(crate) fn settle_dirty_log(&mut self) {
        if let Some(dirty) = &mut self.dirty {
            dirty.settle();
        }
    }

    /// Every slot with the pages that have changed under it since the last time: by the window's
    /// own doing, and by what `fetch` says of it. After a failure nothing is lost: what was fetched
    /// is kept for the next time.
    pub(crate) fn take_dirty_log(
        &mut self,
        mut fetch: impl FnMut(&Slot) -> io::Result<Option<Vec<u64>>>,
    ) -> Result<Vec<(Slot, Vec<u64>)>, Error> {
        let dirty = self.dirty.as_mut().ok_or(Error::DirtyLogOff)?;
        for (start, (_, slot)) in &self.by_start {
            let failed = |source| Error::DirtyLogFetch {
                number: slot.number,
                source,
            };
            match fetch(slot).map_err(failed)? {
                Some(words) if !dirty.fold(*start, &words) => {
                    return Err(failed(io::ErrorKind::InvalidData.into()));
                }
                Some(_) | None => {}
            }
        }
        let logs = self.by_start.iter();
        Ok(logs
            .map(|(start, (_, slot))| (*slot, dirty.take(*start)))
            .collect())
    }
}
