//! Owns what can be written about a guest's memory, in cloud-hypervisor's words and ours. Never
//! judges what a VMM supports.

use std::fmt;
use std::str::FromStr;

use super::error::SpecError;
use super::syntax::{Field, fields, quoted};
use super::values::{parse_size, parse_toggle, size_text, toggle_text};
use super::window::WindowSpec;

/// How memory is to be plugged in while the guest runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HotplugMethod {
    /// `acpi`: as memory modules that ACPI announces.
    #[default]
    Acpi,
    /// `virtio-mem`: through a virtio-mem device.
    VirtioMem,
}

impl fmt::Display for HotplugMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Acpi => "acpi",
            Self::VirtioMem => "virtio-mem",
        })
    }
}

impl FromStr for HotplugMethod {
    type Err = SpecError;

    fn from_str(word: &str) -> Result<Self, SpecError> {
        let all = [Self::Acpi, Self::VirtioMem];
        let is = |method: &Self| method.to_string().eq_ignore_ascii_case(word);
        all.into_iter()
            .find(is)
            .ok_or_else(|| SpecError::value("hotplug_method", word, "there are acpi, virtio-mem"))
    }
}

/// What an operator wrote about a guest's memory: cloud-hypervisor's `--memory`, and what
/// [`WindowSpec`] adds. Which of it a VMM can do, the VMM says.
///
/// ```
/// use vm_remap::BackendKind;
/// use vm_remap::spec::MemorySpec;
///
/// let memory: MemorySpec = "size=4G,shared=on,backend=fixed".parse()?;
/// assert_eq!(memory.size, 4 << 30);
/// assert_eq!(memory.window.backend(), Some(BackendKind::Fixed));
/// assert_eq!(memory.to_string(), "size=4G,shared=on,backend=fixed");
/// # Ok::<(), vm_remap::spec::SpecError>(())
/// ```
///
/// The keys and the defaults are those of cloud-hypervisor; unlike there, a key that comes twice
/// is refused. Sizes are in bytes; as text they can have `K`, `M` or `G` behind them (binary).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemorySpec {
    /// How much memory there is; 512 MiB if not written.
    pub size: u64,
    /// A file to lie behind it. Cloud-hypervisor reads the key and makes nothing of it.
    pub file: Option<String>,
    /// Whether other processes can map it too.
    pub shared: bool,
    /// Whether it comes from hugetlbfs.
    pub hugepages: bool,
    /// The size of a page there, if one was written.
    pub hugepage_size: Option<u64>,
    /// Whether all of it is populated before the guest starts.
    pub prefault: bool,
    /// Whether the host reserves swap for all of it.
    pub reserve: bool,
    /// Whether the host may merge pages of equal content.
    pub mergeable: bool,
    /// Whether the host may use transparent huge pages; on if not written.
    pub thp: bool,
    /// How memory is plugged in later.
    pub hotplug_method: HotplugMethod,
    /// How much can be plugged in later, if that was written.
    pub hotplug_size: Option<u64>,
    /// How much of that is there from the start, if that was written.
    pub hotplugged_size: Option<u64>,
    /// What was written about windows.
    pub window: WindowSpec,
}

impl Default for MemorySpec {
    fn default() -> Self {
        Self {
            size: 512 << 20,
            file: None,
            shared: false,
            hugepages: false,
            hugepage_size: None,
            prefault: false,
            reserve: false,
            mergeable: false,
            thp: true,
            hotplug_method: HotplugMethod::Acpi,
            hotplug_size: None,
            hotplugged_size: None,
            window: WindowSpec::default(),
        }
    }
}

impl MemorySpec {
    /// Every key: cloud-hypervisor's, then those of [`WindowSpec`].
    pub const KEYS: [&'static str; 17] = [
        "size",
        "file",
        "shared",
        "hugepages",
        "hugepage_size",
        "prefault",
        "reserve",
        "mergeable",
        "thp",
        "hotplug_method",
        "hotplug_size",
        "hotplugged_size",
        "backend",
        "window",
        "segment",
        "hole",
        "zap",
    ];

    fn take(&mut self, Field { key, value }: &Field<'_>) -> Result<(), SpecError> {
        let size = || parse_size(key, value);
        let toggle = || parse_toggle(key, value);
        match *key {
            "size" => self.size = size()?,
            "file" => self.file = Some(value.clone()),
            "shared" => self.shared = toggle()?,
            "hugepages" => self.hugepages = toggle()?,
            "hugepage_size" => self.hugepage_size = Some(size()?),
            "prefault" => self.prefault = toggle()?,
            "reserve" => self.reserve = toggle()?,
            "mergeable" => self.mergeable = toggle()?,
            "thp" => self.thp = toggle()?,
            "hotplug_method" => self.hotplug_method = value.parse()?,
            "hotplug_size" => self.hotplug_size = Some(size()?),
            "hotplugged_size" => self.hotplugged_size = Some(size()?),
            _ => {
                self.window.set(key, value)?;
            }
        }
        Ok(())
    }

    /// The values that differ from the default, with their keys.
    fn written(&self) -> Vec<(&'static str, String)> {
        let usual = Self::default();
        let differs = |key, is: bool, was: bool| (is != was).then(|| (key, toggle_text(is).into()));
        let size = |key, bytes: Option<u64>| bytes.map(|bytes| (key, size_text(bytes)));
        let method = self.hotplug_method;
        let other_method = method != usual.hotplug_method;
        let values = [
            size("size", Some(self.size)),
            self.file.as_deref().map(|file| ("file", quoted(file))),
            differs("shared", self.shared, usual.shared),
            differs("hugepages", self.hugepages, usual.hugepages),
            size("hugepage_size", self.hugepage_size),
            differs("prefault", self.prefault, usual.prefault),
            differs("reserve", self.reserve, usual.reserve),
            differs("mergeable", self.mergeable, usual.mergeable),
            differs("thp", self.thp, usual.thp),
            other_method.then(|| ("hotplug_method", method.to_string())),
            size("hotplug_size", self.hotplug_size),
            size("hotplugged_size", self.hotplugged_size),
        ];
        values.into_iter().flatten().collect()
    }
}

impl FromStr for MemorySpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let mut spec = Self::default();
        for field in fields(text, &Self::KEYS)? {
            spec.take(&field)?;
        }
        Ok(spec)
    }
}

/// The size, and what differs from the default; reading it gives the same specification.
impl fmt::Display for MemorySpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        for (key, value) in self.written() {
            write!(f, "{comma}{key}={value}")?;
            comma = ",";
        }
        if self.window.is_empty() {
            return Ok(());
        }
        write!(f, ",{}", self.window)
    }
}
