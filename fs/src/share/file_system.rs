//! Owns what each FUSE request does to the shared directory. Never looks at guest memory.
//!
//! The passthrough file system does the work. Here it is kept inside the directory, kept from
//! writing where that is asked for, and every size that the guest is about to learn is mapped first.
//! Locks stay in the guest, and extended attributes are not served: both are what the trait does by
//! itself, `ENOSYS`, after which Linux does not ask again.

use std::ffi::CStr;
use std::io;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{CreateIn, OpenOptions, SetattrValid, stat64, statvfs64};
use fuse_backend_rs::abi::virtio_fs::{RemovemappingOne, SetupmappingFlags};
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, FsOptions, ZeroCopyReader, ZeroCopyWriter,
};
use fuse_backend_rs::transport::FsCacheReqHandler;

use super::Share;
use crate::cache::Wish;

type Opened = (Option<u64>, OpenOptions, Option<u32>);

impl FileSystem for Share {
    type Inode = u64;
    type Handle = u64;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        self.begin(capable)
    }

    fn destroy(&self) {
        self.end();
    }

    fn lookup(&self, ctx: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        Self::inside(name)?;
        let found = self.known(ctx, parent, self.inner.lookup(ctx, parent, name));
        self.told_entry(ctx, found)
    }

    fn forget(&self, ctx: &Context, inode: u64, count: u64) {
        self.inner.forget(ctx, inode, count);
        self.forgotten(ctx, inode);
    }

    fn batch_forget(&self, ctx: &Context, requests: Vec<(u64, u64)>) {
        let inodes: Vec<u64> = requests.iter().map(|&(inode, _)| inode).collect();
        self.inner.batch_forget(ctx, requests);
        for inode in inodes {
            self.forgotten(ctx, inode);
        }
    }

    fn getattr(
        &self,
        ctx: &Context,
        inode: u64,
        handle: Option<u64>,
    ) -> io::Result<(stat64, Duration)> {
        self.known(ctx, inode, self.inner.getattr(ctx, inode, handle))
            .inspect(|(attributes, _)| self.told(ctx, inode, attributes.st_size))
    }

    fn setattr(
        &self,
        ctx: &Context,
        inode: u64,
        attr: stat64,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<(stat64, Duration)> {
        self.writable()?;
        let set = self.inner.setattr(ctx, inode, attr, handle, valid);
        self.known(ctx, inode, set)
            .inspect(|(attributes, _)| self.told(ctx, inode, attributes.st_size))
    }

    fn readlink(&self, ctx: &Context, inode: u64) -> io::Result<Vec<u8>> {
        self.known(ctx, inode, self.inner.readlink(ctx, inode))
    }

    fn symlink(
        &self,
        ctx: &Context,
        linkname: &CStr,
        parent: u64,
        name: &CStr,
    ) -> io::Result<Entry> {
        self.writable()?;
        Self::inside(name)?;
        let made = self.inner.symlink(ctx, linkname, parent, name);
        self.known(ctx, parent, made)
    }

    fn mknod(
        &self,
        ctx: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        rdev: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        self.writable()?;
        Self::inside(name)?;
        let made = self.inner.mknod(ctx, parent, name, mode, rdev, umask);
        self.known(ctx, parent, made)
    }

    fn mkdir(
        &self,
        ctx: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        self.writable()?;
        Self::inside(name)?;
        let made = self.inner.mkdir(ctx, parent, name, mode, umask);
        self.known(ctx, parent, made)
    }

    fn unlink(&self, ctx: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        self.writable()?;
        Self::inside(name)?;
        self.known(ctx, parent, self.inner.unlink(ctx, parent, name))
    }

    fn rmdir(&self, ctx: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        self.writable()?;
        Self::inside(name)?;
        self.known(ctx, parent, self.inner.rmdir(ctx, parent, name))
    }

    fn rename(
        &self,
        ctx: &Context,
        olddir: u64,
        oldname: &CStr,
        newdir: u64,
        newname: &CStr,
        flags: u32,
    ) -> io::Result<()> {
        self.writable()?;
        Self::inside(oldname)?;
        Self::inside(newname)?;
        let renamed = self
            .inner
            .rename(ctx, olddir, oldname, newdir, newname, flags);
        let renamed = self.known(ctx, olddir, renamed);
        self.known(ctx, newdir, renamed)
    }

    fn link(&self, ctx: &Context, inode: u64, parent: u64, name: &CStr) -> io::Result<Entry> {
        self.writable()?;
        Self::inside(name)?;
        let linked = self.inner.link(ctx, inode, parent, name);
        let linked = self.known(ctx, parent, self.known(ctx, inode, linked));
        self.told_entry(ctx, linked)
    }

    fn open(&self, ctx: &Context, inode: u64, flags: u32, fuse_flags: u32) -> io::Result<Opened> {
        self.openable(flags)?;
        let opened = self.inner.open(ctx, inode, flags, fuse_flags);
        self.known(ctx, inode, opened)
            .inspect(|&(handle, ..)| self.handles.opened(handle, flags))
    }

    fn create(
        &self,
        ctx: &Context,
        parent: u64,
        name: &CStr,
        args: CreateIn,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions, Option<u32>)> {
        self.writable()?;
        Self::inside(name)?;
        let created = self.inner.create(ctx, parent, name, args);
        let (entry, handle, options, backing) = self.known(ctx, parent, created)?;
        self.handles.opened(handle, args.flags);
        self.told(ctx, entry.inode, entry.attr.st_size);
        Ok((entry, handle, options, backing))
    }

    fn read(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        w: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        _flags: u32,
    ) -> io::Result<usize> {
        let read = self.handles.flags(handle).and_then(|flags| {
            self.inner
                .read(ctx, inode, handle, w, size, offset, lock_owner, flags)
        });
        self.known(ctx, inode, read)
    }

    fn write(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        r: &mut dyn ZeroCopyReader,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        delayed_write: bool,
        _flags: u32,
        fuse_flags: u32,
    ) -> io::Result<usize> {
        self.writable()?;
        let written = self.handles.flags(handle).and_then(|flags| {
            self.inner.write(
                ctx,
                inode,
                handle,
                r,
                size,
                offset,
                lock_owner,
                delayed_write,
                flags,
                fuse_flags,
            )
        });
        self.known(ctx, inode, written)
            .inspect(|_| self.changed(ctx, inode))
    }

    fn flush(&self, ctx: &Context, inode: u64, handle: u64, owner: u64) -> io::Result<()> {
        self.known(ctx, inode, self.inner.flush(ctx, inode, handle, owner))
    }

    fn fsync(&self, ctx: &Context, inode: u64, datasync: bool, handle: u64) -> io::Result<()> {
        self.known(ctx, inode, self.inner.fsync(ctx, inode, datasync, handle))
    }

    fn fallocate(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        self.writable()?;
        let allocated = self
            .inner
            .fallocate(ctx, inode, handle, mode, offset, length);
        self.known(ctx, inode, allocated)
            .inspect(|()| self.changed(ctx, inode))
    }

    fn release(
        &self,
        ctx: &Context,
        inode: u64,
        flags: u32,
        handle: u64,
        flush: bool,
        flock_release: bool,
        lock_owner: Option<u64>,
    ) -> io::Result<()> {
        let released =
            self.inner
                .release(ctx, inode, flags, handle, flush, flock_release, lock_owner);
        self.known(ctx, inode, released)
            .inspect(|()| self.handles.closed(handle))
    }

    fn statfs(&self, ctx: &Context, inode: u64) -> io::Result<statvfs64> {
        self.known(ctx, inode, self.inner.statfs(ctx, inode))
    }

    fn opendir(
        &self,
        ctx: &Context,
        inode: u64,
        flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions)> {
        let opened = self.inner.opendir(ctx, inode, flags);
        let kept = flags | libc::O_DIRECTORY.cast_unsigned();
        self.known(ctx, inode, opened)
            .inspect(|&(handle, _)| self.handles.opened(handle, kept))
    }

    fn readdir(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry<'_>) -> io::Result<usize>,
    ) -> io::Result<()> {
        let read = self
            .inner
            .readdir(ctx, inode, handle, size, offset, add_entry);
        self.known(ctx, inode, read)
    }

    fn readdirplus(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry<'_>, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        let mut add = |name: DirEntry<'_>, entry: Entry| {
            self.told(ctx, entry.inode, entry.attr.st_size);
            add_entry(name, entry)
        };
        let read = self
            .inner
            .readdirplus(ctx, inode, handle, size, offset, &mut add);
        self.known(ctx, inode, read)
    }

    fn fsyncdir(&self, ctx: &Context, inode: u64, datasync: bool, handle: u64) -> io::Result<()> {
        let synced = self.inner.fsyncdir(ctx, inode, datasync, handle);
        self.known(ctx, inode, synced)
    }

    fn releasedir(&self, ctx: &Context, inode: u64, flags: u32, handle: u64) -> io::Result<()> {
        let released = self.inner.releasedir(ctx, inode, flags, handle);
        self.known(ctx, inode, released)
            .inspect(|()| self.handles.closed(handle))
    }

    fn setupmapping(
        &self,
        ctx: &Context,
        inode: u64,
        _handle: u64,
        foffset: u64,
        len: u64,
        flags: u64,
        moffset: u64,
        _mapper: &mut dyn FsCacheReqHandler,
    ) -> io::Result<()> {
        let wish = Wish {
            inode,
            file: foffset,
            window: moffset,
            len,
            writable: flags & SetupmappingFlags::WRITE.bits() != 0,
        };
        self.known(ctx, inode, self.place(ctx, wish))
    }

    fn removemapping(
        &self,
        _ctx: &Context,
        _inode: u64,
        requests: Vec<RemovemappingOne>,
        mapper: &mut dyn FsCacheReqHandler,
    ) -> io::Result<()> {
        mapper.unmap(requests)
    }

    fn access(&self, ctx: &Context, inode: u64, mask: u32) -> io::Result<()> {
        self.known(ctx, inode, self.inner.access(ctx, inode, mask))
    }

    fn lseek(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        offset: u64,
        whence: u32,
    ) -> io::Result<u64> {
        let sought = self.inner.lseek(ctx, inode, handle, offset, whence);
        self.known(ctx, inode, sought)
    }
}
