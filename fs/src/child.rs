//! Owns the start of the daemon by a VMM. Never serves.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};

use crate::options::Options;

/// Starts `program` as the daemon of the calling process, and gives the frontend's end of the
/// connection: `vhost::vhost_user::Frontend::from_stream` takes it.
///
/// The program is `vm-remap-fs`, or any other that calls [`serve`](crate::serve) with the
/// [`Options`] that its command line ends with: the calling one itself, with the name of a
/// subcommand. `socket` and `fd` of the options are not looked at; the daemon gets its socket as
/// standard input, and no path is left behind. It ends when the connection does. Wait for the child
/// then: until somebody does, it is a zombie.
///
/// ```no_run
/// # fn start(options: vm_remap_fs::Options) -> std::io::Result<()> {
/// use std::process::Command;
///
/// let mut program = Command::new(std::env::current_exe()?);
/// program.arg("fs");
/// let (mut daemon, connection) = vm_remap_fs::start(program, options)?;
/// // ... serve the guest ...
/// drop(connection);
/// daemon.wait()?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// A socket that cannot be made, and a program that cannot be started. A daemon that cannot serve
/// says so on its standard error, and hangs up.
pub fn start(mut program: Command, options: Options) -> io::Result<(Child, UnixStream)> {
    // Only this user can reach it, and it is gone when the function returns.
    let home = tempfile::tempdir()?;
    let path = home.path().join("fs.sock");
    let listener = UnixListener::bind(&path)?;
    let connection = UnixStream::connect(&path)?;
    let options = Options {
        socket: None,
        fd: Some(0),
        ..options
    };
    let child = program
        .args(options.to_arguments())
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .spawn()?;
    Ok((child, connection))
}
