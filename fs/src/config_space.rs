//! Owns the device's configuration space as virtio lays it out. Never changes it.

/// Bytes that a tag can have.
pub(crate) const TAG_LEN: usize = 36;

/// The name that the guest mounts by, and how many request queues there are.
#[derive(Clone, Debug)]
pub(crate) struct ConfigSpace {
    bytes: Vec<u8>,
}

impl ConfigSpace {
    /// A tag of up to [`TAG_LEN`] bytes; what is longer is cut off.
    pub(crate) fn new(tag: &str, queues: u32) -> Self {
        let padding = std::iter::repeat(0);
        let bytes = tag
            .bytes()
            .chain(padding)
            .take(TAG_LEN)
            .chain(queues.to_le_bytes())
            .collect();
        Self { bytes }
    }

    /// `size` bytes from `offset` on, or nothing if there are not so many.
    pub(crate) fn read(&self, offset: u32, size: u32) -> Vec<u8> {
        let range = || {
            let start = usize::try_from(offset).ok()?;
            let end = start.checked_add(usize::try_from(size).ok()?)?;
            self.bytes.get(start..end)
        };
        range().unwrap_or_default().to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_stands_before_the_number_of_queues() {
        let space = ConfigSpace::new("home", 3);
        assert_eq!(space.read(0, 6), b"home\0\0");
        assert_eq!(space.read(36, 4), [3, 0, 0, 0]);
        assert_eq!(space.read(0, 40).len(), 40);
        assert!(space.read(0, 41).is_empty());
        assert!(space.read(u32::MAX, u32::MAX).is_empty());
    }

    #[test]
    fn a_tag_of_36_bytes_has_no_end_mark() {
        let tag = "x".repeat(TAG_LEN);
        let space = ConfigSpace::new(&tag, 1);
        assert_eq!(space.read(0, 37), [tag.as_bytes(), &[1]].concat());
    }
}
