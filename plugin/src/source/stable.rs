//! Owns the rule of which memory the VMM may touch directly: memory that never raises a signal.
//! Never touches any.
//!
//! Touching a mapping raises SIGBUS where its page lies past the end of the file, and where the
//! kernel finds no room for a page that is not there. So memory is stable where both are excluded:
//!
//! - Shared anonymous memory: no other process has its file, and all its pages are accounted when
//!   it is mapped (Linux: `mm/shmem.c` `shmem_zero_setup`).
//! - A memfd sealed with `F_SEAL_SHRINK`, unless the host accounts strictly. Whoever holds its
//!   descriptor can still punch holes. The next touch then makes a new page, which fails where a
//!   limit of the file system is met or the accounting refuses (`shmem_inode_acct_blocks`, ENOSPC);
//!   memfds have no such limit (`shmem_init`: a mount without options), and the accounting refuses
//!   one page with `vm.overcommit_memory` = 2 only (`mm/util.c` `__vm_enough_memory`). A host
//!   without memory calls the OOM killer, as for memory of the heap.
//!
//! Nothing else is. Hugetlb pages run out, also reserved ones, once somebody punches holes; files
//! on a tmpfs mount can be limited and cannot be sealed against shrinking (`shmem_get_inode`);
//! other files are truncated at will; and of host memory without a descriptor nothing is known.

use std::fs;
use std::sync::OnceLock;

use super::descriptor::Descriptor;

/// Whether touching a mapping of this descriptor never raises a signal.
pub(crate) fn is_stable(descriptor: &Descriptor) -> bool {
    descriptor.cannot_shrink() && !accounts_strictly()
}

/// Whether the host refuses memory before it has run out of it; also where it does not say so.
/// Asked for once: a host that switches later goes on from what is committed then.
fn accounts_strictly() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let setting = fs::read_to_string("/proc/sys/vm/overcommit_memory");
        !setting.is_ok_and(|setting| matches!(setting.trim(), "0" | "1"))
    })
}
