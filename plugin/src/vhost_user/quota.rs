//! Owns how much of the VMM a device may take by mapping, and the count of what it has. Never maps.

use super::refusal::Refusal;

/// The most that one device may have mapped at a time.
///
/// Each mapping costs the VMM up to two areas of its address space, of which Linux allows a process
/// 65530 in all (`vm.max_map_count`). A mapping of a dma-buf or of hugetlb memory also keeps a
/// descriptor of the VMM's. Memory belongs to the file that is mapped, and lives as long as the
/// mapping, whatever its owner closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShmemLimits {
    pub(super) mappings: usize,
    pub(super) bytes: u64,
    pub(super) descriptors: usize,
    pub(super) requests_per_wake: usize,
}

impl Default for ShmemLimits {
    /// 8192 mappings, 256 descriptors, as many bytes as the windows have, 32 requests for each
    /// wake-up.
    fn default() -> Self {
        Self {
            mappings: 8192,
            bytes: u64::MAX,
            descriptors: 256,
            requests_per_wake: 32,
        }
    }
}

impl ShmemLimits {
    /// The most mappings at a time.
    #[must_use]
    pub const fn mappings(mut self, most: usize) -> Self {
        self.mappings = most;
        self
    }

    /// The most bytes mapped at a time, in all windows together.
    #[must_use]
    pub const fn bytes(mut self, most: u64) -> Self {
        self.bytes = most;
        self
    }

    /// The most mappings at a time that keep a descriptor: of dma-bufs and of hugetlb memory.
    #[must_use]
    pub const fn descriptors(mut self, most: usize) -> Self {
        self.descriptors = most;
        self
    }

    /// How many requests [`BackendChannel::wake`](super::BackendChannel::wake) serves before it
    /// returns, at least 1, so that a backend that floods its channel keeps nobody else waiting.
    #[must_use]
    pub const fn requests_per_wake(mut self, most: usize) -> Self {
        self.requests_per_wake = if most == 0 { 1 } else { most };
        self
    }
}

/// What a device has mapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) mappings: u64,
    pub(super) bytes: u64,
    pub(super) descriptors: u64,
}

impl Usage {
    /// Whether one more mapping of `len` bytes is within the limits; its descriptor is not counted.
    pub(super) fn admit(&self, limits: &ShmemLimits, len: u64) -> Result<(), Refusal> {
        check("mappings", 1, self.mappings, limits.mappings as u64)?;
        check("bytes", len, self.bytes, limits.bytes)
    }

    /// Whether one more mapping may keep its descriptor.
    pub(super) fn admit_descriptor(&self, limits: &ShmemLimits) -> Result<(), Refusal> {
        check(
            "descriptors",
            1,
            self.descriptors,
            limits.descriptors as u64,
        )
    }

    pub(super) fn add(&mut self, len: u64, keeps: bool) {
        self.mappings = self.mappings.saturating_add(1);
        self.bytes = self.bytes.saturating_add(len);
        self.descriptors = self.descriptors.saturating_add(u64::from(keeps));
    }

    pub(super) fn take(&mut self, len: u64, keeps: bool) {
        self.mappings = self.mappings.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(len);
        self.descriptors = self.descriptors.saturating_sub(u64::from(keeps));
    }
}

fn check(what: &'static str, asked: u64, used: u64, limit: u64) -> Result<(), Refusal> {
    if used.checked_add(asked).is_some_and(|sum| sum <= limit) {
        return Ok(());
    }
    Err(Refusal::Quota {
        what,
        asked,
        used,
        limit,
    })
}
