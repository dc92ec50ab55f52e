//! Owns how the guest finds the region: in the capabilities of a virtio device on the PCI bus.
//! Never believes an offset that it read there.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::PAGE;
use crate::words::Mapped;

const VIRTIO: &str = "0x1af4";
/// Offsets into a PCI configuration, and what is found there.
const STATUS: usize = 0x06;
const HAS_LIST: u8 = 1 << 4;
const LIST: usize = 0x34;
const VENDOR_CAPABILITY: u8 = 9;
/// The kind of a virtio capability that tells of a shared-memory region.
const SHARED_MEMORY: u8 = 8;
/// More capabilities than fit are a ring.
const MOST_CAPABILITIES: usize = 64;

/// Where a shared-memory region lies in its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// The number of the BAR.
    pub bar: u8,
    /// The region's own number.
    pub id: u8,
    /// Where it begins in the BAR, in bytes.
    pub offset: u64,
    /// How many bytes it has.
    pub len: u64,
}

/// The shared-memory regions that a PCI configuration tells of.
#[must_use]
pub fn regions(config: &[u8]) -> Vec<Region> {
    let mut found = Vec::new();
    if byte(config, STATUS).is_none_or(|status| status & HAS_LIST == 0) {
        return found;
    }
    let mut next = byte(config, LIST);
    for _ in 0..MOST_CAPABILITIES {
        let Some(at) = next.map(usize::from).filter(|at| *at != 0) else {
            break;
        };
        found.extend(config.get(at..).and_then(region));
        next = byte(config, at.saturating_add(1));
    }
    found
}

/// The region that a capability tells of, if it is one that does.
fn region(capability: &[u8]) -> Option<Region> {
    let is = |at, value| byte(capability, at) == Some(value);
    if !is(0, VENDOR_CAPABILITY) || !is(3, SHARED_MEMORY) {
        return None;
    }
    let wide = |low, high| Some(word(capability, low)? | (word(capability, high)? << 32));
    Some(Region {
        bar: byte(capability, 4)?,
        id: byte(capability, 5)?,
        offset: wide(8, 16)?,
        len: wide(12, 20)?,
    })
}

fn byte(bytes: &[u8], at: usize) -> Option<u8> {
    bytes.get(at).copied()
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    let word = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*word).into())
}

/// A virtio device of this machine that has the region `id`, and the region.
pub fn find(devices: &Path, id: u8) -> Result<Option<(PathBuf, Region)>> {
    let listed = fs::read_dir(devices);
    let listed = listed.with_context(|| format!("cannot list {}", devices.display()))?;
    for entry in listed {
        let device = entry?.path();
        let vendor = fs::read_to_string(device.join("vendor")).unwrap_or_default();
        if vendor.trim() != VIRTIO {
            continue;
        }
        let config = fs::read(device.join("config"))
            .with_context(|| format!("cannot read the configuration of {}", device.display()))?;
        if let Some(region) = regions(&config).into_iter().find(|region| region.id == id) {
            return Ok(Some((device, region)));
        }
    }
    Ok(None)
}

/// Maps a region of a device.
pub fn map(device: &Path, region: &Region) -> Result<Mapped> {
    let path = device.join(format!("resource{}", region.bar));
    let file: File = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    let bar = file.metadata()?.len();
    let end = region.offset.checked_add(region.len);
    let inside = end.is_some_and(|end| end <= bar) && region.len >= PAGE;
    anyhow::ensure!(
        inside,
        "{region:x?} does not fit into {} of {bar:#x} bytes",
        path.display()
    );
    Mapped::new(file, region.offset, region.len)
        .with_context(|| format!("cannot map {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::Words;
    use proptest::prelude::*;

    const REGION: Region = Region {
        bar: 2,
        id: 0,
        offset: 0x1000,
        len: 0x1_0000_2000,
    };

    /// A configuration with a capability that is not virtio's, and the one that is looked for.
    fn config() -> Vec<u8> {
        let mut config = vec![0; 256];
        config[STATUS] = HAS_LIST;
        config[LIST] = 0x40;
        config[0x40..0x44].copy_from_slice(&[0x11, 0x50, 0, 0]);
        config[0x50..0x56].copy_from_slice(&[VENDOR_CAPABILITY, 0, 24, SHARED_MEMORY, 2, 0]);
        config[0x58..0x5c].copy_from_slice(&0x1000_u32.to_le_bytes());
        config[0x5c..0x60].copy_from_slice(&0x2000_u32.to_le_bytes());
        config[0x64..0x68].copy_from_slice(&1_u32.to_le_bytes());
        config
    }

    #[test]
    fn region_is_found_behind_other_capabilities() {
        assert_eq!(regions(&config()), [REGION]);
        let mut none = config();
        none[STATUS] = 0;
        assert_eq!(regions(&none), []);
    }

    #[test]
    fn list_that_is_a_ring_ends() {
        let mut ring = config();
        ring[0x51] = 0x50;
        assert!(regions(&ring).len() <= MOST_CAPABILITIES);
    }

    proptest! {
        #[test]
        fn noise_is_read_without_harm(config: Vec<u8>) {
            prop_assert!(regions(&config).len() <= MOST_CAPABILITIES);
        }
    }

    #[test]
    fn device_of_another_vendor_is_passed_over_and_the_right_one_is_mapped() {
        let devices = tempfile::tempdir().unwrap();
        for (name, vendor) in [("0000:00:01.0", "0x8086\n"), ("0000:00:02.0", "0x1af4\n")] {
            let device = devices.path().join(name);
            fs::create_dir(&device).unwrap();
            fs::write(device.join("vendor"), vendor).unwrap();
            fs::write(device.join("config"), config()).unwrap();
        }
        assert!(find(devices.path(), 1).unwrap().is_none());
        let (device, region) = find(devices.path(), 0).unwrap().unwrap();
        assert!(device.ends_with("0000:00:02.0"));
        let small = Region {
            len: 0x2000,
            ..region
        };
        let bar = File::create(device.join("resource2")).unwrap();
        bar.set_len(0x3000).unwrap();
        // It is larger than its BAR.
        map(&device, &region).unwrap_err();
        let memory = map(&device, &small).unwrap();
        memory.store(0, 5).unwrap();
        assert_eq!(fs::read(device.join("resource2")).unwrap()[0x1000], 5);
    }
}
