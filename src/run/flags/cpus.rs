//! Owns how many vCPUs `--cpus` asks for, in either spelling. Never starts one.

use vm_remap::spec::fields;

use super::error::{FlagError, refused};
use super::values::{keyed, number};

/// The most vCPUs there can be: their numbers have 8 bits in a local APIC, of which one means all of
/// them and one is left to the I/O APIC.
const MAX: u64 = 254;

const KEYS: [&str; 15] = [
    "boot",
    "max",
    "num-cores",
    // Read, so that they can be refused by name.
    "topology",
    "kvm_hyperv",
    "max_phys_bits",
    "affinity",
    "features",
    "nested",
    "core_scheduling",
    "profile",
    "clusters",
    "core-types",
    "boot-cpu",
    "freq-domains",
];

/// How many vCPUs `text` asks for.
///
/// # Errors
/// For anything but 1 to 254 of them, and for what this VMM leaves to the host or does not do.
pub(super) fn parse(text: &str) -> Result<u8, FlagError> {
    let (mut boot, mut max, mut cores) = (None, None, None);
    for field in fields(&keyed("num-cores", text), &KEYS)? {
        let key = field.key;
        let place = match key {
            "boot" => &mut boot,
            "max" => &mut max,
            "num-cores" => &mut cores,
            _ => {
                let why = "this VMM has vCPUs of one kind and places none; write boot=N alone";
                return Err(refused(format!("{key}={}", field.value), why));
            }
        };
        let why = format!("there can be 1 to {MAX}; write a number, as in boot=2");
        let count = number(key, &field.value).map_err(|_| refused(format!("{text:?}"), why))?;
        *place = Some(count);
    }
    if boot.is_some() && cores.is_some() {
        let why = "both say how many vCPUs there are; leave one of them out";
        return Err(refused("boot= and num-cores=", why));
    }
    let cpus = boot.or(cores).unwrap_or(1);
    if let Some(max) = max.filter(|max| *max != cpus) {
        let why = format!("this VMM plugs no vCPUs in; write max={cpus}, or leave it out");
        return Err(refused(format!("max={max} with {cpus} vCPUs"), why));
    }
    match u8::try_from(cpus) {
        Ok(count) if (1..=MAX).contains(&cpus) => Ok(count),
        _ => Err(refused(
            format!("{cpus} vCPUs"),
            format!("there can be 1 to {MAX}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_count_vcpus() {
        for text in ["4", "num-cores=4", "boot=4", "boot=4,max=4", "0x4"] {
            assert_eq!(parse(text).unwrap(), 4, "{text}");
        }
        assert_eq!(parse("").unwrap(), 1);
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        for (text, error) in [
            ("0", "cannot use 0 vCPUs: there can be 1 to 254"),
            (
                "many",
                "cannot use \"many\": there can be 1 to 254; write a number, as in boot=2",
            ),
            ("boot=255", "cannot use 255 vCPUs: there can be 1 to 254"),
            (
                "boot=1,max=4",
                "cannot use max=4 with 1 vCPUs: this VMM plugs no vCPUs in; write max=1, or leave \
                 it out",
            ),
            (
                "boot=1,num-cores=1",
                "cannot use boot= and num-cores=: both say how many vCPUs there are; leave one of \
                 them out",
            ),
            (
                "4,clusters=[[0,1],[2,3]]",
                "cannot use clusters=[[0,1],[2,3]]: this VMM has vCPUs of one kind and places \
                 none; write boot=N alone",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), error);
        }
        let unknown = parse("boots=1").unwrap_err().to_string();
        assert!(unknown.contains("did you mean boot?"), "{unknown}");
    }
}
