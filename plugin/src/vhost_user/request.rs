//! Owns the step from the packed message of a backend to a request that makes sense. Never maps.

use vhost::vhost_user::message::{VhostUserMMap, VhostUserMMapFlags};

use super::refusal::Refusal;
use crate::range::{PAGE_SIZE, PageRange};
use crate::source::Protection;

/// What a backend wants mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MapRequest {
    pub(super) region: u8,
    pub(super) range: PageRange,
    /// Where in the descriptor, in bytes.
    pub(super) offset: u64,
    pub(super) protection: Protection,
}

/// What a backend wants unmapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UnmapRequest {
    pub(super) region: u8,
    pub(super) range: PageRange,
    /// Whether it is all of the region.
    pub(super) whole: bool,
}

impl MapRequest {
    /// Checks a request against the sizes of the regions. The padding is ignored: the protocol does
    /// not say that it is zero.
    pub(super) fn check(
        message: &VhostUserMMap,
        size_of: impl Fn(u8) -> Option<u64>,
    ) -> Result<Self, Refusal> {
        let UnmapRequest { region, range, .. } = UnmapRequest::check(message, size_of)?;
        let VhostUserMMap {
            fd_offset, flags, ..
        } = *message;
        let Some(flags) = VhostUserMMapFlags::from_bits(flags) else {
            return Err(Refusal::Flags { flags });
        };
        let end = fd_offset.checked_add(range.len());
        let fits = end.is_some_and(|end| i64::try_from(end).is_ok());
        if !fits || !fd_offset.is_multiple_of(PAGE_SIZE) {
            return Err(Refusal::FileOffset {
                offset: fd_offset,
                len: range.len(),
            });
        }
        Ok(Self {
            region,
            range,
            offset: fd_offset,
            protection: if flags.contains(VhostUserMMapFlags::WRITABLE) {
                Protection::ReadWrite
            } else {
                Protection::ReadOnly
            },
        })
    }
}

impl UnmapRequest {
    /// The same for an unmap, of which the offset in a descriptor and the flags mean nothing.
    pub(super) fn check(
        message: &VhostUserMMap,
        size_of: impl Fn(u8) -> Option<u64>,
    ) -> Result<Self, Refusal> {
        let VhostUserMMap {
            shmid: region,
            shm_offset,
            len,
            ..
        } = *message;
        let size = size_of(region).ok_or(Refusal::UnknownRegion { region })?;
        let range = PageRange::new(shm_offset, len).map_err(Refusal::Range)?;
        if range.end() > size {
            return Err(Refusal::OutsideRegion {
                region,
                range,
                size,
            });
        }
        Ok(Self {
            region,
            range,
            whole: range.len() == size,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: u64 = 64 * PAGE_SIZE;

    fn size_of(region: u8) -> Option<u64> {
        (region == 3).then_some(SIZE)
    }

    fn message(fd_offset: u64, shm_offset: u64, len: u64, flags: u64) -> VhostUserMMap {
        VhostUserMMap {
            shmid: 3,
            padding: [0xff; 7],
            fd_offset,
            shm_offset,
            len,
            flags,
        }
    }

    #[test]
    fn request_that_makes_sense_comes_out_as_it_is_whatever_its_padding() {
        let checked = MapRequest::check(&message(0x3000, 0x1000, 0x2000, 1), size_of).unwrap();
        let range = PageRange::new(0x1000, 0x2000).unwrap();
        let expected = MapRequest {
            region: 3,
            range,
            offset: 0x3000,
            protection: Protection::ReadWrite,
        };
        assert_eq!(checked, expected);
        let read_only = MapRequest::check(&message(0, 0x1000, 0x2000, 0), size_of).unwrap();
        assert_eq!(read_only.protection, Protection::ReadOnly);
        let unmap = UnmapRequest::check(&message(1, 0, SIZE, 0xff), size_of).unwrap();
        assert!(unmap.whole);
    }

    #[test]
    fn each_figure_that_makes_no_sense_is_told_apart() {
        let refused = |message| MapRequest::check(&message, size_of).unwrap_err();
        let mut unknown = message(0, 0, PAGE_SIZE, 0);
        unknown.shmid = 4;
        assert!(matches!(
            refused(unknown),
            Refusal::UnknownRegion { region: 4 }
        ));
        for (shm_offset, len) in [
            (0, 0),
            (1, PAGE_SIZE),
            (0, 0x800),
            (!0xfff, PAGE_SIZE),
            (0, u64::MAX),
        ] {
            let refusal = refused(message(0, shm_offset, len, 0));
            assert!(matches!(refusal, Refusal::Range(_)), "{refusal}");
            assert_eq!(refusal.errno(), 22);
        }
        let past = refused(message(0, SIZE - PAGE_SIZE, 2 * PAGE_SIZE, 0));
        assert_eq!(
            past.to_string(),
            "cannot use 0x3f000..0x41000: the region 3 has 0x40000 bytes"
        );
        for fd_offset in [1, u64::MAX, !0xfff, 1 << 63, (1 << 63) - PAGE_SIZE] {
            let refusal = refused(message(fd_offset, 0, PAGE_SIZE, 0));
            assert!(
                matches!(refusal, Refusal::FileOffset { .. }),
                "{fd_offset:#x}"
            );
        }
        for flags in [2, 3, 1 << 63, u64::MAX] {
            let refusal = refused(message(0, 0, PAGE_SIZE, flags));
            assert!(matches!(refusal, Refusal::Flags { .. }), "{flags:#x}");
        }
    }

    /// Figures that are often just right or just wrong.
    fn figure() -> impl Strategy<Value = u64> {
        prop_oneof![
            (0..70u64).prop_map(|page| page * PAGE_SIZE),
            any::<u64>(),
            (0..70u64).prop_map(|page| 0u64.wrapping_sub(page * PAGE_SIZE)),
            (0..70u64, 0..3u64).prop_map(|(page, off)| page * PAGE_SIZE + off),
        ]
    }

    proptest! {
        #[test]
        fn whatever_is_let_through_lies_in_its_region_in_whole_pages(
            shmid in 0..6u8, fd_offset in figure(), shm_offset in figure(), len in figure(),
            flags in 0..4u64,
        ) {
            let message = VhostUserMMap { shmid, ..message(fd_offset, shm_offset, len, flags) };
            match MapRequest::check(&message, size_of) {
                Ok(request) => {
                    prop_assert_eq!(request.region, 3);
                    prop_assert_eq!((request.range.start(), request.range.len()), (shm_offset, len));
                    prop_assert!(request.range.end() <= SIZE);
                    prop_assert_eq!(request.offset % PAGE_SIZE, 0);
                    prop_assert!(i64::try_from(request.offset + len).is_ok());
                    prop_assert_eq!(request.protection.is_writable(), flags == 1);
                }
                Err(refusal) => prop_assert!(refusal.errno() > 0),
            }
            if let Ok(request) = UnmapRequest::check(&message, size_of) {
                prop_assert!(request.range.end() <= SIZE);
                prop_assert_eq!(request.whole, shm_offset == 0 && len == SIZE);
            }
        }
    }
}
