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
/// It lacks `CAP_SYS_ADMIN`; `/` cannot be its own root once more.
pub(super) fn is_possible(directory: &Path) -> Result<(), ServeError> {
    if directory == Path::new("/") {
        return Err(ServeError::Confine {
            reason: "/ holds everything already; share a directory below it, or say --sandbox none"
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
