//! Owns the kinds of devices: their numbers, and the names that people use. Never knows what a kind
//! does.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;
use virtio_bindings::virtio_ids::{
    VIRTIO_ID_9P, VIRTIO_ID_BALLOON, VIRTIO_ID_BLOCK, VIRTIO_ID_BT, VIRTIO_ID_CAN,
    VIRTIO_ID_CONSOLE, VIRTIO_ID_CRYPTO, VIRTIO_ID_FS, VIRTIO_ID_GPIO, VIRTIO_ID_GPU,
    VIRTIO_ID_I2C_ADAPTER, VIRTIO_ID_INPUT, VIRTIO_ID_IOMMU, VIRTIO_ID_MEM, VIRTIO_ID_NET,
    VIRTIO_ID_PMEM, VIRTIO_ID_RNG, VIRTIO_ID_RPMB, VIRTIO_ID_SCMI, VIRTIO_ID_SCSI, VIRTIO_ID_SOUND,
    VIRTIO_ID_VIDEO_DECODER, VIRTIO_ID_VIDEO_ENCODER, VIRTIO_ID_VSOCK,
};

/// The first name of a number is the one it is shown by.
const NAMES: [(&str, u32); 30] = [
    ("net", VIRTIO_ID_NET),
    ("block", VIRTIO_ID_BLOCK),
    ("blk", VIRTIO_ID_BLOCK),
    ("console", VIRTIO_ID_CONSOLE),
    ("entropy", VIRTIO_ID_RNG),
    ("rng", VIRTIO_ID_RNG),
    ("balloon", VIRTIO_ID_BALLOON),
    ("scsi", VIRTIO_ID_SCSI),
    ("9p", VIRTIO_ID_9P),
    ("gpu", VIRTIO_ID_GPU),
    ("input", VIRTIO_ID_INPUT),
    ("vsock", VIRTIO_ID_VSOCK),
    ("crypto", VIRTIO_ID_CRYPTO),
    ("iommu", VIRTIO_ID_IOMMU),
    ("mem", VIRTIO_ID_MEM),
    ("sound", VIRTIO_ID_SOUND),
    ("snd", VIRTIO_ID_SOUND),
    ("fs", VIRTIO_ID_FS),
    ("pmem", VIRTIO_ID_PMEM),
    ("rpmb", VIRTIO_ID_RPMB),
    ("video-encoder", VIRTIO_ID_VIDEO_ENCODER),
    ("video-decoder", VIRTIO_ID_VIDEO_DECODER),
    ("scmi", VIRTIO_ID_SCMI),
    ("i2c", VIRTIO_ID_I2C_ADAPTER),
    ("can", VIRTIO_ID_CAN),
    ("bt", VIRTIO_ID_BT),
    ("gpio", VIRTIO_ID_GPIO),
    ("media", 48),
    ("camera", 43),
    ("spi", 45),
];

/// A kind of virtio device (VIRTIO 1.2, 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceType(u32);

/// A text that is neither the name of a kind nor a number.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "cannot find the device type {text:?}: give its number from the virtio specification, or \
         one of {}",
    names()
)]
pub struct UnknownDeviceType {
    text: String,
}

impl DeviceType {
    /// The kind with this number; there is none with number 0.
    #[must_use]
    pub fn new(number: u32) -> Option<Self> {
        (number != 0).then_some(Self(number))
    }

    /// Its number in the specification.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0
    }

    pub(super) fn is_file_system(self) -> bool {
        self.0 == VIRTIO_ID_FS
    }
}

impl FromStr for DeviceType {
    type Err = UnknownDeviceType;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let named = NAMES.iter().find(|(name, _)| *name == text);
        let number = named.map(|(_, number)| *number);
        let number = number.or_else(|| text.parse().ok());
        number.and_then(Self::new).ok_or_else(|| UnknownDeviceType {
            text: text.to_owned(),
        })
    }
}

impl fmt::Display for DeviceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "device of type {}", self.0),
        }
    }
}

fn names() -> String {
    let names: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_has_a_number_and_names() {
        let number = |text: &str| text.parse::<DeviceType>().map(DeviceType::number);
        assert_eq!(number("fs"), Ok(26));
        assert_eq!(number("26"), Ok(26));
        assert_eq!(number("sound"), number("snd"));
        assert_eq!(number("gpu"), Ok(16));
        assert_eq!(number("4711"), Ok(4711));
        assert_eq!("blk".parse::<DeviceType>().unwrap().to_string(), "block");
        assert_eq!(DeviceType(4711).to_string(), "device of type 4711");
        for text in ["0", "", "-1", "file system", "4294967296"] {
            let refused = number(text).unwrap_err().to_string();
            assert!(
                refused.starts_with(&format!("cannot find the device type {text:?}: give its"))
            );
            assert!(refused.contains("fs"));
        }
    }
}
