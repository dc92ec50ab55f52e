//! Owns the written form of a layout record: its figures and their SHA-256. Never judges whether
//! they can be true.

use sha2::{Digest, Sha256};

use super::Origin;
use super::record::{LayoutRecord, MappingRecord, VERSION};
use crate::error::Error;

/// A [`LayoutRecord`] as it is serialised.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Written {
    version: u32,
    base: u64,
    window: u64,
    mappings: Vec<MappingRecord>,
    sha256: String,
}

impl From<LayoutRecord> for Written {
    fn from(record: LayoutRecord) -> Self {
        let sha256 = sum(&record);
        let LayoutRecord {
            version,
            base,
            window,
            mappings,
        } = record;
        Self {
            version,
            base,
            window,
            mappings,
            sha256,
        }
    }
}

impl TryFrom<Written> for LayoutRecord {
    type Error = Error;

    fn try_from(written: Written) -> Result<Self, Error> {
        let Written {
            version,
            base,
            window,
            mappings,
            sha256,
        } = written;
        let refuse = |reason: String| Err(Error::Record { reason });
        if version != VERSION {
            return refuse(format!(
                "it has version {version}, this library reads {VERSION}"
            ));
        }
        let record = Self {
            version,
            base,
            window,
            mappings,
        };
        let own = sum(&record);
        if own != sha256 {
            return refuse(format!(
                "the SHA-256 of its figures is {own}, and it says {sha256:?}: it was changed since \
                 it was written; use another copy of it"
            ));
        }
        Ok(record)
    }
}

/// The SHA-256 of every figure, in hexadecimal digits. It is one of figures, not of text, so that
/// it is the same in every format.
fn sum(record: &LayoutRecord) -> String {
    let mut sum = Sha256::new_with_prefix(b"vm-remap layout record");
    let mut add = |figures: &[u64]| {
        for figure in figures {
            sum.update(figure.to_le_bytes());
        }
    };
    add(&[u64::from(record.version), record.base, record.window]);
    add(&[record.mappings.len() as u64]);
    for mapping in &record.mappings {
        let protection = u64::from(mapping.protection.is_writable());
        add(&[mapping.offset, mapping.len, protection, mapping.label]);
        match mapping.origin {
            Origin::Descriptor {
                kind,
                device,
                inode,
                offset,
            } => {
                // A kind is known by its name, which has the size of its pages.
                let kind: Vec<u64> = kind.to_string().bytes().map(u64::from).collect();
                add(&[0, kind.len() as u64]);
                add(&kind);
                add(&[device, inode, offset]);
            }
            Origin::HostMemory { address, in_place } => add(&[1, address, u64::from(in_place)]),
            Origin::Anonymous => add(&[2]),
        }
    }
    let digits = |byte: u8| format!("{byte:02x}");
    sum.finalize().into_iter().map(digits).collect()
}
