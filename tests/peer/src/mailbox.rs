//! Owns the page through which the device asks and the guest answers. Never trusts what the other
//! side wrote: a word that makes no sense ends the talk.

use std::thread::{sleep, yield_now};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::PAGE;
use crate::look::{Answer, Expected, Look, Order};
use crate::stamp::Wrong;
use crate::words::Words;

/// What the page begins with.
const MAGIC: u64 = u64::from_le_bytes(*b"vmremap1");

// The words of the device, then those of the guest, each at its place in bytes.
const OPEN: u64 = 0;
const BELL: u64 = 8;
const KIND: u64 = 16;
const AT: u64 = 24;
const PAGES: u64 = 32;
const STRIDE: u64 = 40;
const NUMBER: u64 = 48;
const INDEX: u64 = 56;
const GREETING: u64 = 1024;
const ANSWERED: u64 = 1032;
const LOOKED: u64 = 1040;
const WRONG: u64 = 1048;
const WRONG_AT: u64 = 1056;
const FOUND: u64 = 1064;

/// The device's end of the mailbox.
#[derive(Debug)]
pub struct Device<'m, W> {
    page: &'m W,
    bell: u64,
    patience: Duration,
}

impl<'m, W: Words> Device<'m, W> {
    /// Opens the mailbox in a page of zeroes. The guest may take `patience` for each answer.
    pub fn open(page: &'m W, patience: Duration) -> Result<Self> {
        page.store(OPEN, MAGIC)?;
        Ok(Self {
            page,
            bell: 0,
            patience,
        })
    }

    /// Whether the guest has found the mailbox.
    pub fn is_greeted(&self) -> Result<bool> {
        Ok(self.page.load(GREETING)? == MAGIC)
    }

    /// Has the guest look, and waits for what it saw.
    pub fn ask(&mut self, look: &Look) -> Result<Answer> {
        let (kind, number, index) = match look.expected {
            Expected::Stamps {
                number,
                index,
                writable: false,
            } => (1, number, index),
            Expected::Stamps { number, index, .. } => (2, number, index),
            Expected::Hole => (3, 0, 0),
        };
        self.page.store(AT, look.at)?;
        self.page.store(PAGES, look.pages)?;
        self.page.store(STRIDE, look.stride)?;
        self.page.store(NUMBER, number)?;
        self.page.store(INDEX, index)?;
        self.ring(kind)?;
        let answer = Answer {
            looked: self.page.load(LOOKED)?,
            wrong: self.page.load(WRONG)?,
            first: Wrong {
                at: self.page.load(WRONG_AT)?,
                found: self.page.load(FOUND)?,
            },
        };
        let expected = look.places().count();
        ensure!(
            u64::try_from(expected)? == answer.looked && answer.wrong <= answer.looked,
            "the guest was to look at {expected} pages and says that it looked at {} and found {} wrong",
            answer.looked,
            answer.wrong
        );
        Ok(answer)
    }

    /// Tells the guest that there is nothing more to do.
    pub fn end(mut self) -> Result<()> {
        self.ring(4)
    }

    fn ring(&mut self, kind: u64) -> Result<()> {
        self.page.store(KIND, kind)?;
        self.bell = self.bell.saturating_add(1);
        self.page.store(BELL, self.bell)?;
        let answered = within(self.patience, || match self.page.load(ANSWERED)? {
            answered if answered == self.bell => Ok(true),
            answered if answered.saturating_add(1) == self.bell => Ok(false),
            answered => bail!(
                "the guest answers question {answered}, it was asked {}",
                self.bell
            ),
        })?;
        ensure!(
            answered,
            "the guest has not answered for {:?}",
            self.patience
        );
        Ok(())
    }
}

/// The guest's end of the mailbox.
#[derive(Debug)]
pub struct Guest<'m, W> {
    region: &'m W,
    pages: u64,
    answered: u64,
    patience: Duration,
}

impl<'m, W: Words> Guest<'m, W> {
    /// Waits until the device has opened the mailbox at the start of a region of so many pages.
    /// Until it has, there is a hole.
    pub fn find(region: &'m W, pages: u64, patience: Duration) -> Result<Self> {
        let found = within(patience, || Ok(region.load(OPEN)? == MAGIC))?;
        ensure!(
            found,
            "there is no mailbox at the region's start after {patience:?}, but {:#x}",
            region.load(OPEN)?
        );
        region.store(GREETING, MAGIC)?;
        Ok(Self {
            region,
            pages,
            answered: 0,
            patience,
        })
    }

    /// Waits for the next order.
    pub fn order(&mut self) -> Result<Order> {
        let next = self.answered.saturating_add(1);
        let rung = within(self.patience, || match self.region.load(BELL)? {
            bell if bell == next => Ok(true),
            bell if bell == self.answered => Ok(false),
            bell => bail!("the device's question {next} is {bell:#x}: the mailbox is gone"),
        })?;
        ensure!(rung, "the device has said nothing for {:?}", self.patience);
        self.answered = next;
        let (number, index) = (self.region.load(NUMBER)?, self.region.load(INDEX)?);
        let expected = match self.region.load(KIND)? {
            kind @ (1 | 2) => Expected::Stamps {
                number,
                index,
                writable: kind == 2,
            },
            3 => Expected::Hole,
            4 => return Ok(Order::End),
            kind => bail!("the device's order {kind:#x} makes no sense"),
        };
        let look = Look {
            at: self.region.load(AT)?,
            pages: self.region.load(PAGES)?,
            stride: self.region.load(STRIDE)?,
            expected,
        };
        let end = look.pages.checked_mul(PAGE);
        let end = end.and_then(|len| len.checked_add(look.at));
        let inside = end.is_some_and(|end| end <= self.pages.saturating_mul(PAGE));
        ensure!(
            inside && look.at.is_multiple_of(PAGE),
            "the device asks for {look:x?}, outside of its region"
        );
        Ok(Order::Look(look))
    }

    /// Answers the last order.
    pub fn answer(&self, answer: &Answer) -> Result<()> {
        self.region.store(LOOKED, answer.looked)?;
        self.region.store(WRONG, answer.wrong)?;
        self.region.store(WRONG_AT, answer.first.at)?;
        self.region.store(FOUND, answer.first.found)?;
        self.region.store(ANSWERED, self.answered)
    }
}

/// Asks until the answer is yes, for so long; first in haste, then at rest.
pub fn within(patience: Duration, mut ask: impl FnMut() -> Result<bool>) -> Result<bool> {
    let start = Instant::now();
    let mut asked: u32 = 0;
    loop {
        if ask()? {
            return Ok(true);
        }
        if start.elapsed() > patience {
            return Ok(false);
        }
        asked = asked.saturating_add(1);
        match asked {
            0..200 => yield_now(),
            200..2000 => sleep(Duration::from_micros(50)),
            _ => sleep(Duration::from_millis(20)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::Blob;

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(30);

    fn look() -> Look {
        Look {
            at: 2 * PAGE,
            pages: 10,
            stride: 4,
            expected: Expected::Stamps {
                number: 5,
                index: 1,
                writable: true,
            },
        }
    }

    #[test]
    fn orders_and_answers_arrive() {
        let page = Blob::empty(16).unwrap();
        let mut device = Device::open(&page, LONG).unwrap();
        let answer = Answer {
            looked: 4,
            wrong: 1,
            first: Wrong { at: 9, found: 8 },
        };
        std::thread::scope(|scope| {
            let guest = scope.spawn(|| {
                let mut guest = Guest::find(&page, 16, LONG).unwrap();
                assert_eq!(guest.order().unwrap(), Order::Look(look()));
                guest.answer(&answer).unwrap();
                assert_eq!(guest.order().unwrap(), Order::End);
                guest.answer(&Answer::default()).unwrap();
            });
            assert_eq!(device.ask(&look()).unwrap(), answer);
            assert!(device.is_greeted().unwrap());
            device.end().unwrap();
            guest.join().unwrap();
        });
    }

    #[test]
    fn guest_that_is_silent_or_lies_ends_the_talk() {
        let page = Blob::empty(1).unwrap();
        let mut device = Device::open(&page, SHORT).unwrap();
        let silent = device.ask(&look()).unwrap_err().to_string();
        assert!(silent.contains("has not answered"), "{silent}");
        page.store(ANSWERED, 70).unwrap();
        let wild = device.ask(&look()).unwrap_err().to_string();
        assert!(wild.contains("answers question 70"), "{wild}");
        page.store(ANSWERED, 3).unwrap();
        page.store(LOOKED, u64::MAX).unwrap();
        let lie = device.ask(&look()).unwrap_err().to_string();
        assert!(lie.contains("was to look at 4 pages"), "{lie}");
    }

    #[test]
    fn device_that_is_gone_or_asks_beyond_its_region_ends_the_talk() {
        let region = Blob::empty(16).unwrap();
        let found = Guest::find(&region, 16, SHORT).unwrap_err().to_string();
        assert!(found.contains("there is no mailbox"), "{found}");
        let _device = Device::open(&region, SHORT).unwrap();
        let mut guest = Guest::find(&region, 16, SHORT).unwrap();
        let silent = guest.order().unwrap_err().to_string();
        assert!(silent.contains("said nothing"), "{silent}");
        region.store(KIND, 3).unwrap();
        region.store(BELL, 1).unwrap();
        for (at, pages) in [(15 * PAGE, 2), (8, 1), (PAGE, u64::MAX)] {
            region.store(AT, at).unwrap();
            region.store(PAGES, pages).unwrap();
            guest.answered = 0;
            let outside = guest.order().unwrap_err().to_string();
            assert!(outside.contains("outside of its region"), "{outside}");
        }
        region.store(BELL, u64::MAX).unwrap();
        let gone = guest.order().unwrap_err().to_string();
        assert!(gone.contains("the mailbox is gone"), "{gone}");
    }
}
