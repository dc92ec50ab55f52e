//! Owns the shared directory: what the guest may do with it, and when its files enter the window.
//! Never reads a request from a queue.
//!
//! The files are served by the passthrough file system of fuse-backend-rs. It names every file by a
//! descriptor that it has, never by a path, and follows no symbolic link.

mod file_system;
mod handles;
mod mapping;

use std::ffi::CStr;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use fuse_backend_rs::api::filesystem::{Context, Entry, FileSystem, FsOptions};
use fuse_backend_rs::passthrough::{CachePolicy, Config, PassthroughFs};

use crate::cache::Cache;
use crate::session::{Session, stale};
use handles::Handles;
pub(crate) use mapping::Mapper;

/// What the guest may do, and for how long it may rely on what it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) readonly: bool,
    pub(crate) cache: CachePolicyOption,
}

/// For how long the guest may rely on what it was told of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum CachePolicyOption {
    /// Names and attributes for a second, contents from opening a file to closing it.
    Auto,
    /// For ever: nobody else changes the directory.
    Always,
    /// Not at all.
    Never,
}

impl CachePolicyOption {
    fn policy(self) -> CachePolicy {
        match self {
            Self::Auto => CachePolicy::Auto,
            Self::Always => CachePolicy::Always,
            Self::Never => CachePolicy::Never,
        }
    }

    fn timeout(self) -> Duration {
        match self {
            Self::Auto => Duration::from_secs(1),
            Self::Always => Duration::from_secs(86_400),
            Self::Never => Duration::ZERO,
        }
    }
}

/// A directory of the host that a guest sees.
pub(crate) struct Share {
    inner: PassthroughFs<()>,
    cache: Arc<Cache>,
    handles: Handles,
    session: Session,
    terms: Terms,
}

impl Share {
    /// Serves `root`, which is looked up when the guest begins its session: `.` for the working
    /// directory of then. `/proc` must be mounted now.
    ///
    /// # Errors
    /// What the kernel says to opening `/proc/self/fd`.
    pub(crate) fn new(root: &str, terms: Terms, cache: Arc<Cache>) -> io::Result<Self> {
        let timeout = terms.cache.timeout();
        let config = Config {
            root_dir: root.to_owned(),
            cache_policy: terms.cache.policy(),
            attr_timeout: timeout,
            entry_timeout: timeout,
            // The guest names a file for as long as it likes; a number for each that there ever was
            // would never be freed.
            use_host_ino: true,
            // Every file, where the guest leaves it to the file system (`-o dax=inode`).
            dax_file_size: Some(0),
            ..Config::default()
        };
        Ok(Self {
            inner: PassthroughFs::new(config)?,
            cache,
            handles: Handles::default(),
            session: Session::default(),
            terms,
        })
    }

    /// Whether a guest has begun a session with this process.
    pub(crate) fn is_open(&self) -> bool {
        self.session.is_open()
    }

    /// Begins a session: what an earlier one left is closed and unmapped.
    fn begin(&self, capable: FsOptions) -> io::Result<FsOptions> {
        self.end();
        let offered = self.inner.init(capable)?;
        self.session.begin();
        Ok(offered
            | FsOptions::ASYNC_READ
            | FsOptions::ASYNC_DIO
            | FsOptions::ATOMIC_O_TRUNC
            | FsOptions::AUTO_INVAL_DATA
            | FsOptions::BIG_WRITES
            // Without it Linux does not read the flags of DAX for each file.
            | FsOptions::INIT_EXT
            | FsOptions::MAX_PAGES
            | FsOptions::PARALLEL_DIROPS)
    }

    fn end(&self) {
        self.session.end();
        self.cache.clear();
        self.inner.destroy();
        self.handles.clear();
    }

    /// Refuses a change of a read-only share.
    fn writable(&self) -> io::Result<()> {
        if self.terms.readonly {
            return Err(io::Error::from_raw_os_error(libc::EROFS));
        }
        Ok(())
    }

    /// Refuses `open` flags that would change a read-only share.
    fn openable(&self, flags: u32) -> io::Result<()> {
        let flags = flags.cast_signed();
        if flags & libc::O_ACCMODE == libc::O_RDONLY && flags & libc::O_TRUNC == 0 {
            return Ok(());
        }
        self.writable()
    }

    /// Refuses names that lead elsewhere. Linux resolves them itself, before it asks.
    fn inside(name: &CStr) -> io::Result<()> {
        let bytes = name.to_bytes();
        if matches!(bytes, b"" | b"." | b"..") || bytes.contains(&b'/') {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        Ok(())
    }

    /// Says of a file that the guest names from an earlier time that it is stale.
    fn known<T>(&self, context: &Context, inode: u64, answer: io::Result<T>) -> io::Result<T> {
        stale(answer, || self.inner.getattr(context, inode, None).is_ok())
    }

    fn told_entry(&self, context: &Context, answer: io::Result<Entry>) -> io::Result<Entry> {
        answer.inspect(|entry| self.told(context, entry.inode, entry.attr.st_size))
    }
}
