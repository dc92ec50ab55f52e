//! Owns the list of shared memory regions that a backend announces, checked. Never opens a window.

use std::collections::BTreeMap;

use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserShMemConfig;

use crate::range::PAGE_SIZE;

/// The regions of a device: VIRTIO ids from 0 to 255, ids may be left out, and a size for each.
///
/// Open a [`Window`](crate::Window) of that size for each and hand them to a
/// [`ShmemHandler`](super::ShmemHandler).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShmemConfig {
    sizes: BTreeMap<u8, u64>,
}

/// What is wrong with the regions that a backend announces.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The backend did not answer, or `SHMEM` was not negotiated.
    #[error("cannot ask the backend for its shared memory regions")]
    Ask(#[source] vhost::Error),
    /// The number of regions is not how many have a size.
    #[error(
        "cannot use the shared memory regions: {announced} are announced and {sized} have a size"
    )]
    Count {
        /// How many are announced.
        announced: u32,
        /// How many have a size.
        sized: usize,
    },
    /// A size that is no whole number of pages.
    #[error("cannot use the shared memory region {region}: {size:#x} bytes are no whole pages")]
    Size {
        /// The region.
        region: u8,
        /// Its size, in bytes.
        size: u64,
    },
    /// More than the VMM has to give.
    #[error(
        "cannot use the shared memory regions: with region {region} of {size:#x} bytes they are \
         more than {limit:#x} in all; raise the limit, or give the device less"
    )]
    TooLarge {
        /// The first region that is too much.
        region: u8,
        /// Its size, in bytes.
        size: u64,
        /// The most bytes that all regions may have together.
        limit: u64,
    },
}

impl ShmemConfig {
    /// Asks a backend with `GET_SHMEM_CONFIG`, after `SHMEM` was negotiated, and checks the answer.
    /// `limit` is the most bytes that all regions may have together: a window costs address space
    /// of the VMM and of the guest.
    ///
    /// # Errors
    /// [`ConfigError::Ask`], and what [`check`](Self::check) finds.
    pub fn ask(frontend: &mut impl VhostUserFrontend, limit: u64) -> Result<Self, ConfigError> {
        let config = frontend.get_shmem_config().map_err(ConfigError::Ask)?;
        Self::check(&config, limit)
    }

    /// Checks an answer. The place in the list is the region's id, a size of 0 means that there is
    /// no region with that id, and the number of regions is how many there are, as the vhost-user
    /// specification has it. So an id may be higher than that number.
    ///
    /// # Errors
    /// [`ConfigError::Count`] for an answer that contradicts itself, [`ConfigError::Size`] and
    /// [`ConfigError::TooLarge`].
    pub fn check(config: &VhostUserShMemConfig, limit: u64) -> Result<Self, ConfigError> {
        let mut sizes = BTreeMap::new();
        let mut total = 0_u64;
        for (region, size) in (0..=u8::MAX).zip(config.memory_sizes) {
            if size == 0 {
                continue;
            }
            if !size.is_multiple_of(PAGE_SIZE) {
                return Err(ConfigError::Size { region, size });
            }
            total = total.saturating_add(size);
            if total > limit {
                return Err(ConfigError::TooLarge {
                    region,
                    size,
                    limit,
                });
            }
            sizes.insert(region, size);
        }
        if u32::try_from(sizes.len()) != Ok(config.nregions) {
            return Err(ConfigError::Count {
                announced: config.nregions,
                sized: sizes.len(),
            });
        }
        Ok(Self { sizes })
    }

    /// Each region's id and size in bytes, by ascending id.
    pub fn iter(&self) -> impl Iterator<Item = (u8, u64)> {
        self.sizes.iter().map(|(region, size)| (*region, *size))
    }

    /// The size of a region in bytes, if the device has it.
    #[must_use]
    pub fn size_of(&self, region: u8) -> Option<u64> {
        self.sizes.get(&region).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn place_in_the_list_is_the_id_and_ids_may_be_left_out() {
        let mut sizes = [0; 256];
        (sizes[0], sizes[2], sizes[255]) = (MIB, 2 * MIB, PAGE_SIZE);
        let config = ShmemConfig::check(&VhostUserShMemConfig::new(3, &sizes), 4 * MIB).unwrap();
        let regions: Vec<_> = config.iter().collect();
        assert_eq!(regions, [(0, MIB), (2, 2 * MIB), (255, PAGE_SIZE)]);
        assert_eq!(config.size_of(1), None);
        let none = ShmemConfig::check(&VhostUserShMemConfig::default(), 0).unwrap();
        assert_eq!(none.iter().count(), 0);
    }

    #[test]
    fn answer_that_makes_no_sense_is_refused_and_says_why() {
        let refused = |nregions, sizes: &[u64]| {
            let config = VhostUserShMemConfig::new(nregions, sizes);
            ShmemConfig::check(&config, 4 * MIB)
                .unwrap_err()
                .to_string()
        };
        for (nregions, sizes) in [
            (0, &[MIB][..]),
            (2, &[MIB]),
            (u32::MAX, &[]),
            (3, &[MIB, 0, MIB]),
        ] {
            assert!(refused(nregions, sizes).contains("are announced"));
        }
        assert_eq!(
            refused(1, &[0, 0x1800]),
            "cannot use the shared memory region 1: 0x1800 bytes are no whole pages"
        );
        assert!(refused(2, &[3 * MIB, 2 * MIB]).contains("region 1 of 0x200000 bytes"));
        assert!(refused(2, &[3 * MIB, !0xfff]).contains("more than 0x400000 in all"));
    }
}
