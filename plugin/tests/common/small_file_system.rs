//! Owns a file system with room for a few pages, so that it is full soon. Never fills it.

use std::fs::File;
use std::process::Command;

/// A file system with room for 16 pages; gone when dropped.
pub struct Small(tempfile::TempDir);

impl Small {
    /// `None` where this process may not mount.
    pub fn mount() -> Option<Self> {
        let place = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", "size=64k", "small"])
            .arg(place.path());
        let mounted = mount.stderr(std::process::Stdio::null()).status();
        mounted
            .is_ok_and(|status| status.success())
            .then(|| Self(place))
    }

    /// A new file of `len` bytes, none of which has a page yet.
    pub fn sparse(&self, len: u64) -> File {
        let path = self.0.path().join("sparse");
        let mut options = File::options();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path);
        let file = file.unwrap();
        file.set_len(len).unwrap();
        file
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _unmounted = Command::new("umount")
            .args(["-l"])
            .arg(self.0.path())
            .status();
    }
}
