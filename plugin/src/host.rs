//! Owns what the files of a Linux host say about its KVM: who zaps the roots
//! of a VM when a memslot goes, whether the TDP MMU is in use, and how many
//! mapped areas a process may hold. Never opens `/dev/kvm`, never runs a
//! guest, never changes anything.
//!
//! All of it is for people and reports: kernels are patched and renamed, so
//! no decision of this library rests on it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::PathBuf;
use std::sync::OnceLock;

/// The worker's function. The kernel stores its address, so a compiler can
/// not inline it away.
const WORKER: &str = "tdp_mmu_zap_root_work";
/// The walk over invalidated roots. It is global, so its name survives.
const WALK: &str = "kvm_tdp_mmu_zap_invalidated_roots";
/// What every name of the TDP MMU's own interface begins with.
const TDP_PREFIX: &str = "kvm_tdp_mmu_";
/// A small file of /proc or /sys is read this far (bytes) and no further.
const SMALL_FILE: u64 = 64 << 10;
/// More symbols than any kernel has, in bytes of text.
const SYMBOL_BYTES: u64 = 256 << 20;

/// Which task tears down the page-table roots that a memslot delete or move
/// has invalidated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum ZapMode {
    /// The task that made the call, with its CPU affinity and its priority.
    Synchronous,
    /// A kernel worker on any CPU; the caller waits for it.
    Worker,
    /// This host does not tell.
    Unknown,
}

impl ZapMode {
    /// Reads this host anew. The symbol table is megabytes long:
    /// [`ZapReport::of_this_host`] reads it once per process.
    #[must_use]
    pub fn detect() -> ZapReport {
        Host::default().zap_report()
    }
}

/// A [`ZapMode`] and what it was concluded from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ZapReport {
    /// Who zaps.
    pub mode: ZapMode,
    /// The observation behind it, as one sentence without a full stop.
    pub evidence: String,
}

impl ZapReport {
    fn new(mode: ZapMode, evidence: impl Into<String>) -> Self {
        let evidence = evidence.into();
        Self { mode, evidence }
    }

    /// The report on this host, read on the first call and kept.
    ///
    /// A KVM module that is loaded or replaced later is not noticed.
    pub fn of_this_host() -> &'static Self {
        static REPORT: OnceLock<ZapReport> = OnceLock::new();
        REPORT.get_or_init(ZapMode::detect)
    }

    /// Concludes from a symbol table in the form of `/proc/kallsyms` alone,
    /// as if the TDP MMU were in use.
    ///
    /// Addresses are not looked at: an unprivileged reader gets zeroes.
    pub fn from_symbols(symbols: impl BufRead) -> Self {
        let seen = match SymbolsSeen::read(symbols) {
            Ok(seen) => seen,
            Err(err) => {
                return Self::new(
                    ZapMode::Unknown,
                    format!("cannot read the kernel's symbols: {err}"),
                );
            }
        };
        if let Some(home) = seen.worker {
            Self::new(ZapMode::Worker, format!("{home} has {WORKER}"))
        } else if let Some(home) = seen.walk {
            Self::new(
                ZapMode::Synchronous,
                format!("{home} has {WALK} and no {WORKER}"),
            )
        } else if seen.tdp_mmu {
            Self::new(
                ZapMode::Unknown,
                format!("the kernel has {TDP_PREFIX}* symbols but neither {WORKER} nor {WALK}"),
            )
        } else {
            Self::new(
                ZapMode::Unknown,
                format!("the kernel's symbols name no {TDP_PREFIX}*; KVM may not be loaded"),
            )
        }
    }
}

/// Where the two telling symbols were found.
#[derive(Debug, Default)]
struct SymbolsSeen {
    worker: Option<String>,
    walk: Option<String>,
    tdp_mmu: bool,
}

impl SymbolsSeen {
    fn read(symbols: impl BufRead) -> io::Result<Self> {
        let mut seen = Self::default();
        for line in symbols.take(SYMBOL_BYTES).split(b'\n') {
            let line = line?;
            // A cheap test first: a table has some 200 000 lines.
            if !line.windows(7).any(|part| part == b"tdp_mmu") {
                continue;
            }
            seen.note(&String::from_utf8_lossy(&line));
            if seen.worker.is_some() {
                break;
            }
        }
        Ok(seen)
    }

    /// Takes one line: `address type name[.suffix] [module]`.
    fn note(&mut self, line: &str) {
        let mut fields = line.split_ascii_whitespace().skip(2);
        let Some(symbol) = fields.next() else { return };
        let mut home = || match fields.next() {
            Some(module) => format!("module {}", module.trim_matches(['[', ']'])),
            None => "the kernel image".to_owned(),
        };
        // Clang's LTO and GCC's cloning append `.something`.
        let name = symbol.split_once('.').map_or(symbol, |(name, _)| name);
        self.tdp_mmu |= name.starts_with(TDP_PREFIX);
        if name == WORKER {
            self.worker = Some(home());
        } else if name == WALK {
            self.walk = Some(home());
        }
    }
}

/// Whether KVM keeps guest page tables in its TDP MMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum TdpMmu {
    /// It does, for VMs created from now on.
    On,
    /// It keeps them in shadow pages.
    Off,
    /// This host does not tell; KVM may not be loaded.
    Unknown,
}

/// A [`TdpMmu`] and what it was concluded from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct TdpReport {
    /// In use or not.
    pub state: TdpMmu,
    /// The observation behind it, as one sentence without a full stop.
    pub evidence: String,
}

impl TdpReport {
    fn new(state: TdpMmu, evidence: impl Into<String>) -> Self {
        let evidence = evidence.into();
        Self { state, evidence }
    }
}

/// The files of one host, below a root: `/`, or a copy of another host's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    root: PathBuf,
}

impl Default for Host {
    /// The host this process runs on.
    fn default() -> Self {
        Self::below("/")
    }
}

impl Host {
    /// The host whose `proc`, `sys` and `dev` stand in the directory `root`.
    pub fn below(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Where `path` (absolute, as the kernel's documentation spells it) is.
    #[must_use]
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// The text of a small file, without the white space around it.
    ///
    /// # Errors
    ///
    /// What opening and reading the file gives; `InvalidData` where it is
    /// not UTF-8.
    pub fn text(&self, path: &str) -> io::Result<String> {
        let mut text = String::new();
        File::open(self.path(path))?
            .take(SMALL_FILE)
            .read_to_string(&mut text)?;
        Ok(text.trim().to_owned())
    }

    /// The number a small file holds.
    ///
    /// # Errors
    ///
    /// Those of [`Host::text`], and `InvalidData` where the text is no
    /// number.
    pub fn number(&self, path: &str) -> io::Result<usize> {
        let text = self.text(path)?;
        text.parse().map_err(|err| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("cannot read a number from {path}, which says {text:?}: {err}"),
            )
        })
    }

    /// A module parameter of the yes-or-no kind.
    fn switch(&self, module: &str, parameter: &str) -> Option<bool> {
        let path = format!("/sys/module/{module}/parameters/{parameter}");
        match self.text(&path).ok()?.as_str() {
            "Y" | "y" | "1" => Some(true),
            "N" | "n" | "0" => Some(false),
            _ => None,
        }
    }

    /// Whether KVM uses its TDP MMU here.
    #[must_use]
    pub fn tdp_mmu(&self) -> TdpReport {
        // Older kernels leave tdp_mmu at Y where nested paging is off.
        for (module, parameter) in [("kvm_intel", "ept"), ("kvm_amd", "npt")] {
            if self.switch(module, parameter) == Some(false) {
                let evidence = format!("parameter {parameter} of {module} is off");
                return TdpReport::new(TdpMmu::Off, evidence);
            }
        }
        match self.switch("kvm", "tdp_mmu") {
            Some(true) => TdpReport::new(TdpMmu::On, "parameter tdp_mmu of kvm is on"),
            Some(false) => TdpReport::new(TdpMmu::Off, "parameter tdp_mmu of kvm is off"),
            None => TdpReport::new(TdpMmu::Unknown, "kvm has no readable parameter tdp_mmu"),
        }
    }

    /// Who zaps the roots of a VM when a memslot is deleted or moved.
    ///
    /// Without a TDP MMU there are no such roots: KVM zaps its shadow pages
    /// in the task that made the call, whatever functions it was built with.
    #[must_use]
    pub fn zap_report(&self) -> ZapReport {
        let tdp = self.tdp_mmu();
        if tdp.state == TdpMmu::Off {
            return ZapReport::new(
                ZapMode::Synchronous,
                format!(
                    "{}: no TDP roots, the caller zaps shadow pages itself",
                    tdp.evidence
                ),
            );
        }
        match File::open(self.path("/proc/kallsyms")) {
            Ok(file) => ZapReport::from_symbols(BufReader::with_capacity(1 << 16, file)),
            Err(err) => ZapReport::new(
                ZapMode::Unknown,
                format!("cannot open /proc/kallsyms: {err}"),
            ),
        }
    }

    /// How many mapped areas (VMAs) a process may hold.
    ///
    /// # Errors
    ///
    /// Those of [`Host::number`].
    pub fn max_map_count(&self) -> io::Result<usize> {
        self.number("/proc/sys/vm/max_map_count")
    }

    /// How many mapped areas (VMAs) the calling process holds, give or take
    /// what other threads map meanwhile.
    ///
    /// # Errors
    ///
    /// What opening and reading `/proc/self/maps` gives.
    pub fn mapped_areas(&self) -> io::Result<usize> {
        let maps = BufReader::new(File::open(self.path("/proc/self/maps"))?);
        maps.split(b'\n')
            .try_fold(0_usize, |areas, line| line.map(|_| areas.saturating_add(1)))
    }
}

/// How many mapped areas (VMAs) a process of this host may hold:
/// `vm.max_map_count`.
///
/// # Errors
///
/// Those of [`Host::number`].
pub fn max_map_count() -> io::Result<usize> {
    Host::default().max_map_count()
}

/// How many mapped areas (VMAs) this process holds: the lines of
/// `/proc/self/maps`.
///
/// # Errors
///
/// Those of [`Host::mapped_areas`].
pub fn mapped_areas() -> io::Result<usize> {
    Host::default().mapped_areas()
}

#[cfg(test)]
mod tests;
