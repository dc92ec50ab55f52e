//! Owns what a guest is started with. Never starts one, and never reads a command line.

use std::path::PathBuf;

use vm_remap::spec::MemorySpec;

/// What the kernel is told where nothing was written.
pub const DEFAULT_COMMAND_LINE: &str = "console=ttyS0";

/// Everything that a guest is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initial file system, if there is one.
    pub initramfs: Option<PathBuf>,
    /// The kernel's command line, if one was written; else it is [`DEFAULT_COMMAND_LINE`].
    pub cmdline: Option<String>,
    /// How many vCPUs, at least 1.
    pub cpus: u8,
    /// The memory, and how windows are opened. Nothing is left in it that this VMM does not do.
    pub memory: MemorySpec,
    /// Devices of other processes.
    pub vhost_user: Vec<VhostUserSpec>,
    /// Shared directories; no two have the same tag.
    pub fs: Vec<FsSpec>,
}

/// A device that another process has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VhostUserSpec {
    /// The socket on which that process listens.
    pub socket: PathBuf,
    /// The device's number in virtio's list of them.
    pub device: u32,
    /// What is known of its queues.
    pub queues: Queues,
    /// Its shared memory.
    pub shmem: Shmem,
}

/// What is known of a device's queues. Sizes are powers of two, from 1 to 32768.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Queues {
    /// As many as the device has, none with more entries than this.
    AtMost(u16),
    /// One for each entry, with so many entries.
    Sizes(Vec<u16>),
}

/// Which shared memory of a device the guest sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shmem {
    /// What the device says it has.
    #[default]
    Device,
    /// None.
    Off,
    /// One region, number 0, of so many bytes: a multiple of 4 KiB, above 0. For a device that has
    /// one and does not say so.
    Size(u64),
}

/// A shared directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FsSpec {
    /// The name by which the guest mounts it: 1 to 36 bytes, none of them 0.
    pub tag: String,
    /// Who serves it.
    pub server: FsServer,
    /// Whether the guest may map files into a window. Its size is `window=` of the memory.
    pub dax: bool,
    /// How many request queues, at least 1.
    pub queues: u16,
    /// Entries of each queue, a power of two from 1 to 32768.
    pub queue_size: u16,
}

/// Who serves a shared directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FsServer {
    /// A process that listens on this socket already.
    Socket(PathBuf),
    /// The project's own daemon, which is to be started.
    Daemon(FsShare),
}

/// What the project's daemon is to serve, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FsShare {
    /// The directory.
    pub source: PathBuf,
    /// What the guest may keep of files.
    pub cache: FsCache,
}

/// What a guest may keep of the contents of files, of their names and of their attributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FsCache {
    /// Nothing.
    Never,
    /// Contents until it opens the file again, the rest for a second.
    #[default]
    Auto,
    /// Everything, for a day: for a directory that nobody else changes.
    Always,
}
