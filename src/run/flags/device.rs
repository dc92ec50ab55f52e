//! Owns the names of virtio's devices, as cloud-hypervisor and crosvm write them. Never makes one.

use vm_remap::spec::{SpecError, unknown};

use super::error::{FlagError, refused};

/// Each name and its number: up to 41 as Linux has them (`include/uapi/linux/virtio_ids.h`), up to 49
/// as cloud-hypervisor does, the rest as crosvm does. A name of several words can have `-` or `_`
/// between them.
const NAMES: [(&str, u32); 50] = [
    ("net", 1),
    ("block", 2),
    ("console", 3),
    ("rng", 4),
    ("balloon", 5),
    ("iomem", 6),
    ("rpmsg", 7),
    ("scsi", 8),
    ("9p", 9),
    ("mac80211-wlan", 10),
    ("rproc-serial", 11),
    ("caif", 12),
    ("memory-balloon", 13),
    ("gpu", 16),
    ("clock", 17),
    ("input", 18),
    ("vsock", 19),
    ("crypto", 20),
    ("signal-dist", 21),
    ("pstore", 22),
    ("iommu", IOMMU),
    ("mem", 24),
    ("sound", 25),
    ("fs", 26),
    ("pmem", 27),
    ("rpmb", 28),
    ("mac80211-hwsim", 29),
    ("video-encoder", 30),
    ("video-decoder", 31),
    ("scmi", 32),
    ("nitro-sec-mod", 33),
    ("i2c", 34),
    ("watchdog", WATCHDOG),
    ("can", 36),
    ("dmabuf", 37),
    ("param-serv", 38),
    ("audio-policy", 39),
    ("bt", 40),
    ("gpio", 41),
    ("rdma", 42),
    ("camera", 43),
    ("ism", 44),
    ("spi", 45),
    ("tee", 46),
    ("cpu-balloon", 47),
    ("media", 48),
    ("usb", 49),
    ("pvclock", 61),
    ("tpm", 62),
    ("wl", 63),
];

const IOMMU: u32 = 23;
const WATCHDOG: u32 = 35;

/// The number of the device that `value` names, or its number itself.
///
/// # Errors
/// For a name that there is none of, and for devices that cannot work from another process.
pub(super) fn parse(value: &str) -> Result<u32, FlagError> {
    let name = value.replace('_', "-");
    let named = NAMES.iter().find(|(known, _)| *known == name);
    let number = match (named, value.parse::<u32>()) {
        (Some((_, number)), _) => *number,
        (None, Ok(number)) if number > 0 => number,
        _ => return Err(unknown_device(&name)),
    };
    match number {
        IOMMU => Err(refused(
            format!("type={value}"),
            "a VMM has to know of an IOMMU, and another process cannot tell it",
        )),
        WATCHDOG => Err(refused(
            format!("type={value}"),
            "another process has no way to reset the guest",
        )),
        number => Ok(number),
    }
}

fn unknown_device(name: &str) -> FlagError {
    let names = NAMES.map(|(name, _)| name);
    let nearest = match unknown(name, &names) {
        SpecError::UnknownKey {
            nearest: Some(nearest),
            ..
        } => format!("did you mean {nearest}? "),
        _ => String::new(),
    };
    let why = format!(
        "{nearest}write the device's virtio number, or one of {}",
        names.join(", ")
    );
    refused(format!("type={name}"), why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_names_and_numbers() {
        for (text, number) in [
            ("gpu", 16),
            ("fs", 26),
            ("video_encoder", 30),
            ("video-encoder", 30),
            ("cpu-balloon", 47),
            ("media", 48),
            ("usb", 49),
            ("wl", 63),
            ("48", 48),
            ("4294967295", u32::MAX),
        ] {
            assert_eq!(parse(text).unwrap(), number);
        }
    }

    #[test]
    fn other_names_are_refused() {
        let error = |text| parse(text).unwrap_err().to_string();
        assert!(
            error("gpus").starts_with("cannot use type=gpus: did you mean gpu? write the device's"),
            "{}",
            error("gpus")
        );
        for wrong in ["", "0", "-1", "4294967296", "0x10"] {
            assert!(error(wrong).ends_with("pvclock, tpm, wl"), "{wrong}");
        }
        assert_eq!(
            error("23"),
            "cannot use type=23: a VMM has to know of an IOMMU, and another process cannot tell it"
        );
        assert_eq!(
            error("watchdog"),
            "cannot use type=watchdog: another process has no way to reset the guest"
        );
    }
}
