//! Owns how a device of another process is written: crosvm's `--vhost-user` and cloud-hypervisor's
//! `--generic-vhost-user`. Never connects to one.

use vm_remap::PAGE_SIZE;
use vm_remap::spec::{fields, parse_size, parse_toggle};

use super::device;
use super::error::{FlagError, refused};
use super::values::{MAX_QUEUE, keyed, path, queue_size};
use crate::run::launch::{Queues, Shmem, VhostUserSpec};

/// Crosvm's, cloud-hypervisor's, and `shmem`, which is ours.
const KEYS: [&str; 11] = [
    "type",
    "socket",
    "max-queue-size",
    "device_type",
    "virtio_id",
    "queue_sizes",
    "shmem",
    // Read, so that they can be refused by name.
    "pci-address",
    "id",
    "pci_segment",
    "pci_device_id",
];

/// The most queues that are believed: virtio-net's limit is 65535, and nobody has as many.
const MAX_QUEUES: usize = 256;

/// The device that `text` describes, in either spelling.
///
/// # Errors
/// Where it has no type or no socket, or asks for what this VMM does not do.
pub(super) fn parse(text: &str) -> Result<VhostUserSpec, FlagError> {
    let (mut device, mut socket, mut queues) = (None, None, None);
    let mut shmem = Shmem::default();
    for field in fields(&keyed("type", text), &KEYS)? {
        let (key, value) = (field.key, field.value.as_str());
        match key {
            "type" | "device_type" | "virtio_id" => {
                only(&mut device, key, device::parse(value)?, "the device")?;
            }
            "socket" => socket = Some(path(key, value)?),
            "max-queue-size" => {
                let most = Queues::AtMost(queue_size(key, value)?);
                only(&mut queues, key, most, "the queues")?;
            }
            "queue_sizes" => only(&mut queues, key, sizes(key, value)?, "the queues")?,
            "shmem" => shmem = region(key, value)?,
            _ => {
                let why = "this VMM names and places its devices itself; leave it out";
                return Err(refused(format!("{key}={value}"), why));
            }
        }
    }
    let missing = |key| refused(format!("{text:?}"), format!("{key} is missing"));
    let (_, device) = device.ok_or_else(|| missing("type=TYPE"))?;
    Ok(VhostUserSpec {
        socket: socket.ok_or_else(|| missing("socket=FILE"))?,
        device,
        queues: queues.map_or(Queues::AtMost(MAX_QUEUE), |(_, queues)| queues),
        shmem,
    })
}

/// Puts a value that can be written under several keys in its place, once.
fn only<T>(
    place: &mut Option<(&'static str, T)>,
    key: &str,
    value: T,
    what: &str,
) -> Result<(), FlagError> {
    if let Some((other, _)) = place {
        let why = format!("both are about {what}; leave one of them out");
        return Err(refused(format!("{other}= and {key}="), why));
    }
    let key = KEYS.into_iter().find(|known| *known == key);
    *place = key.map(|key| (key, value));
    Ok(())
}

/// A list between brackets, as `[64,64]`.
fn sizes(key: &str, value: &str) -> Result<Queues, FlagError> {
    let inner = value.strip_prefix('[').and_then(|v| v.strip_suffix(']'));
    let list: Vec<&str> = inner.unwrap_or(value).split(',').collect();
    if list.len() > MAX_QUEUES {
        let what = format!("{key}= with {} queues", list.len());
        return Err(refused(what, format!("there can be {MAX_QUEUES}")));
    }
    let sizes: Result<Vec<u16>, FlagError> = list
        .into_iter()
        .map(|size| queue_size(key, size.trim()))
        .collect();
    Ok(Queues::Sizes(sizes?))
}

fn region(key: &str, value: &str) -> Result<Shmem, FlagError> {
    match parse_toggle(key, value) {
        Ok(true) => return Ok(Shmem::Device),
        Ok(false) => return Ok(Shmem::Off),
        Err(_) => {}
    }
    match parse_size(key, value) {
        Ok(bytes) if bytes > 0 && bytes.is_multiple_of(PAGE_SIZE) => Ok(Shmem::Size(bytes)),
        _ => Err(refused(
            format!("{key}={value}"),
            "write on, off, or the size of its region 0, a multiple of 4K",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(device: u32, queues: Queues, shmem: Shmem) -> VhostUserSpec {
        VhostUserSpec {
            socket: "/tmp/s".into(),
            device,
            queues,
            shmem,
        }
    }

    #[test]
    fn both_spellings_give_the_same_device() {
        let any = || device(16, Queues::AtMost(32768), Shmem::Device);
        for text in [
            "type=gpu,socket=/tmp/s",
            "gpu,socket=/tmp/s",
            "device_type=gpu,socket=/tmp/s",
            "virtio_id=16,socket=\"/tmp/s\",shmem=on",
        ] {
            assert_eq!(parse(text).unwrap(), any(), "{text}");
        }
        assert_eq!(
            parse("socket=/tmp/s,device_type=48,queue_sizes=[256, 64]").unwrap(),
            device(48, Queues::Sizes(vec![256, 64]), Shmem::Device)
        );
        assert_eq!(
            parse("fs,socket=/tmp/s,max-queue-size=0x400,shmem=8G").unwrap(),
            device(26, Queues::AtMost(1024), Shmem::Size(8 << 30))
        );
        assert_eq!(
            parse("fs,socket=/tmp/s,queue_sizes=128,shmem=off").unwrap(),
            device(26, Queues::Sizes(vec![128]), Shmem::Off)
        );
    }

    #[test]
    fn what_is_missing_or_not_done_is_named() {
        let error = |text: &str| parse(text).unwrap_err().to_string();
        for (text, why) in [
            (
                "type=gpu",
                "cannot use \"type=gpu\": socket=FILE is missing",
            ),
            (
                "socket=/s",
                "cannot use \"socket=/s\": type=TYPE is missing",
            ),
            ("", "cannot use \"\": type=TYPE is missing"),
            (
                "type=gpu,device_type=gpu,socket=/s",
                "cannot use type= and device_type=: both are about the device; leave one of them \
                 out",
            ),
            (
                "gpu,socket=/s,max-queue-size=64,queue_sizes=[64]",
                "cannot use max-queue-size= and queue_sizes=: both are about the queues; leave one \
                 of them out",
            ),
            (
                "gpu,socket=/s,pci-address=00:01.0",
                "cannot use pci-address=00:01.0: this VMM names and places its devices itself; \
                 leave it out",
            ),
            (
                "gpu,socket=/s,shmem=5000",
                "cannot use shmem=5000: write on, off, or the size of its region 0, a multiple of \
                 4K",
            ),
            (
                "gpu,socket='/s'",
                "cannot use socket='/s': write double quotes, or none where the path has no comma \
                 and no bracket",
            ),
        ] {
            assert_eq!(error(text), why);
        }
        assert_eq!(
            error("gpu,socket=/s,queue_sizes=[]"),
            "cannot use queue_sizes=\"\": write a number from 0 to 2^64 - 1"
        );
        let many = vec!["1"; 257].join(",");
        assert_eq!(
            error(&format!("gpu,socket=/s,queue_sizes=[{many}]")),
            "cannot use queue_sizes= with 257 queues: there can be 256"
        );
        assert!(error("gpu,sockets=/s").contains("did you mean socket?"));
    }
}
