//! Owns the comparison of a descriptor with what a record says of it. Never asks the kernel.

use super::descriptor::Descriptor;
use crate::error::Error;
use crate::layout::Origin;
use crate::range::PageRange;

/// What a source must turn out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) origin: Origin,
    /// Whether it must be the very file, not a copy of it.
    pub(crate) same_file: bool,
}

impl Expected {
    /// Refuses a descriptor, and an offset in it, that the record does not speak of. Memory that
    /// had no descriptor when it was recorded can come from any now.
    pub(crate) fn judge(
        self,
        found: &Descriptor,
        offset: u64,
        range: PageRange,
    ) -> Result<(), Error> {
        let Origin::Descriptor {
            kind,
            device,
            inode,
            offset: recorded,
        } = self.origin
        else {
            return Ok(());
        };
        let same_file = (device, inode) == (found.device, found.inode);
        if kind == found.kind && recorded == offset && (same_file || !self.same_file) {
            return Ok(());
        }
        let found = Origin::Descriptor {
            kind: found.kind,
            device: found.device,
            inode: found.inode,
            offset,
        };
        Err(self.refusal(range, found.to_string()))
    }

    /// Refuses memory without a descriptor where the record has one.
    pub(crate) fn judge_memory(self, range: PageRange) -> Result<(), Error> {
        match self.origin {
            Origin::Descriptor { .. } => {
                Err(self.refusal(range, "memory without a descriptor".to_owned()))
            }
            Origin::HostMemory { .. } | Origin::Anonymous => Ok(()),
        }
    }

    fn refusal(self, range: PageRange, found: String) -> Error {
        Error::RecordedSource {
            range,
            recorded: self.origin.to_string(),
            found,
        }
    }
}
