//! Owns how a step of the script is carried out: the requests to the front-end, the looks of the
//! guest, and the look into the device's own memory afterwards. Never decides what comes next.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};

use crate::PAGE;
use crate::blob::Blob;
use crate::channel::{Channel, Reply, map_request, unmap_request};
use crate::look::{Expected, Look};
use crate::mailbox::Device;
use crate::script::{Bad, Piece, Place, Step};
use crate::stamp::{LOST, Stamp, Wrong, mark};
use crate::tally::Tally;

/// How many pages of memory the guest looks at for one step, and how many of a hole, which cost
/// much more.
const PAGES_PER_LOOK: u64 = 64;
const HOLES_PER_LOOK: u64 = 3;

/// What lies at a place: the piece, its memory, and the number of the change.
#[derive(Debug)]
struct Held {
    piece: Piece,
    blob: Blob,
    number: u64,
}

/// The steps made so far, and what came of them.
#[derive(Debug)]
pub struct Play<'a> {
    frontend: &'a Channel,
    region: u64,
    mailbox: Device<'a, Blob>,
    held: HashMap<u64, Held>,
    number: u64,
    tally: Tally,
}

impl<'a> Play<'a> {
    /// Begins in a region of so many pages, with the guest at the other end of the mailbox.
    #[must_use]
    pub fn new(frontend: &'a Channel, region: u64, mailbox: Device<'a, Blob>) -> Self {
        Self {
            frontend,
            region,
            mailbox,
            held: HashMap::new(),
            number: 0,
            tally: Tally::default(),
        }
    }

    /// What came of it so far.
    #[must_use]
    pub const fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Makes one step, and has the guest look.
    pub fn step(&mut self, step: Step) -> Result<()> {
        match step {
            Step::Map(piece) => {
                self.map(piece)?;
                count(&mut self.tally.mapped);
                self.look(piece.place)
            }
            Step::Unmap(place) => {
                let held = self.unmap(place)?;
                count(&mut self.tally.unmapped);
                self.look_at_hole(place)?;
                self.check_marks(&held, PAGES_PER_LOOK)
            }
            Step::Replace(piece) => {
                let held = self.unmap(piece.place)?;
                self.map(piece)?;
                count(&mut self.tally.replaced);
                self.look(piece.place)?;
                self.check_marks(&held, PAGES_PER_LOOK)
            }
            Step::Over(piece) => self.over(piece),
            Step::Refused(bad, place) => self.refused(bad, place),
        }
    }

    /// Has the guest look at a mapping once more.
    pub fn look_again(&mut self, place: Place) -> Result<()> {
        let before = self.tally.pages;
        self.look(place)?;
        let looked = self.tally.pages.saturating_sub(before);
        add(&mut self.tally.again, looked);
        Ok(())
    }

    /// Has the guest look at a mapping, and looks for its marks.
    fn look(&mut self, place: Place) -> Result<()> {
        let held = self.held.get(&place.page);
        let held = held.context("nothing is mapped there")?;
        let look = stamps(held, PAGES_PER_LOOK);
        let answer = self.mailbox.ask(&look)?;
        add(&mut self.tally.pages, answer.looked);
        self.note_wrong(answer.wrong, answer.first);
        let held = self.held.remove(&place.page).context("it is gone")?;
        let checked = self.check_marks(&held, PAGES_PER_LOOK);
        self.held.insert(place.page, held);
        checked
    }

    /// Tells the guest to stop, and says what came of it all.
    pub fn end(self) -> Result<Tally> {
        self.mailbox.end()?;
        Ok(self.tally)
    }

    fn look_at_hole(&mut self, place: Place) -> Result<()> {
        let answer = self.mailbox.ask(&Look {
            at: place.page.saturating_mul(PAGE),
            pages: place.pages,
            stride: stride(place.pages, HOLES_PER_LOOK),
            expected: Expected::Hole,
        })?;
        add(&mut self.tally.holes, answer.looked);
        self.note_wrong(answer.wrong, answer.first);
        Ok(())
    }

    fn note_wrong(&mut self, wrong: u64, first: Wrong) {
        add(&mut self.tally.wrong, wrong);
        if wrong > 0 {
            let Wrong { at, found } = first;
            log::warn!("{wrong} pages are wrong: {found:#x} at {at:#x} of the region");
        }
        if wrong > 0 && self.tally.first_wrong.is_none() {
            self.tally.first_wrong = Some(first);
        }
    }

    /// Looks for the guest's marks in the device's own memory, where it was told to look: in
    /// memory that it may write, and nowhere else.
    fn check_marks(&mut self, held: &Held, pages: u64) -> Result<()> {
        let look = stamps(held, pages);
        for place in look.places() {
            let index = held.piece.skip.saturating_add(place);
            let stamp = Stamp {
                number: held.number,
                index,
            };
            let found = mark(&held.blob, index.saturating_mul(PAGE))?;
            let expected = if held.piece.writable { stamp.mark() } else { 0 };
            count(&mut self.tally.marks);
            if found != expected || found == LOST {
                count(&mut self.tally.wrong_marks);
            }
        }
        Ok(())
    }

    fn next_blob(&mut self, piece: &Piece) -> Result<(Blob, u64)> {
        count(&mut self.number);
        let pages = piece.skip.saturating_add(piece.place.pages);
        Ok((Blob::stamped(pages, self.number)?, self.number))
    }

    fn map(&mut self, piece: Piece) -> Result<()> {
        let (blob, number) = self.next_blob(&piece)?;
        let reply = self.frontend.map(&map_request(&piece), &blob)?;
        ensure!(
            reply == Reply::Done,
            "the front-end refuses to map {piece:?}"
        );
        self.held.insert(
            piece.place.page,
            Held {
                piece,
                blob,
                number,
            },
        );
        Ok(())
    }

    fn unmap(&mut self, place: Place) -> Result<Held> {
        let reply = self.frontend.unmap(&unmap_request(place))?;
        ensure!(
            reply == Reply::Done,
            "the front-end refuses to unmap {place:?}"
        );
        self.held.remove(&place.page).context("it was not mapped")
    }

    fn over(&mut self, piece: Piece) -> Result<()> {
        let (blob, number) = self.next_blob(&piece)?;
        let held = Held {
            piece,
            blob,
            number,
        };
        if self.frontend.map(&map_request(&piece), &held.blob)? == Reply::Refused {
            count(&mut self.tally.over_refused);
            return self.look_again(piece.place);
        }
        count(&mut self.tally.over);
        let before = self.held.insert(piece.place.page, held);
        self.look(piece.place)?;
        before.map_or(Ok(()), |before| self.check_marks(&before, PAGES_PER_LOOK))
    }

    /// Asks for what must be refused, and has the guest see that nothing has changed.
    fn refused(&mut self, bad: Bad, place: Place) -> Result<()> {
        let piece = Piece {
            place,
            skip: 0,
            writable: true,
        };
        let mut pages = place.pages;
        let mut wanted = map_request(&piece);
        match bad {
            Bad::Overlap => {
                let last = place.end().saturating_sub(1);
                wanted.shm_offset = last.saturating_mul(PAGE);
            }
            Bad::PastEnd => {
                let left = self.region.saturating_sub(place.page);
                let beyond = left.saturating_add(1);
                wanted.len = beyond.saturating_mul(PAGE);
                pages = beyond;
            }
            Bad::Misaligned => wanted.shm_offset = wanted.shm_offset.saturating_add(8),
            Bad::PastDescriptor => wanted.fd_offset = wanted.fd_offset.saturating_add(PAGE),
            Bad::NoRegion => wanted.shmid = 7,
            Bad::UnmapHole => {}
        }
        let reply = match bad {
            Bad::UnmapHole => self.frontend.unmap(&unmap_request(place))?,
            _ => self.frontend.map(&wanted, &Blob::empty(pages)?)?,
        };
        match reply {
            Reply::Refused => count(&mut self.tally.refused),
            // What is mapped now is anybody's guess.
            Reply::Done => {
                count(&mut self.tally.accepted);
                bail!("the front-end accepted what it must refuse: {bad:?} at {place:?}");
            }
        }
        if bad == Bad::Overlap && self.held.contains_key(&place.page) {
            return self.look_again(place);
        }
        if bad == Bad::Overlap {
            return Ok(());
        }
        self.look_at_hole(place)
    }
}

fn stamps(held: &Held, pages: u64) -> Look {
    let Piece {
        place,
        skip,
        writable,
    } = held.piece;
    Look {
        at: place.page.saturating_mul(PAGE),
        pages: place.pages,
        stride: stride(place.pages, pages),
        expected: Expected::Stamps {
            number: held.number,
            index: skip,
            writable,
        },
    }
}

fn stride(pages: u64, looks: u64) -> u64 {
    pages.div_ceil(looks.max(1))
}

const fn count(figure: &mut u64) {
    add(figure, 1);
}

const fn add(figure: &mut u64, more: u64) {
    *figure = figure.saturating_add(more);
}
