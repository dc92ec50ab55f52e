//! Owns the one step from a descriptor's number to a borrowed descriptor. Never keeps either.

// UNSAFETY: vhost passes descriptors as `AsRawFd`, and `BorrowedFd` is made of a number by an unsafe
// call alone.
#![expect(unsafe_code, reason = "a descriptor's number says nothing of its life")]

use std::os::fd::{AsRawFd, BorrowedFd};

/// The descriptor of `owner`, for as long as `owner` is borrowed.
///
/// Where an owner gives a number that is no descriptor's, there is none.
pub(super) fn borrow<T: AsRawFd + ?Sized>(owner: &T) -> Option<BorrowedFd<'_>> {
    let raw = owner.as_raw_fd();
    if raw < 0 {
        return None;
    }
    // SAFETY: it is no -1, as seen above. It is open until the borrow ends: the callers pass
    // what owns the descriptor that it gives the number of (a `File` of vhost, a frontend), and the
    // result borrows that.
    let borrowed = unsafe { BorrowedFd::borrow_raw(raw) };
    Some(borrowed)
}
