//! Owns with which flags each handle was opened. Never opens one.
//!
//! A guest says the flags of the open file with each read and write, and fuse-backend-rs 0.14 takes
//! them over to its descriptor where they differ. Where the kernel refuses them (`O_NOATIME` on a
//! file of another user, say) it closes the descriptor and goes on using its number, which may be
//! another file's by then. So it is told the flags that it knows, and has nothing to take over: an
//! `fcntl(F_SETFL)` in the guest stays there.

use std::collections::HashMap;
use std::io;
use std::sync::{PoisonError, RwLock};

/// The open handles.
#[derive(Debug, Default)]
pub(super) struct Handles {
    flags: RwLock<HashMap<u64, u32>>,
}

impl Handles {
    pub(super) fn opened(&self, handle: Option<u64>, flags: u32) {
        if let Some(handle) = handle {
            let mut all = self.flags.write().unwrap_or_else(PoisonError::into_inner);
            all.insert(handle, flags);
        }
    }

    pub(super) fn closed(&self, handle: u64) {
        let mut all = self.flags.write().unwrap_or_else(PoisonError::into_inner);
        all.remove(&handle);
    }

    pub(super) fn clear(&self) {
        let mut all = self.flags.write().unwrap_or_else(PoisonError::into_inner);
        all.clear();
    }

    /// The flags of a handle, which are none of the guest's reads and writes.
    ///
    /// # Errors
    /// `EBADF`: it is not open.
    pub(super) fn flags(&self, handle: u64) -> io::Result<u32> {
        let all = self.flags.read().unwrap_or_else(PoisonError::into_inner);
        let flags = all.get(&handle).copied();
        flags.ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_those_of_the_opening_until_the_closing() {
        let handles = Handles::default();
        handles.opened(Some(3), 0x8002);
        handles.opened(None, 1);
        assert_eq!(handles.flags(3).unwrap(), 0x8002);
        handles.closed(3);
        handles.opened(Some(4), 0);
        handles.clear();
        for handle in [3, 4] {
            let error = handles.flags(handle).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EBADF));
        }
    }
}
