//! Owns the project's own daemon of a share: it is started, started again, and waited for. Never
//! speaks to it.

use std::io;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use log::warn;
use vm_remap::spec::{WindowSpec, size_text};
use vm_remap_fs::{CachePolicyOption, Options, Sandbox};

use super::vhost_user::StartDaemon;
use crate::run::launch::{FsCache, FsShare, FsSpec};

/// This program, also where its file has been replaced since.
const PROGRAM: &str = "/proc/self/exe";

/// The window of a daemon where nobody says how large it is, in bytes.
const USUAL_WINDOW: u64 = 1 << 30;

/// The daemon's windows are a multiple of this, in bytes.
const GRANULE: u64 = 2 << 20;

/// From one start to the next at the least, doubled for each that does not stay, up to the longest:
/// one that cannot serve is to keep neither the host busy nor the log growing.
const BETWEEN: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

/// One that has lived for so long has stayed.
const STAYED: Duration = Duration::from_secs(60);

/// How long a daemon whose connection has ended may take to end.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often it is looked whether it has.
const PAUSE: Duration = Duration::from_millis(5);

/// `vm-remap fs`, as a child of this process. It ends with the connection, and is waited for when
/// this goes.
#[derive(Debug)]
pub(super) struct OwnDaemon {
    options: Options,
    last: Mutex<Option<Started>>,
}

#[derive(Debug)]
struct Started {
    /// Until it has been waited for.
    child: Option<Child>,
    at: Instant,
    /// From then to the next start.
    pause: Duration,
}

impl OwnDaemon {
    /// What will serve `share`; nothing is started yet.
    ///
    /// # Errors
    /// The directory is none, and the window has a size that the daemon does not have.
    pub(super) fn new(spec: &FsSpec, share: &FsShare, window: &WindowSpec) -> Result<Self> {
        let source = share.source.canonicalize();
        let source = source.with_context(|| format!("cannot share {}", share.source.display()))?;
        ensure!(
            source.is_dir(),
            "cannot share {}: it is no directory",
            source.display()
        );
        let window = window.window().unwrap_or(USUAL_WINDOW);
        ensure!(
            !spec.dax || (window > 0 && window.is_multiple_of(GRANULE)),
            "cannot share {} through a window of {}: Linux maps 2 MiB at a time; write a multiple of \
             2M for window=",
            source.display(),
            size_text(window)
        );
        let options = Options {
            socket: None,
            fd: None,
            source,
            tag: spec.tag.clone(),
            window: if spec.dax { window } else { USUAL_WINDOW },
            readonly: false,
            cache: match share.cache {
                FsCache::Never => CachePolicyOption::Never,
                FsCache::Auto => CachePolicyOption::Auto,
                FsCache::Always => CachePolicyOption::Always,
            },
            threads: spec.queues.into(),
            sandbox: Sandbox::Auto,
        };
        Ok(Self {
            options,
            last: Mutex::default(),
        })
    }
}

impl StartDaemon for OwnDaemon {
    fn start(&self) -> io::Result<UnixStream> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pause = BETWEEN;
        if let Some(started) = &mut *last {
            // Whoever wants another one has ended the connection of this one.
            if let Some(child) = started.child.take() {
                started.pause = next_pause(started.pause, started.at.elapsed());
                end(child, &self.options);
            }
            if started.at.elapsed() < started.pause {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            pause = started.pause;
        }
        let mut program = Command::new(PROGRAM);
        // The guest's output is not the daemon's, and what is typed at a terminal is for the VMM:
        // with Ctrl-C, the daemon would be gone before the guest.
        program.arg("fs").stdout(Stdio::null()).process_group(0);
        let started = vm_remap_fs::start(program, self.options.clone());
        let at = Instant::now();
        let (child, connection) = started.map_or_else(
            |error| (None, Err(error)),
            |(child, connection)| (Some(child), Ok(connection)),
        );
        *last = Some(Started { child, at, pause });
        connection
    }
}

impl Drop for OwnDaemon {
    fn drop(&mut self) {
        let last = self.last.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(child) = last.take().and_then(|started| started.child) {
            end(child, &self.options);
        }
    }
}

/// From the start of a daemon that has `lived` so long to the start of the next one, where it was
/// `pause` before.
fn next_pause(pause: Duration, lived: Duration) -> Duration {
    if lived >= STAYED {
        return BETWEEN;
    }
    pause.saturating_mul(2).min(LONGEST)
}

/// Waits for a daemon whose connection has ended, and says how it ended where that is worth it.
fn end(mut child: Child, options: &Options) {
    let source = options.source.display();
    let ended = match wait(&mut child, PATIENCE) {
        Ok(None) => {
            warn!("the daemon of {source} does not end by itself: it is killed");
            child.kill().and_then(|()| wait(&mut child, PATIENCE))
        }
        ended => ended,
    };
    match ended {
        Ok(Some(status)) if status.success() => {}
        Ok(Some(status)) => warn!("the daemon of {source} has ended with {status}"),
        // The guest's end is not to wait for a file server of the host's.
        Ok(None) => warn!("the daemon of {source} is left behind: a file of it keeps it waiting"),
        Err(error) => warn!("cannot wait for the daemon of {source}: {error}"),
    }
}

/// How `child` has ended, if it has within `patience`.
fn wait(child: &mut Child, patience: Duration) -> io::Result<Option<ExitStatus>> {
    let started = Instant::now();
    loop {
        match child.try_wait()? {
            None if started.elapsed() < patience => sleep(PAUSE),
            ended => return Ok(ended),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{Pid, test_kill_process};

    use super::*;
    use crate::run::launch::FsServer;

    fn daemon() -> OwnDaemon {
        let share = FsShare {
            source: std::env::temp_dir(),
            cache: FsCache::Auto,
        };
        let spec = FsSpec {
            tag: "share".into(),
            server: FsServer::Daemon(share.clone()),
            dax: false,
            queues: 1,
            queue_size: 1024,
        };
        OwnDaemon::new(&spec, &share, &WindowSpec::default()).unwrap()
    }

    fn child(daemon: &OwnDaemon) -> Option<Pid> {
        let last = daemon.last.lock().unwrap();
        let child = last.as_ref().unwrap().child.as_ref();
        child.map(Pid::from_child)
    }

    #[test]
    fn daemon_that_does_not_end_is_killed_and_its_end_is_bounded() {
        let mut sleeper = Command::new("sleep").arg("1000").spawn().unwrap();
        let nothing = wait(&mut sleeper, Duration::ZERO).unwrap();
        assert_eq!(nothing, None);
        let pid = Pid::from_child(&sleeper);
        end(sleeper, &daemon().options);
        assert_eq!(test_kill_process(pid), Err(rustix::io::Errno::SRCH));
    }

    #[test]
    fn daemons_that_do_not_stay_come_ever_more_seldom() {
        let mut pause = BETWEEN;
        let mut pauses = Vec::new();
        for _ in 0..8 {
            pause = next_pause(pause, Duration::from_secs(5));
            pauses.push(pause.as_secs());
        }
        assert_eq!(pauses, [2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(next_pause(pause, STAYED), BETWEEN);
    }

    /// The program of a test is no daemon: it says so and ends at once, as one that cannot serve.
    #[test]
    fn daemon_that_ends_at_once_is_no_zombie_while_the_next_one_waits() {
        let daemon = daemon();
        drop(daemon.start().unwrap());
        let first = child(&daemon).unwrap();
        let group = rustix::process::getpgid(Some(first)).unwrap();
        assert_eq!(group, first, "a terminal's signals are not for it");
        let early = daemon.start().unwrap_err();
        assert_eq!(early.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(child(&daemon), None);
        assert_eq!(test_kill_process(first), Err(rustix::io::Errno::SRCH));
        assert_eq!(
            daemon.last.lock().unwrap().as_ref().unwrap().pause,
            BETWEEN * 2
        );
    }
}
