//! Owns what the program in the guest does: it looks where the device tells it to, writes there,
//! and says what it saw. Never knows how the memory came there.

use std::time::Duration;

use anyhow::Result;

use crate::PAGE;
use crate::look::{Answer, Expected, Look, Order};
use crate::mailbox::Guest;
use crate::stamp::{Stamp, Wrong, mark, put_mark, wrong_hole};
use crate::words::Words;

/// What the guest saw in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// How often it was told to look.
    pub looks: u64,
    /// How many pages it looked at, holes among them.
    pub pages: u64,
    /// How many of these should have been holes.
    pub holes: u64,
    /// How many were not as the device said.
    pub wrong: u64,
}

/// Follows the device's orders in a region of so many pages until it says stop.
pub fn serve(region: &impl Words, pages: u64, patience: Duration) -> Result<Seen> {
    let mut mailbox = Guest::find(region, pages, patience)?;
    let mut seen = Seen::default();
    loop {
        let Order::Look(look) = mailbox.order()? else {
            mailbox.answer(&Answer::default())?;
            return Ok(seen);
        };
        let answer = inspect(region, &look)?;
        seen.looks = seen.looks.saturating_add(1);
        seen.pages = seen.pages.saturating_add(answer.looked);
        seen.wrong = seen.wrong.saturating_add(answer.wrong);
        if look.expected == Expected::Hole {
            seen.holes = seen.holes.saturating_add(answer.looked);
        }
        mailbox.answer(&answer)?;
    }
}

/// Looks at the pages of one range.
pub fn inspect(region: &impl Words, look: &Look) -> Result<Answer> {
    let mut answer = Answer::default();
    for place in look.places() {
        let at = look.at.saturating_add(place.saturating_mul(PAGE));
        let wrong = match look.expected {
            Expected::Hole => wrong_hole(region, at)?,
            Expected::Stamps {
                number,
                index,
                writable,
            } => {
                let index = index.saturating_add(place);
                wrong_page(region, at, Stamp { number, index }, writable)?
            }
        };
        answer.looked = answer.looked.saturating_add(1);
        if let Some(wrong) = wrong {
            if answer.wrong == 0 {
                answer.first = wrong;
            }
            answer.wrong = answer.wrong.saturating_add(1);
        }
    }
    Ok(answer)
}

/// Reads a page, leaves a mark and reads it again.
fn wrong_page(region: &impl Words, at: u64, stamp: Stamp, writable: bool) -> Result<Option<Wrong>> {
    if let Some(wrong) = stamp.wrong(region, at)? {
        return Ok(Some(wrong));
    }
    put_mark(region, at, stamp.mark())?;
    let found = mark(region, at)?;
    let expected = if writable { stamp.mark() } else { 0 };
    Ok(Some(Wrong { at, found }).filter(|_| found != expected))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::Blob;

    #[test]
    fn wrong_pages_are_counted_and_the_first_is_named() {
        let blob = Blob::stamped(8, 3).unwrap();
        let mut look = Look {
            at: 2 * PAGE,
            pages: 4,
            stride: 1,
            expected: Expected::Stamps {
                number: 3,
                index: 2,
                writable: true,
            },
        };
        let fine = inspect(&blob, &look).unwrap();
        assert_eq!((fine.looked, fine.wrong), (4, 0));
        let stamp = Stamp {
            number: 3,
            index: 5,
        };
        assert_eq!(mark(&blob, 5 * PAGE).unwrap(), stamp.mark());
        blob.store(4 * PAGE, 9).unwrap();
        blob.store(5 * PAGE, 9).unwrap();
        let wrong = inspect(&blob, &look).unwrap();
        let first = Wrong {
            at: 4 * PAGE,
            found: 9,
        };
        assert_eq!((wrong.looked, wrong.wrong, wrong.first), (4, 2, first));
        look.expected = Expected::Hole;
        assert_eq!(inspect(&blob, &look).unwrap().wrong, 4);
    }

    #[test]
    fn mark_that_stays_in_read_only_memory_is_wrong() {
        let blob = Blob::stamped(1, 3).unwrap();
        let look = Look {
            at: 0,
            pages: 1,
            stride: 1,
            expected: Expected::Stamps {
                number: 3,
                index: 0,
                writable: false,
            },
        };
        assert_eq!(inspect(&blob, &look).unwrap().wrong, 1);
    }
}
