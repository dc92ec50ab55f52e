//! Owns the step from an open file to the window. Never opens the file: the passthrough file system
//! does, by the guest's number for it.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use fuse_backend_rs::abi::virtio_fs::{RemovemappingOne, SetupmappingFlags};
use fuse_backend_rs::api::filesystem::{Context, FileSystem as _};
use fuse_backend_rs::transport::FsCacheReqHandler;

use super::Share;
use crate::cache::{Cache, Wish};

/// What is done with the open file of a range.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// The guest asked for the range.
    Place,
    /// The file grew, and the range with it.
    Grow,
}

/// What maps and unmaps on behalf of the FUSE library.
pub(crate) struct Mapper {
    cache: Arc<Cache>,
    /// The range to map, the size of its file in bytes, and why.
    next: Option<(Wish, u64, Step)>,
}

impl Mapper {
    /// Unmaps; a range to map is known only once its file is.
    pub(crate) fn new(cache: Arc<Cache>) -> Self {
        Self { cache, next: None }
    }
}

impl FsCacheReqHandler for Mapper {
    fn map(&mut self, _: u64, _: u64, _: u64, _: u64, file: RawFd) -> io::Result<()> {
        match self.next.take() {
            Some((wish, size, Step::Place)) => self.cache.place(&wish, size, &file),
            Some((wish, size, Step::Grow)) => self.cache.grow(&wish, size, &file),
            None => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        }
    }

    fn unmap(&mut self, requests: Vec<RemovemappingOne>) -> io::Result<()> {
        requests
            .iter()
            .map(|one| self.cache.remove(one.moffset, one.len))
            .reduce(Result::and)
            .unwrap_or(Ok(()))
    }
}

impl Share {
    /// Maps what the guest asks for.
    pub(super) fn place(&self, context: &Context, wish: Wish) -> io::Result<()> {
        if wish.writable {
            self.writable()?;
        }
        let (attributes, _) = self.inner.getattr(context, wish.inode, None)?;
        let size = u64::try_from(attributes.st_size).unwrap_or(0);
        self.map(context, wish, size, Step::Place)?;
        // Another queue may have made the file longer since its size was read.
        self.changed(context, wish.inode);
        Ok(())
    }

    /// Maps what a file has grown by, before the guest learns of it: Linux does not ask again for a
    /// range that it has.
    pub(super) fn told(&self, context: &Context, inode: u64, size: i64) {
        let size = u64::try_from(size).unwrap_or(0);
        for wish in self.cache.short(inode, size) {
            if let Err(error) = self.map(context, wish, size, Step::Grow) {
                log::debug!("cannot map what a file has grown by, to {size} bytes: {error}");
            }
        }
    }

    /// Like [`told`](Self::told), where the answer does not carry the size.
    pub(super) fn changed(&self, context: &Context, inode: u64) {
        if self.cache.short(inode, u64::MAX).is_empty() {
            return;
        }
        if let Ok((attributes, _)) = self.inner.getattr(context, inode, None) {
            self.told(context, inode, attributes.st_size);
        }
    }

    /// Unmaps what the guest has of a file that it named for the last time.
    pub(super) fn forgotten(&self, context: &Context, inode: u64) {
        if !self.cache.has(inode) || self.inner.getattr(context, inode, None).is_ok() {
            return;
        }
        if let Err(error) = self.cache.forget(inode) {
            log::debug!("cannot unmap a file that the guest has forgotten: {error}");
        }
    }

    fn map(&self, context: &Context, wish: Wish, size: u64, step: Step) -> io::Result<()> {
        let mut flags = SetupmappingFlags::READ;
        if wish.writable {
            flags |= SetupmappingFlags::WRITE;
        }
        let mut mapper = Mapper {
            cache: Arc::clone(&self.cache),
            next: Some((wish, size, step)),
        };
        self.inner.setupmapping(
            context,
            wish.inode,
            0,
            wish.file,
            wish.len,
            flags.bits(),
            wish.window,
            &mut mapper,
        )
    }
}
