//! Owns the way from a record back to a window: everything that it lists is mapped again, or
//! nothing. Never believes the record, nor whoever finds the sources for it.

use std::io;

use super::Window;
use super::batch::Batch;
use crate::error::Error;
use crate::layout::record::{LayoutRecord, MappingRecord};
use crate::source::expected::Expected;
use crate::source::{Memory, Source};

impl Window {
    /// Maps everything that `record` lists, all or nothing, into this window, which must be
    /// empty and no shorter than the recorded one. `resolve` finds the source for each mapping:
    /// the record knows files by number and label only. Labels are taken from the record.
    ///
    /// The window's own guest address stays; the recorded one is information for the VMM.
    ///
    /// **Files.** A mapping that was recorded with a descriptor must get one of the same kind, at
    /// the same offset, of the very same file: device and inode are those that the record has. A
    /// descriptor that came by `SCM_RIGHTS`, or through a `fork`, is. For files that were copied,
    /// to another host or into a snapshot, there is [`replay_copies`](Self::replay_copies).
    ///
    /// **Memory without a descriptor**, anonymous or the VMM's own, is not in the record and not in
    /// any file. The VMM copies its contents, into a memfd for instance, and `resolve` returns any
    /// source that has them.
    ///
    /// # Errors
    /// [`Error::NotEmpty`], [`Error::Record`] or [`Error::BadRange`] for a record that cannot be
    /// true or does not fit, [`Error::Resolve`] where `resolve` fails, [`Error::RecordedSource`]
    /// where it returns something else than was recorded, and what [`commit`](Self::commit)
    /// returns.
    pub fn replay<'fd>(
        &self,
        record: &LayoutRecord,
        resolve: impl FnMut(&MappingRecord) -> io::Result<Source<'fd>>,
    ) -> Result<(), Error> {
        self.replay_as(record, true, resolve)
    }

    /// As [`replay`](Self::replay), for copies of the recorded files: device and inode can be any.
    /// Which file stands behind a mapping is then for `resolve` alone to know. Kind, page size and
    /// offset must still be those of the record.
    ///
    /// # Errors
    /// As [`replay`](Self::replay).
    pub fn replay_copies<'fd>(
        &self,
        record: &LayoutRecord,
        resolve: impl FnMut(&MappingRecord) -> io::Result<Source<'fd>>,
    ) -> Result<(), Error> {
        self.replay_as(record, false, resolve)
    }

    fn replay_as<'fd>(
        &self,
        record: &LayoutRecord,
        same_file: bool,
        mut resolve: impl FnMut(&MappingRecord) -> io::Result<Source<'fd>>,
    ) -> Result<(), Error> {
        let ranges = record.ranges(self.shared.geometry.window.len())?;
        let mappings = self.state().layout.len();
        if mappings > 0 {
            return Err(Error::NotEmpty { mappings });
        }
        let mut batch = Batch::new();
        for (range, mapping) in ranges.into_iter().zip(&record.mappings) {
            let source = resolve(mapping).map_err(|source| Error::Resolve { range, source })?;
            let expected = Expected {
                origin: mapping.origin,
                same_file,
            };
            if !matches!(source.memory, Memory::Descriptor { .. }) {
                expected.judge_memory(range)?;
            }
            let source = Source {
                expected: Some(expected),
                ..source.label(mapping.label)
            };
            batch = batch.map(range, &source, mapping.protection);
        }
        self.commit(&batch)
    }
}
