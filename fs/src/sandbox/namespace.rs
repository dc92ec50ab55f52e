//! Owns the sandbox of root: a mount namespace in which nothing but the directory exists. Never
//! touches the host's mounts.

use std::path::Path;

use caps::{CapSet, Capability};
use nix::sched::CloneFlags;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use super::step;
use crate::error::ServeError;

/// Whether the process may make one around `directory`.
///
/// # Errors
/// It lacks `CAP_SYS_ADMIN`; `/` cannot be its own root once more; the kernel's first root, from
/// which an initramfs runs, cannot be left.
pub(super) fn is_possible(directory: &Path) -> Result<(), ServeError> {
    if directory == Path::new("/") {
        return Err(ServeError::Confine {
            reason: "/ holds everything already; share a directory below it, or say --sandbox none"
                .to_owned(),
        });
    }
    // Where it cannot be read, the kernel is asked by trying.
    if is_first_root(&std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()) {
        return Err(ServeError::Confine {
            reason:
                "this system runs from its initramfs, which a mount namespace cannot leave; say \
                     --sandbox landlock"
                    .to_owned(),
        });
    }
    if matches!(
        caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_ADMIN),
        Ok(true)
    ) {
        return Ok(());
    }
    Err(ServeError::Confine {
        reason: "a mount namespace takes root (CAP_SYS_ADMIN); run as root, or say --sandbox \
                 landlock"
            .to_owned(),
    })
}

/// Makes `directory` the root of the calling thread, and all that there is.
///
/// # Errors
/// What the kernel refused.
pub(super) fn enter(directory: &Path, readonly: bool) -> Result<(), ServeError> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNS).map_err(step("make a mount namespace"))?;
    let downstream = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", downstream).map_err(step("part from the host's mounts"))?;
    rustix::mount::mount_bind_recursive(directory, directory)
        .map_err(step("mount the directory on itself"))?;
    let mut flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV;
    if readonly {
        flags |= MountFlags::RDONLY;
    }
    rustix::mount::mount_remount(directory, flags, c"")
        .map_err(step("mount the directory without devices"))?;
    rustix::process::chdir(directory).map_err(step("enter the directory"))?;
    // Both names are the same: the old root comes to lie on top of the new one, and goes.
    rustix::process::pivot_root(".", ".").map_err(step("make the directory the root"))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(step("leave the old root"))?;
    rustix::process::chdir("/").map_err(step("enter the new root"))
}

/// Whether `/` is the mount that the kernel began with: it lies on no other, and `pivot_root` refuses
/// to put it away.
fn is_first_root(mounts: &str) -> bool {
    mounts.lines().any(|line| {
        let mut words = line.split(' ');
        let (own, below) = (words.next(), words.next());
        own == below && words.nth(2) == Some("/")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_root_lies_on_no_other() {
        let usual =
            "28 1 254:1 / / rw,relatime - ext4 /dev/vda1 rw\n1 1 0:2 / /old rw - rootfs x rw";
        let initramfs = "1 1 0:2 / / rw - rootfs none rw\n20 1 0:21 / /proc rw - proc proc rw";
        assert!(!is_first_root(usual));
        assert!(is_first_root(initramfs));
        assert!(!is_first_root(""));
    }
}
