//! Owns what a guest is asked to be: a plain struct, made by whoever reads a command line. Never
//! checks a figure that only the machine can check.

use std::path::PathBuf;

use vm_remap::BackendKind;

/// A guest, as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The kernel: a bzImage, or an ELF file.
    pub kernel: PathBuf,
    /// The archive that the kernel unpacks into its first file system.
    pub initramfs: Option<PathBuf>,
    /// The kernel's command line; [`DEFAULT_COMMAND_LINE`] if there is none.
    pub cmdline: Option<String>,
    /// How many CPUs the guest has.
    pub cpus: u8,
    /// The guest's memory.
    pub memory: MemorySpec,
}

/// What the kernel is told where nothing was asked for.
pub const DEFAULT_COMMAND_LINE: &str = "console=ttyS0";

/// The guest's memory, and how windows are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySpec {
    /// The size of RAM in bytes.
    pub size: u64,
    /// Whether RAM comes in huge pages of the host.
    pub hugepages: bool,
    /// The size of such a page in bytes; the host's own choice if not set.
    pub hugepage_size: Option<u64>,
    /// Whether the host should look for transparent huge pages.
    pub thp: bool,
    /// Whether the host may merge equal pages.
    pub mergeable: bool,
    /// Whether all of RAM is made present before the guest starts.
    pub prefault: bool,
    /// How windows are made.
    pub window: WindowSpec,
}

impl MemorySpec {
    /// `size` bytes of RAM, and all else as it comes.
    #[must_use]
    pub fn new(size: u64) -> Self {
        Self {
            size,
            hugepages: false,
            hugepage_size: None,
            thp: false,
            mergeable: false,
            prefault: false,
            window: WindowSpec::default(),
        }
    }
}

/// How windows are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WindowSpec {
    /// The backend.
    pub backend: BackendKind,
    /// The size of a segment in bytes; the library's own choice if not set.
    pub segment: Option<u64>,
}
