//! Owns the sandbox of root: a mount namespace in which nothing but the directory exists. Never
//! touches the host's mounts.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use caps::{CapSet, Capability};
use nix::sched::CloneFlags;
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use super::step;
use crate::error::ServeError;

/// `MS_NOSYMFOLLOW` (Linux 5.10).
const NOSYMFOLLOW: u32 = 256;

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
    restrict(directory, readonly)?;
    rustix::process::chdir(directory).map_err(step("enter the directory"))?;
    // Both names are the same: the old root comes to lie on top of the new one, and goes.
    rustix::process::pivot_root(".", ".").map_err(step("make the directory the root"))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(step("leave the old root"))?;
    rustix::process::chdir("/").map_err(step("enter the new root"))
}

/// Takes devices and the like from the mount of `directory` and from those below it, and leaves what
/// the host has taken from them already.
fn restrict(directory: &Path, readonly: bool) -> Result<(), ServeError> {
    let mounts = std::fs::read("/proc/thread-self/mountinfo").map_err(step("read the mounts"))?;
    let mut more = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV;
    if readonly {
        more |= MountFlags::RDONLY;
    }
    let refused = step("mount the directory without devices");
    let mounts = mounts_within(&mounts, directory);
    let own = mounts.get(directory).ok_or(Errno::NOENT);
    let own = own.and_then(|own| rustix::mount::mount_remount(directory, *own | more, c""));
    own.map_err(refused)?;
    for (place, has) in mounts.iter().filter(|(place, _)| *place != directory) {
        match rustix::mount::mount_remount(place, *has | more, c"") {
            // Something else is mounted over it, or it lies in a user's own: root does not get there.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::INVAL | Errno::ACCESS) => {}
            done => done.map_err(step("take devices from what is mounted in the directory"))?,
        }
    }
    Ok(())
}

/// The mounts at and below `directory`, each with what it must not have. Where there are several at a
/// place, the last one is on top.
fn mounts_within(mounts: &[u8], directory: &Path) -> BTreeMap<PathBuf, MountFlags> {
    let mounts = mounts.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut words = line.split(|byte| *byte == b' ').skip(4);
        let place = PathBuf::from(OsString::from_vec(unescaped(words.next()?)));
        let options = words.next()?.split(|byte| *byte == b',');
        let flags = options.map(|option| match option {
            b"ro" => MountFlags::RDONLY,
            b"nosuid" => MountFlags::NOSUID,
            b"nodev" => MountFlags::NODEV,
            b"noexec" => MountFlags::NOEXEC,
            b"nosymfollow" => MountFlags::from_bits_retain(NOSYMFOLLOW),
            // Those about times stay as they are where none is named.
            _ => MountFlags::empty(),
        });
        Some((
            place,
            flags.fold(MountFlags::empty(), |all, flag| all | flag),
        ))
    });
    let within = |(place, _): &(PathBuf, MountFlags)| place.starts_with(directory);
    mounts.filter(within).collect()
}

/// A path as the kernel writes it there: spaces, tabs, line ends and backslashes in octal.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after.first_chunk::<3>().filter(|_| byte == b'\\');
        let octal = octal.and_then(|digits| std::str::from_utf8(digits).ok());
        let octal = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        path.push(octal.unwrap_or(byte));
        rest = match octal {
            Some(_) => after.get(3..).unwrap_or_default(),
            None => after,
        };
    }
    path
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
    fn mounts_within_a_directory_keep_what_was_taken_from_them() {
        let mounts = b"28 1 254:1 / / ro,noexec,relatime - ext4 /dev/vda1 rw\n\
            30 28 0:30 / /srv/a\\040b ro,nosuid,relatime shared:1 - tmpfs x rw\n\
            31 28 0:31 / /srv/a\\040bc rw - tmpfs x rw\n\
            32 30 0:32 / /srv/a\\040b/c\\134 rw,nodev,noexec,nosymfollow,noatime - tmpfs x rw\n\
            33 30 0:33 / /srv/a\\040b rw - tmpfs x rw\n";
        let found = mounts_within(mounts, Path::new("/srv/a b"));
        let all =
            MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::from_bits_retain(NOSYMFOLLOW);
        let wanted = [
            (PathBuf::from("/srv/a b"), MountFlags::empty()),
            (PathBuf::from("/srv/a b/c\\"), all),
        ];
        assert_eq!(found, BTreeMap::from(wanted));
        let first = mounts_within(mounts.split_at(130).0, Path::new("/srv/a b"));
        let taken = MountFlags::RDONLY | MountFlags::NOSUID;
        assert_eq!(first.get(Path::new("/srv/a b")), Some(&taken));
    }

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
