//! Owns the choice of what a mapping's pages should cost, and when. Never touches a page.

/// Whether the pages of a mapping are there before the guest looks, with
/// [`Source::prefault`](crate::Source::prefault).
///
/// The guest's first touch of a page costs up to two faults: the host's own, which finds or makes
/// the page, and KVM's, which enters it into the guest's translations. Each way takes another part
/// of that cost into the call. What it takes is not lower, but the guest does not wait for it, and
/// one system call does in one go what takes the guest a fault for each page.
///
/// All of it is done before the call returns, so a peer that is answered after the call finds the
/// pages there. A way that fails half-way leaves the pages that it has brought in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Prefault {
    /// Nothing: a page comes when it is first touched. The call costs the least, and memory that
    /// nobody touches is never made.
    #[default]
    None,
    /// The host's page tables are filled as if each page had been read (`MADV_POPULATE_READ`,
    /// Linux 5.14): what is not there yet is made or read from storage. The guest still takes KVM's
    /// faults, and these are short.
    ///
    /// It happens elsewhere, before the mapping is moved into place and outside the window's lock:
    /// where it fails, nothing has changed, and the call returns
    /// [`Error::Prefault`](crate::Error::Prefault). For that, a sealed memfd gives up its one-call
    /// path. Where the kernel has no call for it (a dma-buf; any memory, before Linux 5.14), each page
    /// is touched instead. A memslot that lies directly over host memory is mapped without.
    HostRead,
    /// As [`HostRead`](Self::HostRead), as if each page had been written (`MADV_POPULATE_WRITE`),
    /// and nothing is written: a file system that allocates on the first write has done so. A
    /// mapping that the guest may not write is filled for reading.
    HostWrite,
    /// The guest's own translations are filled (`KVM_PRE_FAULT_MEMORY`, Linux 6.11, with a TDP
    /// MMU): the guest takes no fault at all. It needs a provider that can, see
    /// [`SlotProvider::can_prefault`](crate::SlotProvider::can_prefault); with any other it is
    /// [`HostRead`](Self::HostRead).
    ///
    /// It happens last, when the memory is in place: where it fails, the mapping is right, the rest
    /// of its pages come when they are touched, and the call succeeds. KVM makes it a read: on a
    /// memslot with dirty logging it marks writable pages dirty.
    Guest,
}
