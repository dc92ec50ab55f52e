//! Owns the answer to where in a window a blob should lie, so that its pages can be huge ones for
//! the guest as well. Never allocates an offset.

use super::Window;
use crate::backend::BackendKind;
use crate::range::{HUGE_1G, HUGE_2M, PAGE_SIZE};

impl Window {
    /// The alignment, in bytes, that an allocator of window offsets should give a blob of `len`
    /// bytes: 1 GiB, 2 MiB or 4 KiB, the largest that can become one translation of the guest.
    ///
    /// It takes a blob at least that long, and a window and segments that begin on multiples of it
    /// in the guest; the arena follows the guest. Whether the guest gets the large translation is
    /// also the source's affair: its pages must be that large (hugetlb, a memfd with huge pages),
    /// and its own offset a multiple of the alignment too. An offset with a smaller alignment
    /// works, with 4 KiB translations: 512 faults for each 2 MiB instead of one.
    ///
    /// [`relocate`](Self::relocate) can change the answer.
    #[must_use]
    pub fn preferred_alignment(&self, len: u64) -> u64 {
        let (base, host) = (self.base().0, self.shared.arena.address(0));
        let segment = self.shared.geometry.segment;
        let fits = |size: &u64| {
            let size = *size;
            // With `memslot` a blob has a slot of its own, which begins where it does.
            let slots = self.kind == BackendKind::Memslot || segment.is_multiple_of(size);
            len >= size && slots && base.is_multiple_of(size) && host.is_multiple_of(size)
        };
        [HUGE_1G, HUGE_2M]
            .into_iter()
            .find(fits)
            .unwrap_or(PAGE_SIZE)
    }
}
