//! Owns the figures of a run, and the words for them. Never decides what is counted.

use std::fmt;

use crate::stamp::Wrong;

/// What was done, and what was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Mappings made in a hole.
    pub mapped: u64,
    /// Mappings taken away.
    pub unmapped: u64,
    /// Mappings taken away and made anew at once.
    pub replaced: u64,
    /// Mappings made over another one.
    pub over: u64,
    /// Mappings over another one that the front-end refused, as the protocol has it.
    pub over_refused: u64,
    /// Pages of memory that the guest looked at.
    pub pages: u64,
    /// How many of these it had looked at before, with no change since.
    pub again: u64,
    /// Pages of holes that the guest looked at.
    pub holes: u64,
    /// Pages that were not as they should be, as the guest saw them.
    pub wrong: u64,
    /// The first of these.
    pub first_wrong: Option<Wrong>,
    /// Marks of the guest that were looked for in the device's memory.
    pub marks: u64,
    /// Marks that were not there, or were where they should not.
    pub wrong_marks: u64,
    /// Requests that had to be refused and were.
    pub refused: u64,
    /// Requests that had to be refused and were not.
    pub accepted: u64,
}

impl Tally {
    /// How many changes were made.
    #[must_use]
    pub const fn changes(&self) -> u64 {
        let made = self.mapped.saturating_add(self.unmapped);
        made.saturating_add(self.replaced).saturating_add(self.over)
    }

    /// Whether everything was as it should be.
    #[must_use]
    pub const fn is_right(&self) -> bool {
        self.wrong == 0 && self.wrong_marks == 0 && self.accepted == 0
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "changes           {} ({} maps, {} unmaps, {} replaced by unmap and map, {} in one)",
            self.changes(),
            self.mapped,
            self.unmapped,
            self.replaced,
            self.over
        )?;
        writeln!(
            f,
            "pages read        {}, {} of them once more, and {} of holes",
            self.pages, self.again, self.holes
        )?;
        writeln!(f, "wrong contents    {}", self.wrong)?;
        if let Some(Wrong { at, found }) = self.first_wrong {
            writeln!(f, "  the first       {found:#x} at {at:#x} of the region")?;
        }
        writeln!(
            f,
            "writes looked up  {}, wrong {}",
            self.marks, self.wrong_marks
        )?;
        writeln!(
            f,
            "refused           {} as they should be, {} maps over a mapping; {} accepted wrongly",
            self.refused, self.over_refused, self.accepted
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_wrong_is_enough() {
        let right = Tally {
            mapped: 3,
            over: 1,
            over_refused: 2,
            ..Tally::default()
        };
        assert!(right.is_right());
        assert_eq!(right.changes(), 4);
        let one = [
            Tally { wrong: 1, ..right },
            Tally {
                wrong_marks: 1,
                ..right
            },
            Tally {
                accepted: 1,
                ..right
            },
        ];
        assert!(one.iter().all(|tally| !tally.is_right()));
    }

    #[test]
    fn words_name_every_figure() {
        let tally = Tally {
            mapped: 1,
            unmapped: 2,
            replaced: 3,
            over: 4,
            over_refused: 5,
            pages: 6,
            again: 2,
            holes: 7,
            wrong: 8,
            first_wrong: Some(Wrong { at: 4096, found: 9 }),
            marks: 10,
            wrong_marks: 11,
            refused: 12,
            accepted: 13,
        };
        let expected = "\
changes           10 (1 maps, 2 unmaps, 3 replaced by unmap and map, 4 in one)
pages read        6, 2 of them once more, and 7 of holes
wrong contents    8
  the first       0x9 at 0x1000 of the region
writes looked up  10, wrong 11
refused           12 as they should be, 5 maps over a mapping; 13 accepted wrongly
";
        assert_eq!(tally.to_string(), expected);
    }
}
