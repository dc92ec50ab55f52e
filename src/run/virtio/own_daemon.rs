//! Owns the project's own daemon of a share: it is started, started again, and waited for. Never
//! speaks to it.

use std::io;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use log::warn;
use vm_remap::spec::WindowSpec;
use vm_remap_fs::{CachePolicyOption, Options, Sandbox};

use super::vhost_user::StartDaemon;
use crate::run::launch::{FsCache, FsShare, FsSpec};

/// This program, also where its file has been replaced since.
const PROGRAM: &str = "/proc/self/exe";

/// The window of a daemon where nobody says how large it is, in bytes.
const USUAL_WINDOW: u64 = 1 << 30;

/// The daemon's windows are a multiple of this, in bytes.
const GRANULE: u64 = 2 << 20;

/// From one start to the next: one that cannot serve is not to keep the host busy.
const BETWEEN: Duration = Duration::from_secs(1);

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
    child: Child,
    at: Instant,
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
            "cannot share {} through a window of {window} bytes: Linux maps 2 MiB at a time; write a \
             multiple of 2M for window=",
            source.display()
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
        if let Some(started) = &*last
            && started.at.elapsed() < BETWEEN
        {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if let Some(started) = last.take() {
            end(started.child, &self.options);
        }
        let mut program = Command::new(PROGRAM);
        program.arg("fs");
        let (child, connection) = vm_remap_fs::start(program, self.options.clone())?;
        let at = Instant::now();
        *last = Some(Started { child, at });
        Ok(connection)
    }
}

impl Drop for OwnDaemon {
    fn drop(&mut self) {
        let last = self.last.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(started) = last.take() {
            end(started.child, &self.options);
        }
    }
}

/// Waits for a daemon whose connection has ended, and says how it ended where that is worth it.
fn end(mut child: Child, options: &Options) {
    let source = options.source.display();
    let started = Instant::now();
    let ended = loop {
        match child.try_wait() {
            Ok(None) if started.elapsed() < PATIENCE => sleep(PAUSE),
            Ok(None) => {
                warn!("the daemon of {source} does not end by itself: it is killed");
                break child.kill().and_then(|()| child.wait());
            }
            Ok(Some(status)) => break Ok(status),
            Err(error) => break Err(error),
        }
    };
    match ended {
        Ok(status) if status.success() => {}
        Ok(status) => warn!("the daemon of {source} has ended with {status}"),
        Err(error) => warn!("cannot wait for the daemon of {source}: {error}"),
    }
}
