//! Owns the serialisable record of a layout, for snapshot and migration, and the judgement
//! whether a record can be true. Never holds memory contents, and never opens a file.

use crate::error::Error;
use crate::layout::{Layout, Mapping, Origin};
use crate::range::{GuestAddress, PageRange};
use crate::source::Protection;

/// The form of [`LayoutRecord`] that this version writes and reads.
const VERSION: u32 = 1;

/// What is mapped where in a window: enough for another process to map it again, given the
/// descriptors. The contents of memory are not part of it.
///
/// A record may come from outside: [`Window::replay`](crate::Window::replay) believes none of its
/// figures.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct LayoutRecord {
    /// Version of this form, 1.
    pub version: u32,
    /// Guest address of the window when it was recorded.
    pub base: u64,
    /// Length of the window, in bytes.
    pub window: u64,
    /// The mappings, by ascending offset.
    pub mappings: Vec<MappingRecord>,
}

/// One mapping of a [`LayoutRecord`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct MappingRecord {
    /// Where it lies in the window, in bytes.
    pub offset: u64,
    /// Its length, in bytes.
    pub len: u64,
    /// What the guest may do with it.
    pub protection: Protection,
    /// What stood behind its first byte.
    pub origin: Origin,
    /// The caller's number, see [`Source::label`](crate::Source::label).
    pub label: u64,
}

impl MappingRecord {
    fn of(mapping: &Mapping) -> Self {
        Self {
            offset: mapping.range.start(),
            len: mapping.range.len(),
            protection: mapping.protection,
            origin: mapping.origin,
            label: mapping.label,
        }
    }
}

impl LayoutRecord {
    pub(crate) fn of(layout: &Layout, base: GuestAddress, window: u64) -> Self {
        let mappings = layout.iter().map(MappingRecord::of).collect();
        Self {
            version: VERSION,
            base: base.0,
            window,
            mappings,
        }
    }

    /// The ranges of the mappings, if the record fits a window of `window` bytes and can be true.
    pub(crate) fn ranges(&self, window: u64) -> Result<Vec<PageRange>, Error> {
        let refuse = |reason: String| Err(Error::Record { reason });
        if self.version != VERSION {
            return refuse(format!(
                "it has version {}, this library reads {VERSION}",
                self.version
            ));
        }
        if self.window > window {
            return refuse(format!(
                "it is of a window of {:#x} bytes, this one has {window:#x}",
                self.window
            ));
        }
        let mut ranges = Vec::new();
        let mut free_from = 0;
        for mapping in &self.mappings {
            let range = PageRange::new(mapping.offset, mapping.len)?;
            if range.end() > self.window {
                return refuse(format!(
                    "{range} does not lie in its window of {:#x} bytes",
                    self.window
                ));
            }
            if range.start() < free_from {
                return refuse(format!(
                    "{range} is out of order or overlaps the one before"
                ));
            }
            free_from = range.end();
            ranges.push(range);
        }
        Ok(ranges)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(offset: u64, len: u64) -> MappingRecord {
        let (protection, origin) = (Protection::ReadWrite, Origin::Anonymous);
        MappingRecord {
            offset,
            len,
            protection,
            origin,
            label: 0,
        }
    }

    fn record(mappings: Vec<MappingRecord>) -> LayoutRecord {
        LayoutRecord {
            version: VERSION,
            base: 0,
            window: 0x10000,
            mappings,
        }
    }

    #[test]
    fn ranges_of_an_honest_record_are_its_mappings() {
        let ranges = record(vec![entry(0, 0x1000), entry(0x1000, 0x2000)]).ranges(0x10000);
        assert_eq!(
            ranges.unwrap().last().map(|range| range.end()),
            Some(0x3000)
        );
    }

    #[test]
    fn ranges_of_a_record_tampered_with_are_refused() {
        let text = |record: LayoutRecord, window| record.ranges(window).unwrap_err().to_string();
        assert_eq!(
            text(
                LayoutRecord {
                    version: 9,
                    ..record(vec![])
                },
                0x10000
            ),
            "cannot replay the record: it has version 9, this library reads 1"
        );
        assert_eq!(
            text(record(vec![]), 0x8000),
            "cannot replay the record: it is of a window of 0x10000 bytes, this one has 0x8000"
        );
        assert_eq!(
            text(record(vec![entry(0xf000, 0x2000)]), 0x10000),
            "cannot replay the record: 0xf000..0x11000 does not lie in its window of 0x10000 bytes"
        );
        assert_eq!(
            text(
                record(vec![entry(0x1000, 0x2000), entry(0x2000, 0x1000)]),
                0x10000
            ),
            "cannot replay the record: 0x2000..0x3000 is out of order or overlaps the one before"
        );
        let wrapping = record(vec![entry(u64::MAX - 0xfff, 0x1000)])
            .ranges(0x10000)
            .unwrap_err();
        assert!(matches!(wrapping, Error::BadRange { .. }));
    }
}
