//! Owns the tests of touches that meet another thread's change, or a kernel that fails. Never runs
//! a guest.

use std::sync::Arc;

use super::*;
use crate::arena::faults::{self, Effect, Fault, Plan};
use crate::error::StateAfter;
use crate::slots::SlotNumbers;
use crate::slots::recorder::Recorder;
use crate::source::Source;
use crate::window::options::WindowOptions;

fn open() -> Window {
    WindowOptions::new(GuestAddress(4 << 30), 16 * PAGE_SIZE)
        .open(Arc::new(Recorder::default()), SlotNumbers::new(0..4))
        .unwrap()
}

fn pages(start: u64, count: u64) -> PageRange {
    PageRange::new(start * PAGE_SIZE, count * PAGE_SIZE).unwrap()
}

fn map(window: &Window, range: PageRange) -> Result<(), Error> {
    window.map(range, &Source::anonymous(), Protection::ReadWrite)
}

fn write_to(page: u64) -> Touch<'static> {
    Touch {
        offset: page * PAGE_SIZE,
        write: true,
        stand_in: true,
        own: &[],
        copy: &|_, _| Ok(()),
    }
}

/// What stood in for the hole became a hole again in its turn, over another thread's mapping.
#[test]
fn nothing_stands_in_for_what_was_mapped_where_pages_were_lost() {
    let window = open();
    map(&window, pages(3, 1)).unwrap();
    let touched = window.touch_lost(write_to(3));
    assert!(matches!(touched, Touched::Present(_)), "{touched:?}");
    let touched = window.touch_lost(write_to(4));
    assert!(matches!(touched, Touched::Substituted(..)), "{touched:?}");
    window.close().unwrap();
}

#[test]
fn a_stand_in_that_poisons_the_window_is_not_forgotten_over_one_that_stays() {
    let window = open();
    map(&window, pages(0, 1)).unwrap();
    for page in [4, 5] {
        let touched = window.touch(write_to(page), &mut None);
        assert!(matches!(touched, Touched::Substituted(..)), "{touched:?}");
    }
    let fault = |effect| Fault {
        errno: Errno::NOMEM,
        effect,
    };
    // 0 makes the mapping elsewhere. 1 ends the first stand-in, 2 sees the gap, 3 fills it; 4 ends
    // the second one.
    faults::follow(&Plan::from([
        (1, fault(Effect::Unmapped)),
        (3, fault(Effect::Nothing)),
        (4, fault(Effect::Nothing)),
    ]));
    let error = map(&window, pages(4, 2)).unwrap_err();
    let hit = faults::made()
        .iter()
        .filter(|made| made.fault.is_some())
        .count();
    faults::follow(&Plan::new());
    assert_eq!(hit, 3);
    assert_eq!(error.state_after(), StateAfter::Poisoned, "{error}");
    let error = map(&window, pages(8, 1)).unwrap_err();
    assert!(matches!(error, Error::Poisoned), "{error}");
}

#[test]
fn a_touch_that_only_asks_has_nothing_stand_in() {
    let window = open();
    map(&window, pages(0, 1)).unwrap();
    let source = Source::anonymous();
    window
        .map(pages(1, 1), &source, Protection::ReadOnly)
        .unwrap();
    for (page, absent) in [(0, false), (1, false), (4, true)] {
        let asks = Touch {
            stand_in: false,
            ..write_to(page)
        };
        let touched = window.touch(asks, &mut None);
        assert_eq!(touched == Touched::Absent, absent, "{page} {touched:?}");
        assert_eq!(window.state().substitutes.ranges().count(), 0, "{page}");
    }
}
