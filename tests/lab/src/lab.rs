//! Owns one run: what is prepared once, and the boot of each profile.

use std::fs::{self, File, TryLockError};
use std::io::{IsTerminal, Write, stdin, stdout};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};

use crate::binaries::{self, Binary};
use crate::channel::Event;
use crate::guest;
use crate::initramfs::{Initramfs, Settings};
use crate::machine::{Ending, Machine};
use crate::modules::{Module, Modules};
use crate::packages::{Package, Store, ensure_tool};
use crate::profile::{self, Profile, Step, Steps};
use crate::progress;
use crate::results::{COMMAND, Results};
use crate::tally::Tally;

/// A command is stopped this long before its machine is taken to hang.
const MARGIN_S: u64 = 30;
/// How often a machine is booted at the most.
const TRIES: u32 = 3;

/// What all profiles share.
#[derive(Debug)]
pub(crate) struct Lab {
    /// This folder of the source tree.
    source: PathBuf,
    /// Where everything is written.
    folder: PathBuf,
    store: Store,
    busybox: PathBuf,
    binaries: Vec<Binary>,
    steps: Steps,
    /// What to run instead of the steps.
    command: Vec<String>,
    /// How often the emulation failed and a machine was tried once more.
    pub(crate) retries: u32,
}

/// What one profile's run came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) tally: Tally,
    /// The exit status of the command, if one was given and it ended.
    pub(crate) status: Option<i32>,
}

/// Sets a machine that the emulation let down to one thread, and keeps its console.
fn once_more(machine: &Machine<'_>, what: &str, keep_as: &str) -> Result<()> {
    let console = machine.console();
    let kept = console.with_file_name(keep_as);
    fs::rename(&console, &kept)?;
    let (name, kept) = (&machine.profile.name, kept.display());
    progress::line(&format!(
        "{name}: {what}; the emulation may be at fault: trying again; its console is kept in {kept}"
    ));
    Ok(())
}

impl Lab {
    /// Builds and fetches what every profile needs.
    pub(crate) fn prepare(source: &Path, command: Vec<String>) -> Result<Self> {
        let root = source
            .ancestors()
            .nth(2)
            .context("cannot find the workspace above the lab")?;
        let folder = root.join("target/lab");
        ensure_tool("qemu-system-x86_64", "qemu-system-x86")?;
        ensure_tool("setpriv", "util-linux")?;
        let store = Store::open(folder.join("packages"))?;
        let busybox = store.newest("busybox-static")?.root.join("bin/busybox");
        let steps = profile::read_steps(source)?;
        let binaries = binaries::build(root, &folder.join("build"), &steps)?;
        Ok(Self {
            source: source.to_owned(),
            folder,
            store,
            busybox,
            binaries,
            steps,
            command,
            retries: 0,
        })
    }

    /// Boots `profile` and runs the steps or the command in it.
    pub(crate) fn run(&mut self, profile: &Profile) -> Result<Outcome> {
        let name = &profile.name;
        let results = self.folder.join("results");
        let folder = results.join(name);
        fs::create_dir_all(&results)
            .with_context(|| format!("cannot create {}", results.display()))?;
        let lock = lock(&results.join(format!("{name}.lock")), name)?;
        if folder.exists() {
            fs::remove_dir_all(&folder)
                .with_context(|| format!("cannot empty {}", folder.display()))?;
        }
        fs::create_dir(&folder).with_context(|| format!("cannot create {}", folder.display()))?;

        let package = self.store.newest(&profile.package)?;
        let release = package.name.trim_start_matches("linux-image-").to_owned();
        let all = self.modules(profile, &package, &release)?;
        let guest = guest::archive(&self.busybox, &all)?;
        let modules = all.in_order(&profile.modules)?;
        let kernel = package.root.join(format!("boot/vmlinuz-{release}"));
        let token = token();
        let steps = self.plan(profile);
        let interactive = !self.command.is_empty() && stdin().is_terminal();
        let initramfs = folder.join("initramfs.cpio");
        let mut archive = self.archive(profile, &token, modules, &steps, interactive)?;
        archive.guest(&kernel, &guest)?;
        archive.write(&initramfs)?;
        let machine = Machine {
            profile,
            kernel,
            initramfs,
            folder: &folder,
            token: &token,
            interactive,
        };
        progress::line(&format!("{name}: booting {release} ({})", package.version));
        let outcome = self.boot(&machine, &steps);
        // Large, and made anew by each run.
        fs::remove_file(&machine.initramfs)?;
        lock.unlock()?;
        outcome
    }

    /// Boots once, or up to [`TRIES`] times where the emulation may be what failed.
    fn boot(&mut self, machine: &Machine<'_>, steps: &[Step]) -> Result<Outcome> {
        let name = &machine.profile.name;
        let mut tries = 1_u32;
        loop {
            let mut results = Results::new(name, machine.folder, steps.to_vec());
            let start = Instant::now();
            let live = !self.command.is_empty() && !machine.interactive;
            let ending = machine.run(&mut |event| {
                hear(name, start, live, &event)?;
                results.take(event)
            })?;
            if let Some(why) = ending.why() {
                // What is not the emulation's fault comes again.
                if let Some(keep_as) = ending.keep_console_as().filter(|_| tries < TRIES) {
                    tries = tries.saturating_add(1);
                    self.retries = self.retries.saturating_add(1);
                    let what = format!("{why} (in {})", results.current());
                    once_more(machine, &what, keep_as)?;
                    continue;
                }
                if ending == Ending::Left {
                    progress::line(&format!("{name}: {why}"));
                    return Ok(Outcome {
                        tally: results.tally,
                        status: None,
                    });
                }
                let console = machine.console();
                progress::line(&format!(
                    "{name}: {why}; its console: {}",
                    console.display()
                ));
                results.abandon(&why)?;
                results.status = None;
            }
            if self.command.is_empty() {
                let folder = machine.folder.display();
                progress::line(&format!("{name}: {}; results: {folder}", results.tally));
            }
            return Ok(Outcome {
                tally: results.tally,
                status: results.status,
            });
        }
    }

    /// The steps of a run, as data.
    fn plan(&self, profile: &Profile) -> Vec<Step> {
        if !self.command.is_empty() {
            return vec![Step {
                name: COMMAND.to_owned(),
                command: self.command.clone(),
                stdout: None,
                timeout_s: profile.timeout_s.saturating_sub(MARGIN_S).max(1),
                is_test: false,
            }];
        }
        let tests = self
            .binaries
            .iter()
            .filter(|binary| binary.is_test && !self.steps.deny_tests.contains(&binary.name));
        tests
            .map(|binary| Step {
                name: binary.name.clone(),
                command: vec![binary.name.clone()],
                stdout: None,
                timeout_s: self.steps.test_timeout_s,
                is_test: true,
            })
            .chain(self.steps.commands.iter().cloned())
            .filter(|step| profile.only.is_empty() || profile.only.contains(&step.name))
            .collect()
    }

    fn archive(
        &self,
        profile: &Profile,
        token: &str,
        modules: Vec<Module>,
        steps: &[Step],
        interactive: bool,
    ) -> Result<Initramfs> {
        let settings = Settings {
            token,
            profile: &profile.name,
            hugepages: profile.hugepages,
        };
        let mut archive = Initramfs::new(&self.busybox, &settings)?;
        archive.modules(modules);
        for binary in &self.binaries {
            archive.binary(binary)?;
        }
        if interactive {
            archive.talk(&self.command);
        } else {
            archive.steps(steps);
        }
        Ok(archive)
    }

    fn modules(&self, profile: &Profile, package: &Package, release: &str) -> Result<Modules> {
        let folder = package.root.join("lib/modules").join(release);
        let mut modules = Modules::below(&folder, self.busybox.clone())?;
        if let Some(variant) = &profile.variant {
            let built = self.variant(variant, package, release)?;
            modules.replace(built.join("kvm.ko"))?;
            modules.replace(built.join("kvm-amd.ko"))?;
        }
        Ok(modules)
    }

    /// Has the KVM of `variant` built, and returns where it lies.
    fn variant(&self, variant: &str, package: &Package, release: &str) -> Result<PathBuf> {
        let builder = self.source.join("kvm-variant/build");
        ensure!(
            builder.is_file(),
            "cannot build the KVM variant {variant}: {} is missing",
            builder.display()
        );
        let folder = self.folder.join("variants").join(variant).join(release);
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        progress::line(&format!(
            "preparing the KVM variant {variant} for {release}"
        ));
        let status = Command::new(&builder)
            .arg(variant)
            .arg(&folder)
            .env("LAB_KERNEL_RELEASE", release)
            .env("LAB_KERNEL_VERSION", &package.version)
            .status()
            .with_context(|| format!("cannot run {}", builder.display()))?;
        ensure!(
            status.success(),
            "cannot build the KVM variant {variant} for {release} ({status}): {} says why above",
            builder.display()
        );
        Ok(folder)
    }
}

/// Tells people what the machine told, and shows a command's output.
fn hear(name: &str, start: Instant, live: bool, event: &Event) -> Result<()> {
    match event {
        Event::Ready { release, tdp_mmu } => progress::line(&format!(
            "{name}: {release} is up after {:.1} s, tdp_mmu={tdp_mmu}",
            start.elapsed().as_secs_f64()
        )),
        Event::Begin(step) if !live => progress::line(&format!("{name}: {step} ...")),
        Event::Output(bytes) if live => {
            let mut out = stdout().lock();
            out.write_all(bytes)?;
            out.flush()?;
        }
        _ => {}
    }
    Ok(())
}

/// Keeps a second run from using the same folder.
fn lock(path: &Path, name: &str) -> Result<File> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            bail!("cannot run {name}: another run of it is under way; wait for its end")
        }
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

/// A word that no output is likely to hold.
fn token() -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos());
    format!("lab{:x}x{now:x}", std::process::id())
}
