//! Owns guest RAM: one memfd, mapped once for each range of the layout. Never tells KVM of it.
//!
//! It is always shared memory, since a vhost-user peer and a fault resolver read the same bytes.

use std::fs::File;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::{MemfdFlags, SealFlags};
use vm_memory::{Bytes as _, FileOffset, GuestAddress, GuestMemoryMmap};
use vm_remap::spec::MemorySpec;

use super::layout::{Layout, MIB};

/// Maps the RAM of a guest.
///
/// # Errors
/// The host has no such memory, or the specification asks for what shared memory cannot give.
pub(super) fn map(spec: &MemorySpec, layout: &Layout) -> Result<GuestMemoryMmap> {
    ensure!(
        !spec.mergeable,
        "cannot let the host merge pages of guest memory: it merges private memory only, and \
         this guest's is shared; leave out mergeable=on"
    );
    let file = Arc::new(create(spec)?);
    let mut offset = 0_u64;
    let mut ranges = Vec::new();
    for range in layout.ram() {
        let size = usize::try_from(range.len)?;
        let place = FileOffset::from_arc(Arc::clone(&file), offset);
        ranges.push((GuestAddress(range.base), size, Some(place)));
        offset = offset.saturating_add(range.len);
    }
    GuestMemoryMmap::from_ranges_with_files(ranges)
        .with_context(|| format!("cannot map {} MiB of guest memory", spec.size / MIB))
}

fn create(spec: &MemorySpec) -> Result<File> {
    let mut flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    if spec.hugepages {
        flags |= MemfdFlags::HUGETLB | huge_size(spec)?;
    }
    let context = || {
        let size = spec.size / MIB;
        if spec.hugepages {
            format!(
                "cannot take {size} MiB of huge pages for guest memory: reserve as many \
                 (/proc/sys/vm/nr_hugepages), or ask for less"
            )
        } else {
            format!("cannot create {size} MiB of guest memory: ask for less")
        }
    };
    let fd = rustix::fs::memfd_create("guest-ram", flags).with_context(context)?;
    rustix::fs::ftruncate(&fd, spec.size).with_context(context)?;
    if spec.hugepages {
        // A huge page that is not there when it is touched is a SIGBUS.
        let all = rustix::fs::FallocateFlags::empty();
        rustix::fs::fallocate(&fd, all, 0, spec.size).with_context(context)?;
    }
    // No peer that gets it can take pages away from under the guest.
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
        .context("cannot seal the size of guest memory")?;
    Ok(fd.into())
}

fn huge_size(spec: &MemorySpec) -> Result<MemfdFlags> {
    let flag = match spec.hugepage_size {
        None => return Ok(MemfdFlags::empty()),
        Some(size) if size == 2 * MIB => MemfdFlags::HUGE_2MB,
        Some(size) if size == 1024 * MIB => MemfdFlags::HUGE_1GB,
        Some(size) => bail!(
            "cannot use huge pages of {size} bytes: the sizes are 2M and 1G; leave out \
             hugepage_size for the host's own choice"
        ),
    };
    let size = spec.hugepage_size.unwrap_or(1);
    ensure!(
        spec.size.is_multiple_of(size),
        "cannot make {} MiB of guest memory out of pages of {} MiB: ask for a multiple",
        spec.size / MIB,
        size / MIB
    );
    Ok(flag)
}

/// Copies an instruction out of RAM, for the fault resolver.
pub(super) fn read_code(memory: &GuestMemoryMmap, address: u64, into: &mut [u8]) -> bool {
    memory.read_slice(into, GuestAddress(address)).is_ok()
}

#[cfg(test)]
mod tests {
    use vm_memory::{GuestMemoryBackend as _, GuestMemoryRegion as _};

    use super::*;

    fn spec(size: u64) -> MemorySpec {
        let mut spec = MemorySpec::default();
        spec.size = size;
        spec
    }

    #[test]
    fn ram_is_one_file_without_gaps_whatever_lies_between() {
        let size = 3 * 1024 * MIB + 16 * MIB;
        let memory = map(&spec(size), &Layout::new(size).unwrap()).unwrap();
        let places: Vec<_> = memory
            .iter()
            .map(|region| (region.start_addr().0, region.file_offset().unwrap().start()))
            .collect();
        assert_eq!(places, [(0, 0), (4 << 30, 3 << 30)]);
    }

    #[test]
    fn nobody_can_shrink_it() {
        let memory = map(&spec(16 * MIB), &Layout::new(16 * MIB).unwrap()).unwrap();
        let region = memory.iter().next().unwrap();
        let file = region.file_offset().unwrap().file();
        assert!(file.set_len(4096).is_err());
    }

    #[test]
    fn what_shared_memory_cannot_do_is_refused() {
        let refused = |spec: MemorySpec| {
            let layout = Layout::new(spec.size).unwrap();
            map(&spec, &layout).unwrap_err().to_string()
        };
        let mut merged = spec(16 * MIB);
        merged.mergeable = true;
        assert!(refused(merged).starts_with("cannot let the host merge pages"));
        let mut odd = spec(16 * MIB);
        odd.hugepages = true;
        odd.hugepage_size = Some(3 * MIB);
        assert!(refused(odd).starts_with("cannot use huge pages of 3145728 bytes"));
        let mut short = spec(16 * MIB);
        short.hugepages = true;
        short.hugepage_size = Some(1024 * MIB);
        assert!(refused(short).starts_with("cannot make 16 MiB of guest memory out of pages"));
    }

    #[test]
    fn code_is_read_from_ram_and_from_nowhere_else() {
        let memory = map(&spec(16 * MIB), &Layout::new(16 * MIB).unwrap()).unwrap();
        memory
            .write_slice(&[0x90, 0xf4], GuestAddress(0x1000))
            .unwrap();
        let mut code = [0; 2];
        assert!(read_code(&memory, 0x1000, &mut code));
        assert_eq!(code, [0x90, 0xf4]);
        assert!(!read_code(&memory, 16 * MIB, &mut code));
        assert!(!read_code(&memory, u64::MAX, &mut code));
    }
}
