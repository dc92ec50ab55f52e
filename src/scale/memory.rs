//! Owns the count of the process's own memory: what its allocator has given out, in the sizes that
//! it rounds to. Never counts what the kernel keeps for the process.

// UNSAFETY: the C library alone knows what its allocator has given out. The process's size would
// not do: memory that was freed is used again, and the process does not grow.
#![expect(unsafe_code, reason = "mallinfo2 is a C function")]

/// Bytes that the allocator has given out; `None` where it does not say.
#[cfg(target_env = "gnu")]
pub(super) fn allocated() -> Option<u64> {
    // SAFETY: it takes no arguments and has no preconditions; it may be called while other threads
    // allocate (man 3 mallinfo).
    let info = unsafe { libc::mallinfo2() };
    info.uordblks.checked_add(info.hblkhd)?.try_into().ok()
}

/// Bytes that the allocator has given out; `None` where it does not say.
#[cfg(not(target_env = "gnu"))]
pub(super) fn allocated() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allocated_is_counted_once() {
        let Some(before) = allocated() else { return };
        let blocks: Vec<Box<[u8; 1000]>> = (0..10_000).map(|_| Box::new([1; 1000])).collect();
        let grown = allocated().unwrap().saturating_sub(before);
        // Other tests allocate meanwhile, and less than that.
        assert!((9_000_000..13_000_000).contains(&grown), "{grown}");
        drop(blocks);
    }
}
