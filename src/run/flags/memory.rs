//! Owns the memory that crosvm's flags ask for, and which memory this VMM can give. Never maps any.

use vm_remap::PAGE_SIZE;
use vm_remap::spec::{HotplugMethod, MemorySpec, fields, size_text};

use super::error::{FlagError, refused};
use super::values::{keyed, number};
use crate::run::layout::{RAM_RULE, ram_fits};

/// The bytes that crosvm's `--mem` asks for, in MiB.
pub(super) fn mebibytes(text: &str) -> Result<u64, FlagError> {
    let what = || format!("{text:?}");
    let all = fields(&keyed("size", text), &["size"]);
    let why = "it counts MiB, as in 1024; --memory size=1G takes suffixes, and more keys";
    let all = all.map_err(|_| refused(what(), why))?;
    let [field] = all.as_slice() else {
        return Err(refused(what(), why));
    };
    let mebibytes = number(field.key, &field.value).map_err(|_| refused(what(), why))?;
    mebibytes.checked_mul(1 << 20).ok_or_else(|| {
        let why = "it counts MiB, and must stay below 2^64 bytes";
        refused(format!("size={mebibytes}"), why)
    })
}

/// Refuses what this VMM does not do.
pub(super) fn supported(memory: &MemorySpec) -> Result<(), FlagError> {
    let size = |key: &str, bytes: u64| format!("{key}={}", size_text(bytes));
    let plugs = "this VMM plugs no memory in; give all of it as size=";
    if let Some(bytes) = memory.hotplug_size {
        return Err(refused(size("hotplug_size", bytes), plugs));
    }
    if let Some(bytes) = memory.hotplugged_size {
        return Err(refused(size("hotplugged_size", bytes), plugs));
    }
    if memory.hotplug_method != HotplugMethod::Acpi {
        let what = format!("hotplug_method={}", memory.hotplug_method);
        return Err(refused(what, plugs));
    }
    if let Some(file) = &memory.file {
        let why = "the memory has no file behind it, nor does cloud-hypervisor's; leave it out";
        return Err(refused(format!("file={file:?}"), why));
    }
    if memory.mergeable {
        let why = "this VMM shares its memory with devices, and the host merges private memory \
                   only";
        return Err(refused("mergeable=on", why));
    }
    if memory.reserve {
        let why = "this VMM reserves no swap; prefault=on takes all of the memory at once";
        return Err(refused("reserve=on", why));
    }
    if !ram_fits(memory.size) {
        return Err(refused(size("size", memory.size), RAM_RULE));
    }
    huge(memory)
}

fn huge(memory: &MemorySpec) -> Result<(), FlagError> {
    let Some(page) = memory.hugepage_size else {
        return Ok(());
    };
    let what = format!("hugepage_size={}", size_text(page));
    if !memory.hugepages {
        return Err(refused(what, "it goes with hugepages=on"));
    }
    if !page.is_power_of_two() || page <= PAGE_SIZE {
        return Err(refused(what, "x86 has pages of 2M and 1G"));
    }
    if !memory.size.is_multiple_of(page) {
        let why = format!("size={} is no multiple of it", size_text(memory.size));
        return Err(refused(what, why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        supported(&text.parse().unwrap()).unwrap_err().to_string()
    }

    #[test]
    fn mem_counts_mebibytes() {
        assert_eq!(mebibytes("1024").unwrap(), 1 << 30);
        assert_eq!(mebibytes("size=0x400").unwrap(), 1 << 30);
        assert_eq!(
            mebibytes("17592186044416").unwrap_err().to_string(),
            "cannot use size=17592186044416: it counts MiB, and must stay below 2^64 bytes"
        );
        for text in ["", "1G", "1024,window=2M"] {
            assert_eq!(
                mebibytes(text).unwrap_err().to_string(),
                format!(
                    "cannot use {text:?}: it counts MiB, as in 1024; --memory size=1G takes \
                     suffixes, and more keys"
                )
            );
        }
    }

    #[test]
    fn what_this_vmm_does_not_do_is_refused_by_name() {
        let plugs = "this VMM plugs no memory in; give all of it as size=";
        for (text, what, why) in [
            ("hotplug_size=1G", "hotplug_size=1G", plugs),
            ("hotplugged_size=2M", "hotplugged_size=2M", plugs),
            (
                "hotplug_method=virtio-mem",
                "hotplug_method=virtio-mem",
                plugs,
            ),
            (
                "file=/f",
                "file=\"/f\"",
                "the memory has no file behind it, nor does cloud-hypervisor's; leave it out",
            ),
            (
                "mergeable=on",
                "mergeable=on",
                "this VMM shares its memory with devices, and the host merges private memory only",
            ),
            (
                "reserve=on",
                "reserve=on",
                "this VMM reserves no swap; prefault=on takes all of the memory at once",
            ),
            (
                "size=0",
                "size=0",
                "it must be a multiple of 2M, from 16M to 512G",
            ),
            (
                "size=5000",
                "size=5000",
                "it must be a multiple of 2M, from 16M to 512G",
            ),
            (
                "hugepage_size=2M",
                "hugepage_size=2M",
                "it goes with hugepages=on",
            ),
            (
                "hugepages=on,hugepage_size=3M",
                "hugepage_size=3M",
                "x86 has pages of 2M and 1G",
            ),
            (
                "size=512M,hugepages=on,hugepage_size=1G",
                "hugepage_size=1G",
                "size=512M is no multiple of it",
            ),
        ] {
            assert_eq!(error(text), format!("cannot use {what}: {why}"));
        }
    }

    #[test]
    fn what_it_does_is_let_through() {
        let text = "size=4G,shared=on,hugepages=on,hugepage_size=2M,prefault=on,reserve=off,thp=off,\
                    hotplug_method=acpi,backend=memslot,window=8G,segment=1G,hole=zero,zap=precise";
        supported(&text.parse().unwrap()).unwrap();
        supported(&"shared=off,mergeable=off".parse().unwrap()).unwrap();
    }
}
