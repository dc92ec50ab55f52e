//! Owns the tracing of KVM's zap work: a tracing instance of our own, one probe, and histograms
//! that the kernel fills by itself, so that no event is lost. Never leaves any of it behind.

use std::fs;
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::hist::Hist;

/// Where tracefs may be mounted.
const PLACES: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
/// Each change of a page-table entry, by the task that makes it, its CPU and the entry's level.
/// Bit 11 is what KVM marks a present one with (Linux: `arch/x86/kvm/mmu/spte.h`, 6.1 to 6.18).
const ENTRIES: Event = Event {
    path: "kvmmmu/kvm_tdp_mmu_spte_changed",
    trigger: "hist:keys=common_pid.execname,common_cpu,level \
              if (old_spte & 0x800) && !(new_spte & 0x800)",
};
const WHOLE_VM: Event = Event {
    path: "kvmmmu/kvm_mmu_zap_all_fast",
    trigger: "hist:keys=common_pid.execname,common_cpu",
};
/// The walk over one root; with `shared` it is that of a memslot's end, not of the VM's. The
/// arguments are the second to the fourth (Linux: `arch/x86/kvm/mmu/tdp_mmu.c`
/// `__tdp_mmu_zap_root`, 6.1 to 6.12).
const ROOT: &str = "__tdp_mmu_zap_root root=%si:x64 level=%cx:s32 shared=%dx:u8";
const ROOT_TRIGGER: &str = "hist:keys=root,level if shared == 1";
/// The least level that only roots have.
const ROOT_LEVEL: u64 = 4;

#[derive(Clone, Copy, Debug)]
struct Event {
    path: &'static str,
    trigger: &'static str,
}

/// What happened up to one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) entries: Hist,
    pub(super) whole_vm: Hist,
    /// `None` where the kernel's walk can not be probed.
    roots: Option<Hist>,
}

impl Seen {
    pub(super) fn since(&self, before: &Self) -> Self {
        let roots = self.roots.as_ref().zip(before.roots.as_ref());
        Self {
            entries: self.entries.since(&before.entries),
            whole_vm: self.whole_vm.since(&before.whole_vm),
            roots: roots.map(|(after, before)| after.since(before)),
        }
    }

    /// How many roots were walked, and how many of the walks were of one that had been walked
    /// before. It holds while no root is freed: an address can come back.
    pub(super) fn roots(&self) -> Option<(u64, u64)> {
        let hist = self.roots.as_ref()?;
        let walks = hist
            .rows()
            .filter(|(key, _)| key.value("level").is_some_and(|level| level >= ROOT_LEVEL))
            .map(|(_, hits)| hits);
        Some(walks.fold((0, 0), |(roots, twice), hits| {
            (
                roots.saturating_add(1),
                twice.saturating_add(hits.saturating_sub(1)),
            )
        }))
    }

    /// Events that the kernel had no room to count.
    pub(super) fn dropped(&self) -> u64 {
        let roots = self.roots.as_ref().map_or(0, |hist| hist.dropped);
        self.entries
            .dropped
            .saturating_add(self.whole_vm.dropped)
            .saturating_add(roots)
    }
}

/// The tracing that is set up; dropping it takes everything back.
#[derive(Debug)]
pub(super) struct Trace {
    top: PathBuf,
    /// The instance, or `top` where the kernel gives none.
    place: PathBuf,
    /// The probe's event, where there is one.
    root: Option<String>,
    /// What undoes the steps, in the order they were made in.
    undo: Vec<Undo>,
}

#[derive(Debug)]
enum Undo {
    /// Append this to the file.
    Append(PathBuf, String),
    RemoveInstance(PathBuf),
}

impl Trace {
    /// Sets the tracing up.
    pub(super) fn open() -> anyhow::Result<Self> {
        if !rustix::process::geteuid().is_root() {
            bail!("cannot trace KVM: only root may; run the command with sudo");
        }
        let Some(top) = PLACES
            .iter()
            .map(Path::new)
            .find(|place| place.join("events").is_dir())
        else {
            bail!(
                "cannot trace KVM: no tracefs at {}; mount it with `mount -t tracefs tracefs {}`",
                PLACES.join(" or "),
                PLACES[0]
            );
        };
        let mut trace = Self {
            top: top.to_owned(),
            place: top.to_owned(),
            root: None,
            undo: Vec::new(),
        };
        // A failure from here on drops `trace`, which undoes what was done.
        trace.take_instance();
        trace.leave_names_alone()?;
        for event in [ENTRIES, WHOLE_VM] {
            trace.trigger(event.path, event.trigger).with_context(|| {
                format!(
                    "cannot count the event {}; this needs a KVM with a TDP MMU and a kernel with \
                     CONFIG_HIST_TRIGGERS",
                    event.path
                )
            })?;
        }
        if let Err(error) = trace.probe_roots() {
            log::warn!("cannot count roots: the kernel's walk can not be probed: {error:#}");
        }
        Ok(trace)
    }

    /// What happened since the tracing was set up.
    pub(super) fn seen(&self) -> anyhow::Result<Seen> {
        let hist = |path: &str| {
            let file = self.place.join("events").join(path).join("hist");
            let text =
                fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            anyhow::Ok(Hist::parse(&String::from_utf8_lossy(&text)))
        };
        Ok(Seen {
            entries: hist(ENTRIES.path)?,
            whole_vm: hist(WHOLE_VM.path)?,
            roots: self.root.as_deref().map(hist).transpose()?,
        })
    }

    /// Somebody else's tracing is not disturbed in an instance.
    fn take_instance(&mut self) {
        let place = self
            .top
            .join("instances")
            .join(format!("vm-remap-{}", std::process::id()));
        match fs::create_dir(&place) {
            Ok(()) => {
                self.place.clone_from(&place);
                self.undo.push(Undo::RemoveInstance(place));
            }
            Err(error) => log::debug!("tracing without an instance: {error}"),
        }
    }

    /// With `record-cmd`, the first event also hooks the scheduler, to remember the names of
    /// tasks. Histograms have them anyway.
    fn leave_names_alone(&mut self) -> anyhow::Result<()> {
        let file = self.place.join("trace_options");
        let options =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        if options.lines().any(|option| option == "record-cmd") {
            append(&file, "norecord-cmd").context("cannot keep tracing off the scheduler")?;
            self.undo.push(Undo::Append(file, "record-cmd".to_owned()));
        }
        Ok(())
    }

    fn probe_roots(&mut self) -> io::Result<()> {
        let name = format!("vm_remap_{}/root", std::process::id());
        let probes = self.top.join("kprobe_events");
        append(&probes, &format!("p:{name} {ROOT}"))?;
        self.undo.push(Undo::Append(probes, format!("-:{name}")));
        self.trigger(&name, ROOT_TRIGGER)?;
        self.root = Some(name);
        Ok(())
    }

    fn trigger(&mut self, event: &str, trigger: &str) -> io::Result<()> {
        let file = self.place.join("events").join(event).join("trigger");
        append(&file, trigger)?;
        self.undo.push(Undo::Append(file, format!("!{trigger}")));
        Ok(())
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        while let Some(step) = self.undo.pop() {
            let (what, undone) = match &step {
                Undo::Append(file, text) => (file, append(file, text)),
                Undo::RemoveInstance(place) => (place, fs::remove_dir(place)),
            };
            if let Err(error) = undone {
                log::error!("cannot undo the tracing at {}: {error}", what.display());
            }
        }
    }
}

/// One write of the whole line: tracefs takes each write for itself.
fn append(file: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().append(true).open(file)?;
    let written = file.write(text.as_bytes())?;
    if written == text.len() {
        return Ok(());
    }
    Err(ErrorKind::WriteZero.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(roots: &str) -> Seen {
        Seen {
            roots: Some(Hist::parse(roots)),
            ..Seen::default()
        }
    }

    #[test]
    fn roots_are_counted_by_address_and_at_their_own_level() {
        let once = "{ root: 10, level: 3 } hitcount: 2\n{ root: 10, level: 4 } hitcount: 1\n\
                    { root: 20, level: 5 } hitcount: 1\n";
        assert_eq!(seen(once).roots(), Some((2, 0)));
        let twice = "{ root: 10, level: 4 } hitcount: 3\n";
        assert_eq!(seen(twice).roots(), Some((1, 2)));
        assert_eq!(seen(twice).since(&seen(once)).roots(), Some((1, 1)));
        assert_eq!(Seen::default().roots(), None);
    }
}
