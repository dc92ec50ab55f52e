//! Owns the QEMU process of one boot, its logs and its deadlines. Never
//! judges what the steps in the machine did.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::channel::{Channel, Event};
use crate::profile::Profile;

const POLL: Duration = Duration::from_millis(50);
/// How long a machine that is done may take to power off.
const POWER_OFF: Duration = Duration::from_secs(15);

/// How a boot ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The machine said that it was done.
    Done,
    /// It was stopped after this many seconds.
    Hung(u64),
    /// Its kernel panicked, with these words.
    Panicked(String),
    /// Its kernel panicked over a breakpoint that it had set and taken away again while it changed
    /// its own code. A processor cannot meet one (each waits for the others); an emulated one can,
    /// where another thread changes the code that it has translated.
    Breakpoint(String),
    /// It reset or powered off before it was done.
    Stopped,
    /// Whoever sits at the terminal has ended it.
    Left,
    /// QEMU itself died.
    Crashed(String),
}

impl Ending {
    /// What went wrong, if anything did.
    pub(crate) fn why(&self) -> Option<String> {
        Some(match self {
            Self::Done => return None,
            Self::Left => "ended from the keyboard, or by itself".to_owned(),
            Self::Hung(seconds) => format!("the machine hung ({seconds} s are over)"),
            Self::Panicked(words) => format!("its kernel panicked: {words}"),
            Self::Breakpoint(words) => format!("its kernel met a stale breakpoint: {words}"),
            Self::Stopped => "the machine reset or stopped by itself".to_owned(),
            Self::Crashed(words) => format!("QEMU crashed: {words}"),
        })
    }

    /// What the console is kept as, where the emulation may be what failed.
    pub(crate) fn keep_console_as(&self) -> Option<&'static str> {
        match self {
            Self::Hung(_) => Some("console-hung.log"),
            Self::Breakpoint(_) => Some("console-breakpoint.log"),
            Self::Crashed(_) => Some("console-crashed.log"),
            Self::Done | Self::Left | Self::Panicked(_) | Self::Stopped => None,
        }
    }
}

/// One emulated machine.
#[derive(Debug)]
pub(crate) struct Machine<'a> {
    pub(crate) profile: &'a Profile,
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
    /// Where the logs go.
    pub(crate) folder: &'a Path,
    pub(crate) token: &'a str,
    /// Whether the machine talks to this terminal. Nothing is hurried then.
    pub(crate) interactive: bool,
}

impl Machine<'_> {
    /// Boots, hands on what the machine tells, and says how it ended.
    pub(crate) fn run(&self, take: &mut dyn FnMut(Event) -> Result<()>) -> Result<Ending> {
        let channel = self.folder.join("channel.log");
        fs::write(&channel, "").with_context(|| format!("cannot write {}", channel.display()))?;
        let mut port = File::open(&channel)?;
        let mut child = self.start()?;
        let followed = self.follow(&mut child, &mut port, take);
        if child.try_wait()?.is_none() {
            child.kill()?;
            child.wait()?;
        }
        followed
    }

    /// Where the machine's console was written to.
    pub(crate) fn console(&self) -> PathBuf {
        self.folder.join("console.log")
    }

    fn follow(
        &self,
        child: &mut Child,
        port: &mut File,
        take: &mut dyn FnMut(Event) -> Result<()>,
    ) -> Result<Ending> {
        let mut start = Instant::now();
        let mut channel = Channel::new(self.token);
        let mut limit = Duration::from_secs(self.profile.boot_timeout_s);
        let mut done = None;
        loop {
            // Asked before the port is read, so that no last word is missed.
            let exited = child.try_wait()?;
            let mut bytes = Vec::new();
            port.read_to_end(&mut bytes)?;
            for event in channel.feed(&bytes) {
                match event {
                    Event::Done => done = Some(Instant::now()),
                    Event::Ready { .. } => {
                        start = Instant::now();
                        limit = Duration::from_secs(self.profile.timeout_s);
                    }
                    _ => {}
                }
                take(event)?;
            }
            let waited = done.is_some_and(|since| since.elapsed() > POWER_OFF);
            if waited || (done.is_some() && exited.is_some()) {
                return Ok(Ending::Done);
            }
            if let Some(status) = exited {
                take(channel.rest())?;
                return self.early_end(status);
            }
            if start.elapsed() > limit && !self.interactive {
                take(channel.rest())?;
                return Ok(self.panic().unwrap_or(Ending::Hung(limit.as_secs())));
            }
            sleep(POLL);
        }
    }

    fn start(&self) -> Result<Child> {
        let log = self.folder.join("qemu.log");
        let log = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let (stdin, stdout) = if self.interactive {
            (Stdio::inherit(), Stdio::inherit())
        } else {
            (Stdio::null(), Stdio::null())
        };
        // QEMU must not outlive the lab, however that ends.
        Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64"])
            .args(self.options())
            .stdin(stdin)
            .stdout(stdout)
            .stderr(log)
            .spawn()
            .context("cannot run setpriv, of the package util-linux")
    }

    fn options(&self) -> Vec<String> {
        let profile = self.profile;
        let file = |name: &str| {
            // A comma would end the value.
            let path = self.folder.join(name).display().to_string();
            path.replace(',', ",,")
        };
        // An oops is a panic, so that nothing goes on with a broken kernel.
        let cmdline = format!(
            "console=ttyS0 panic=-1 oops=panic quiet {}",
            profile.cmdline
        );
        let mut options: Vec<String> = ["-nodefaults", "-no-user-config", "-display", "none"]
            .map(str::to_owned)
            .into();
        options.push("-no-reboot".to_owned());
        for (option, value) in [
            ("-accel", "tcg,thread=multi".to_owned()),
            ("-cpu", profile.cpu.clone()),
            ("-smp", profile.smp.to_string()),
            ("-m", format!("{}M", profile.memory_mib)),
            ("-kernel", self.kernel.display().to_string()),
            ("-initrd", self.initramfs.display().to_string()),
            ("-append", cmdline.trim_end().to_owned()),
            (
                "-chardev",
                format!("file,id=console,path={}", file("console.log")),
            ),
            ("-serial", "chardev:console".to_owned()),
            (
                "-chardev",
                format!("file,id=channel,path={}", file("channel.log")),
            ),
            ("-serial", "chardev:channel".to_owned()),
        ] {
            options.extend([option.to_owned(), value]);
        }
        if self.interactive {
            let terminal = "stdio,id=terminal,mux=on,signal=off";
            for option in ["-chardev", terminal, "-serial", "chardev:terminal"] {
                options.push(option.to_owned());
            }
        }
        if let Some(machine) = &profile.machine {
            options.extend(["-machine".to_owned(), machine.clone()]);
        }
        for device in &profile.devices {
            options.extend(["-device".to_owned(), device.clone()]);
        }
        options
    }

    /// Why QEMU is gone although the machine was not done.
    fn early_end(&self, status: ExitStatus) -> Result<Ending> {
        if let Some(panic) = self.panic() {
            return Ok(panic);
        }
        if status.success() {
            return Ok(if self.interactive {
                Ending::Left
            } else {
                Ending::Stopped
            });
        }
        let log = fs::read_to_string(self.folder.join("qemu.log")).unwrap_or_default();
        let mut words = log.lines().filter(|line| !line.contains("warning: "));
        let last = words.next_back().unwrap_or("it said nothing").to_owned();
        let silent = fs::metadata(self.console()).map_or(true, |console| console.len() == 0);
        if silent && status.signal().is_none() {
            bail!("cannot start the machine (QEMU: {status}): {last}");
        }
        Ok(Ending::Crashed(format!("{status}: {last}")))
    }

    fn panic(&self) -> Option<Ending> {
        let console = fs::read(self.console()).ok()?;
        panic_in(&String::from_utf8_lossy(&console))
    }
}

/// The kernel's panic, if the console shows one.
fn panic_in(console: &str) -> Option<Ending> {
    let (before, words) = console.split_once("Kernel panic - not syncing: ")?;
    let words = words.lines().next().unwrap_or_default().trim().to_owned();
    // The first oops has the number 1.
    Some(if before.contains("int3: 0000 [#1]") {
        Ending::Breakpoint(words)
    } else {
        Ending::Panicked(words)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panic_is_found_in_the_console() {
        let console =
            "[ 1.0] ok\r\n[ 2.0] Kernel panic - not syncing: Fatal exception\r\n[ 2.1] CPU";
        let fatal = "Fatal exception".to_owned();
        assert_eq!(panic_in(console), Some(Ending::Panicked(fatal)));
        assert_eq!(panic_in("all is well"), None);
    }

    #[test]
    fn panic_over_a_breakpoint_is_told_from_one_that_a_test_has_made() {
        let panic = "Kernel panic - not syncing: Fatal exception in interrupt\r\n";
        let words = || "Fatal exception in interrupt".to_owned();
        let of = |oops: &str| panic_in(&format!("[ 1.0] {oops}\r\n[ 1.1] {panic}"));
        for oops in [
            "Oops: int3: 0000 [#1] PREEMPT SMP NOPTI",
            "int3: 0000 [#1] SMP",
        ] {
            assert_eq!(of(oops), Some(Ending::Breakpoint(words())), "{oops}");
        }
        for oops in ["Oops: 0002 [#1] SMP", "Oops: invalid opcode: 0000 [#1] SMP"] {
            assert_eq!(of(oops), Some(Ending::Panicked(words())), "{oops}");
        }
    }
}
