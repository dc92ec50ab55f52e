//! Owns the daemon of a share, in a process of its own that can be killed. Never looks at the share.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use clap::Parser;

/// What the process of the daemon is told.
const ARGUMENTS: &str = "VM_REMAP_TEST_SHARE";

#[derive(Debug, Parser)]
struct Daemon {
    #[command(flatten)]
    options: vm_remap_fs::Options,
}

/// It serves until it is killed, where it was started for that.
#[test]
#[ignore = "it is the process that another test starts"]
fn serve_a_share() {
    let Some(arguments) = std::env::var_os(ARGUMENTS) else {
        return;
    };
    let arguments = arguments.into_string().unwrap();
    let words = std::iter::once("daemon").chain(arguments.split('\n'));
    vm_remap_fs::serve(&Daemon::parse_from(words).options).unwrap();
}

pub(crate) struct Share(Child);

impl Share {
    /// Starts a daemon, which listens when this returns.
    pub(crate) fn start(socket: &Path, source: &Path) -> Self {
        let mut arguments = OsString::from("--socket\n");
        arguments.push(socket);
        arguments.push("\n--source\n");
        arguments.push(source);
        arguments.push("\n--tag\nshare\n--window\n64M\n--sandbox\nnone");
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "share::serve_a_share"])
            .env(ARGUMENTS, arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        while !socket.exists() {
            std::thread::sleep(Duration::from_millis(10));
        }
        Self(child)
    }

    pub(crate) fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}
