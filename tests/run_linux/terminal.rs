//! Owns the proof that a terminal is raw while a guest has it, and what it was when the guest has
//! gone.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

use crate::program::{Tiny, out_byte, stay};
use crate::support::{runs_guests, skip};

#[test]
fn a_terminal_is_raw_while_the_guest_has_it_and_restored_after() {
    let name = "a_terminal_is_raw_while_the_guest_has_it_and_restored_after";
    if !runs_guests(name) {
        return;
    }
    let Ok(ours) = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY) else {
        return skip(name, "this host makes no pseudo-terminals");
    };
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let path = ptsname(&ours, Vec::new()).unwrap();
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let theirs = File::from(rustix::fs::open(path, flags, Mode::empty()).unwrap());
    let before = tcgetattr(&theirs).unwrap().local_modes;
    assert!(before.contains(LocalModes::ICANON | LocalModes::ECHO));
    let tiny = Tiny::new(|a| {
        out_byte(a, 0x3f8, u32::from(b'!'))?;
        stay(a)
    });
    let mut child = Command::new(env!("CARGO_BIN_EXE_vm-remap"))
        .arg("run")
        .args(tiny.arguments())
        .stdin(Stdio::from(theirs.try_clone().unwrap()))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut first = [0];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let during = tcgetattr(&theirs).unwrap().local_modes;
    assert!(!during.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG));
    // A terminal that is not raw would make a signal of the first key, and wait for the line's end.
    File::from(ours.try_clone().unwrap())
        .write_all(b"\x03\x01x")
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(6));
    assert_eq!(tcgetattr(&theirs).unwrap().local_modes, before);
}
