//! Owns the choice of what a guest finds in a hole, and of what becomes of its writes to memory that
//! it may only read. Never resolves a touch.

/// What a guest finds where nothing is mapped, with
/// [`WindowOptions::holes`](crate::WindowOptions::holes).
///
/// No choice lets a guest that touches every hole make the host allocate memory. What a guest's
/// touch does without a fault resolver (feature `fault`) is said for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum HolePolicy {
    /// An open bus, as an address without memory: reads give all ones, writes are dropped. Each
    /// touch of a hole leaves the guest; without a resolver `KVM_RUN` ends with `EFAULT` there.
    #[default]
    Trap,
    /// Zeroes: reads never leave the guest, writes do and are dropped; without a resolver
    /// `KVM_RUN` ends with `EFAULT` for these. The page tables of the host and of the hypervisor
    /// grow where the guest reads, by 16 bytes for 4 KiB at the most.
    Zero,
    /// The resolver says stop, with a report: for a guest that has no business in a hole.
    Stop,
}

/// What becomes of a guest's write to a read-only mapping, with
/// [`WindowOptions::read_only_writes`](crate::WindowOptions::read_only_writes).
#[cfg(feature = "fault")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ReadOnlyWrites {
    /// It is dropped, as by read-only memory. While the one instruction runs, other vCPUs and
    /// [pins](crate::Pin) can see what it writes.
    #[default]
    Drop,
    /// The resolver says stop, with a report.
    Report,
}
