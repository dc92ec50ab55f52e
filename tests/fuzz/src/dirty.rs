//! Owns what the model knows of the dirty log: the pages that it must not miss. More may be in it.

use std::collections::BTreeSet;
use std::ops::Range;

use vm_remap::{Error, PAGE_SIZE, Window};

use crate::recorder::Recorder;

/// What a round of the log does.
#[derive(arbitrary::Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Round {
    Start,
    Take,
    Stop,
}

/// The log, and the pages of the window that have changed since it was taken.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    on: bool,
    changed: BTreeSet<u64>,
}

impl Dirty {
    /// Notes pages that have changed.
    pub(crate) fn note(&mut self, pages: impl IntoIterator<Item = u64>) {
        if self.on {
            self.changed.extend(pages);
        }
    }

    pub(crate) fn turn(&mut self, round: Round, window: &Window, recorder: &Recorder) {
        match round {
            Round::Start => {
                let started = window.start_dirty_log();
                let right = match &started {
                    Ok(()) => !self.on,
                    Err(error) => self.on && matches!(error, Error::DirtyLogOn),
                };
                assert!(right, "{started:?}");
                self.on = true;
            }
            Round::Take => self.take(window, recorder),
            Round::Stop => {
                let stopped = window.stop_dirty_log();
                assert_eq!(stopped.is_ok(), self.on, "{stopped:?}");
                self.on = false;
                self.changed.clear();
            }
        }
    }

    fn take(&mut self, window: &Window, recorder: &Recorder) {
        let logs = window.take_dirty_log_with(|slot| Ok(recorder.dirty_log(slot)));
        let logs = match logs {
            Ok(logs) => logs,
            Err(error) => {
                let off = matches!(error, Error::DirtyLogOff);
                return assert!(off && !self.on, "{error}");
            }
        };
        assert!(self.on, "a log is taken that is off");
        let base = window.base().0;
        let mut covered = BTreeSet::new();
        let mut dirty = BTreeSet::new();
        for log in &logs {
            let first = (log.slot.guest_address().0 - base) / PAGE_SIZE;
            let pages: Range<u64> = first..first + log.slot.len() / PAGE_SIZE;
            for guest in log.addresses() {
                let page = (guest.0 - base) / PAGE_SIZE;
                assert!(pages.contains(&page), "page {page} in the log of {pages:?}");
                dirty.insert(page);
            }
            covered.extend(pages);
        }
        let live = recorder
            .live()
            .into_iter()
            .map(|slot| slot.len() / PAGE_SIZE);
        assert_eq!(covered.len() as u64, live.sum::<u64>(), "a slot has no log");
        // What lies under no slot is a hole, and no log speaks of it.
        for page in std::mem::take(&mut self.changed) {
            let missed = covered.contains(&page) && !dirty.contains(&page);
            assert!(!missed, "the log misses page {page}: {dirty:?}");
        }
    }
}
