//! Owns the thread that keeps the dirty log of a window for the second half: it can always be
//! taken, has no page outside the window, and has every page that the thread itself changes.

use std::collections::BTreeSet;
use std::io;

use vm_remap::Protection::ReadWrite;
use vm_remap::{Error, Window};
use vm_remap_cli::guest::PAGE;

use crate::scene::{BLOBS, LOGGED, LOGGED_PART, PART, Scene, pages};

/// Starts the log when half of the time is over; says how often it was taken.
pub(crate) fn log(scene: &Scene) -> String {
    let _alarm = scene.alarm();
    let mut random = scene.random(6000);
    let window = &scene.windows[LOGGED];
    let (mut takes, mut all) = (0_u64, 0);
    let mut on = false;
    while scene.goes_on_with(takes) {
        if !on && scene.is_half_over() {
            window.start_dirty_log().unwrap();
            on = true;
        }
        let first = LOGGED_PART + random(PART);
        let count = 1 + random((LOGGED_PART + PART - first).min(16));
        let source = scene.source(usize::try_from(random(BLOBS as u64)).unwrap(), first);
        let made = match window.replace(pages(first, count), &source, ReadWrite) {
            Ok(()) => true,
            Err(Error::Pinned { .. }) => false,
            Err(error) => panic!("{error}"),
        };
        if on {
            let dirty = take(scene, window);
            let missed = (first..first + count).find(|page| made && !dirty.contains(page));
            assert_eq!(missed, None, "the log misses a page of {first}, {count}");
            takes += 1;
            all += dirty.len();
        }
    }
    if on {
        window.stop_dirty_log().unwrap();
    }
    format!("{takes} logs taken, {all} pages in them")
}

/// The pages of the window that have changed, by its own doing or the guest's.
fn take(scene: &Scene, window: &Window) -> BTreeSet<u64> {
    let vm = scene.guest.vm();
    let logs = window.take_dirty_log_with(|slot| {
        let len = usize::try_from(slot.len()).unwrap();
        vm.get_dirty_log(slot.number(), len)
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))
    });
    let (base, end) = (window.base().0, window.base().0 + window.len());
    let logs = logs.unwrap();
    let pages = logs.iter().flat_map(|log| log.addresses());
    pages
        .map(|guest| {
            assert!(
                (base..end).contains(&guest.0),
                "{guest} is not the window's"
            );
            (guest.0 - base) / PAGE
        })
        .collect()
}
