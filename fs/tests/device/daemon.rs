//! Owns a running daemon and the directory that it shares. Never speaks vhost-user.

use std::fs;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Long enough for a machine that does other things too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

const NOBODY: u32 = 65534;

pub(crate) const SANDBOXES: [&str; 3] = ["namespace", "landlock", "none"];

/// The daemon, killed when this goes.
pub(crate) struct Daemon {
    child: Child,
    home: TempDir,
}

impl Daemon {
    /// Starts a daemon that shares an empty directory, and waits until it listens.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), arguments).unwrap()
    }

    /// The same, with the directory of an earlier one; or what the daemon said when it ended.
    pub(crate) fn start_in(home: TempDir, arguments: &[&str]) -> Result<Self, String> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vm-remap-fs"));
        Self::start_by(home, command.args(arguments))
    }

    /// The same, as a user without rights.
    pub(crate) fn start_as_nobody(arguments: &[&str]) -> Result<Self, String> {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("share")).unwrap();
        for path in [home.path(), &home.path().join("share")] {
            std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY))
                .map_err(|error| error.to_string())?;
        }
        // The build directory need not be open to everybody.
        let binary = home.path().join("vm-remap-fs");
        fs::copy(env!("CARGO_BIN_EXE_vm-remap-fs"), &binary).unwrap();
        let mut command = Command::new(binary);
        Self::start_by(home, command.args(arguments).uid(NOBODY).gid(NOBODY))
    }

    /// The same, in a mount namespace in which a shell has done `script` before; the shared directory
    /// is its `$0`.
    pub(crate) fn start_after(script: &str, arguments: &[&str]) -> Result<Self, String> {
        let home = tempfile::tempdir().unwrap();
        let share = home.path().join("share");
        fs::create_dir(&share).unwrap();
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-ec", &format!("{script}; exec \"$@\"")])
            .arg(share)
            .arg(env!("CARGO_BIN_EXE_vm-remap-fs"))
            .args(arguments);
        Self::start_by(home, &mut command)
    }

    fn start_by(home: TempDir, command: &mut Command) -> Result<Self, String> {
        fs::create_dir_all(home.path().join("share")).unwrap();
        let socket = home.path().join("fs.sock");
        let log = fs::File::create(home.path().join("log")).unwrap();
        command
            .args(["--tag", "test", "--window", "16M"])
            .arg("--source")
            .arg(home.path().join("share"))
            .arg("--socket")
            .arg(&socket)
            .stderr(Stdio::from(log));
        let child = spawn(command);
        let mut daemon = Self { child, home };
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if daemon.log().contains("waiting for a frontend") {
                return Ok(daemon);
            }
            if daemon.child.try_wait().unwrap().is_some() {
                return Err(daemon.log());
            }
            thread::sleep(Duration::from_millis(5));
        }
        daemon.child.kill().unwrap();
        Err(format!("it does not listen: {}", daemon.log()))
    }

    /// A daemon in each sandbox that this host has.
    pub(crate) fn in_each_sandbox(test: &str, mut run: impl FnMut(Self)) {
        for sandbox in SANDBOXES {
            match Self::start_in(tempfile::tempdir().unwrap(), &["--sandbox", sandbox]) {
                Ok(daemon) => run(daemon),
                Err(reason) => skip(test, &format!("no {sandbox}: {}", reason.trim())),
            }
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.home.path().join("fs.sock")
    }

    /// A path in the shared directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.home.path().join("share").join(name)
    }

    /// A path beside the shared directory.
    pub(crate) fn outside(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub(crate) fn log(&self) -> String {
        let mut text = String::new();
        let mut log = fs::File::open(self.home.path().join("log")).unwrap();
        log.read_to_string(&mut text).unwrap();
        text
    }

    pub(crate) fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            thread::sleep(Duration::from_millis(5));
        }
        panic!("the daemon does not end: {}", self.log());
    }

    /// Kills it, as if it had crashed, and keeps its directory.
    pub(crate) fn kill(mut self) -> TempDir {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::mem::replace(&mut self.home, tempfile::tempdir().unwrap())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
    }
}

/// Starts a program, also one that was just copied: a child that another test started in that very
/// moment may have it open for writing for a little longer.
fn spawn(command: &mut Command) -> Child {
    loop {
        match command.spawn() {
            Err(error) if error.raw_os_error() == Some(libc::ETXTBSY) => thread::yield_now(),
            spawned => return spawned.unwrap(),
        }
    }
}

/// Says past the test harness that something was not tested.
pub(crate) fn skip(test: &str, reason: &str) {
    use std::io::Write as _;
    let line = reason.lines().next().unwrap_or_default();
    let mut past_the_harness = std::io::stderr();
    writeln!(past_the_harness, "SKIP {test}: {line}").unwrap();
}
