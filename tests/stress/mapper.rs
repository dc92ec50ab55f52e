//! Owns the threads that change the windows: each a part of its own, of which it knows what must be
//! there, and all of them one more, where they come upon one another.

use vm_remap::Protection::{ReadOnly, ReadWrite};
use vm_remap::{Batch, Error, Window};
use vm_remap_cli::guest::PAGE;

use crate::eyes::peek;
use crate::scene::{BLOBS, MAPPERS, PAGES, PART, Scene, WINDOWS, pages, word};

/// A part of a window that nobody else changes: the blob behind each page.
struct Part {
    start: u64,
    pages: Vec<Option<usize>>,
    never_a_hole: bool,
    /// Whether each change is prepared ahead of its commit.
    prepares: bool,
}

/// Changes both windows until the end; says how often.
pub(crate) fn change(scene: &Scene, thread: u64) -> String {
    let _alarm = scene.alarm();
    let mut random = scene.random(thread);
    let mut part = Part::new(scene, thread);
    let (mut own, mut shared, mut met) = (0_u64, 0_u64, 0_u64);
    while scene.goes_on_with(own) {
        if random(3) > 0 {
            let made = part.change(scene, &mut random);
            own += u64::from(made);
            met += u64::from(!made);
        } else {
            met += u64::from(!change_shared(scene, &mut random));
            shared += 1;
        }
    }
    part.check(scene, 0, PART);
    format!("thread {thread} made {own} changes of its own, {shared} of everybody's, {met} refused")
}

impl Part {
    fn new(scene: &Scene, thread: u64) -> Self {
        let never_a_hole = thread == MAPPERS - 1;
        let start = thread * PART;
        assert!(!never_a_hole || start == scene.always_mapped().0);
        Self {
            start,
            pages: vec![never_a_hole.then_some(0); usize::try_from(PART).unwrap()],
            never_a_hole,
            prepares: thread == 0,
        }
    }

    /// Makes changes all at once, or says that a pin is in the way.
    fn commit(&self, window: &Window, batch: &Batch<'_>) -> Result<(), Error> {
        if !self.prepares {
            return window.commit(batch);
        }
        let prepared = window.prepare(batch).unwrap();
        window.commit_prepared(prepared)
    }

    /// Whether a change was made: a pin can be in its way.
    fn change(&mut self, scene: &Scene, random: &mut impl FnMut(u64) -> u64) -> bool {
        let window = &scene.windows[0];
        let first = random(PART);
        let count = 1 + random((PART - first).min(64));
        let blob = usize::try_from(random(BLOBS as u64)).unwrap();
        let from = self.start + first;
        let (range, source) = (pages(from, count), scene.source(blob, from));
        let verb = if self.never_a_hole {
            random(2)
        } else {
            random(5)
        };
        let batch = Batch::new();
        let (made, comes) = match verb {
            0 if self.prepares => {
                let batch = batch.replace(range, &source, ReadWrite);
                (self.commit(window, &batch), Some(blob))
            }
            0 => (window.replace(range, &source, ReadWrite), Some(blob)),
            1 => {
                // All at once; in the middle there is another for a moment that nobody sees last.
                let other = scene.source((blob + 1) % BLOBS, from);
                let batch = batch.replace(range, &other, ReadOnly);
                let batch = batch.replace(range, &source, ReadWrite);
                (self.commit(window, &batch), Some(blob))
            }
            2 => (window.map(range, &source, ReadOnly), Some(blob)),
            3 => {
                let batch = batch.unmap(range).map(range, &source, ReadWrite);
                (self.commit(window, &batch), Some(blob))
            }
            _ => (window.unmap(range), None),
        };
        let free = self.of(first, count).iter().all(Option::is_none);
        match made {
            Ok(()) => {
                assert!(verb != 2 || free, "mapped over a mapping");
                self.of(first, count).fill(comes);
            }
            Err(Error::Pinned { .. }) => assert!(!free, "a hole is pinned"),
            Err(Error::Occupied { .. }) => assert!(verb == 2 && !free, "a hole is occupied"),
            Err(error) => panic!("{error}"),
        }
        self.check(scene, first, count);
        made.is_ok()
    }

    fn of(&mut self, first: u64, count: u64) -> &mut [Option<usize>] {
        let first = usize::try_from(first).unwrap();
        &mut self.pages[first..first + usize::try_from(count).unwrap()]
    }

    /// The host's view, at the ends and in the middle.
    fn check(&mut self, scene: &Scene, first: u64, count: u64) {
        for at in [first, first + count / 2, first + count - 1] {
            let page = self.start + at;
            let expected = self.of(at, 1)[0].map(|blob| word(blob, page).to_ne_bytes()[0]);
            let seen = peek(scene.arenas[0] + page * PAGE);
            // While a guest's instruction runs, a page of ones can stand in for a hole.
            let stands_in = scene.setting.resolved && expected.is_none();
            let seen = seen.filter(|byte| !stands_in || *byte != 0xff);
            assert_eq!(seen, expected, "page {page}");
        }
    }
}

/// Changes what others change as well; whether that was possible.
fn change_shared(scene: &Scene, random: &mut impl FnMut(u64) -> u64) -> bool {
    let index = usize::try_from(random(WINDOWS as u64)).unwrap();
    let window = &scene.windows[index];
    let first = PAGES - PART + random(PART - 32);
    let range = pages(first, 1 + random(32));
    let source = scene.source(usize::try_from(random(BLOBS as u64)).unwrap(), first);
    let result = match random(4) {
        0 => window.map(range, &source, ReadWrite),
        1 => window.replace(range, &source, ReadWrite),
        2 => window.unmap(range),
        _ => {
            let batch = Batch::new().unmap(range);
            window.commit(&batch.map(range, &source, ReadOnly))
        }
    };
    match result {
        Ok(()) => true,
        Err(Error::Occupied { .. } | Error::Pinned { .. }) => false,
        Err(error) => panic!("{error}"),
    }
}
