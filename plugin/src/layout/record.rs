//! Owns the serialisable record of a layout, for snapshot and migration, and the judgement
//! whether a record can be true. Never holds memory contents, and never opens a file.

use crate::error::Error;
use crate::layout::{Layout, Mapping, Origin};
use crate::range::{GuestAddress, PAGE_SIZE, PageRange};
use crate::source::Protection;
use crate::source::descriptor::DescriptorKind;

/// The form of [`LayoutRecord`] that this version writes and reads.
pub(super) const VERSION: u32 = 2;

/// What is mapped where in a window: enough for another process to map it again, given the
/// descriptors. The contents of memory are not part of it.
///
/// A record may come from outside: [`Window::replay`](crate::Window::replay) believes none of its
/// figures, and holds them against the descriptors that it is given.
///
/// With the feature `serde` the written form carries the SHA-256 of all figures, and one that does
/// not agree with them is not read: a damaged record is noticed. **That is integrity, not
/// authenticity**: whoever can change the record on purpose can change the sum with it. Where that
/// matters, sign what is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(
    feature = "serde",
    serde(try_from = "super::written::Written", into = "super::written::Written")
)]
pub struct LayoutRecord {
    /// Version of this form, 2.
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

    /// Whether such bytes can stand behind a mapping at all.
    fn origin_can_be(&self) -> bool {
        let placed = |start: u64, granule: u64| {
            let end = start.checked_add(self.len);
            start.is_multiple_of(granule) && self.len.is_multiple_of(granule) && end.is_some()
        };
        match self.origin {
            Origin::Descriptor {
                kind: DescriptorKind::Hugetlb { page_size },
                offset,
                ..
            } => page_size > PAGE_SIZE && page_size.is_power_of_two() && placed(offset, page_size),
            Origin::Descriptor { offset, .. } => placed(offset, PAGE_SIZE),
            Origin::HostMemory { address, .. } => placed(address, PAGE_SIZE),
            Origin::Anonymous => true,
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
        let base = GuestAddress(self.base);
        let placed = base.0.is_multiple_of(PAGE_SIZE) && base.checked_add(self.window).is_some();
        if !placed || PageRange::new(0, self.window).is_err() {
            return refuse(format!(
                "it is of a window of {:#x} bytes at {base}, and there is none such",
                self.window
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
            if !mapping.origin_can_be() {
                let origin = mapping.origin;
                return refuse(format!("{range} cannot be {origin}"));
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
            "cannot replay the record: it has version 9, this library reads 2"
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
        let nowhere = |base, window| {
            let record = LayoutRecord {
                base,
                window,
                ..record(vec![])
            };
            assert!(text(record, u64::MAX).ends_with("and there is none such"));
        };
        nowhere(1, 0x1000);
        nowhere(u64::MAX - 0xfff, 0x1000);
        nowhere(0, 0);
        nowhere(0, 0x1001);
        let wrapping = record(vec![entry(u64::MAX - 0xfff, 0x1000)])
            .ranges(0x10000)
            .unwrap_err();
        assert!(matches!(wrapping, Error::BadRange { .. }));
    }

    #[test]
    fn ranges_refuse_bytes_that_cannot_stand_behind_memory() {
        let of = |kind, offset| Origin::Descriptor {
            kind,
            device: 5,
            inode: 7,
            offset,
        };
        let shmem = |offset| of(DescriptorKind::Shmem, offset);
        let hugetlb = |page_size, offset| of(DescriptorKind::Hugetlb { page_size }, offset);
        let host = |address| Origin::HostMemory {
            address,
            in_place: false,
        };
        let ranges = |origin| {
            let entry = MappingRecord {
                origin,
                ..entry(0, 0x4000)
            };
            record(vec![entry]).ranges(0x10000)
        };
        for honest in [shmem(0x5000), hugetlb(0x4000, 0x8000), host(0x7000)] {
            ranges(honest).unwrap();
        }
        for origin in [
            shmem(0x800),
            shmem(u64::MAX - 0xfff),
            hugetlb(0, 0),
            hugetlb(0x1000, 0),
            hugetlb(0x3000, 0),
            hugetlb(0x4000, 0x2000),
            hugetlb(0x8000, 0),
            host(1),
            host(u64::MAX - 0x1fff),
        ] {
            let error = ranges(origin).unwrap_err().to_string();
            let text = format!("cannot replay the record: 0x0..0x4000 cannot be {origin}");
            assert_eq!(error, text);
        }
        assert_eq!(
            hugetlb(0x8000, 0x1000).to_string(),
            "hugetlb 0x8000 from 0x1000, device 0x5, inode 7"
        );
    }
}
