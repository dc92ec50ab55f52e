//! Owns the way of a layout record and its descriptors into a new process: this test binary, run
//! once more in another role, with a socket for its standard input. Never restores a window.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use vm_remap::LayoutRecord;

/// Set for the process that restores.
const ROLE: &str = "VM_REMAP_TEST_RESTORES";
const MOST: usize = 16;

/// Runs the test `role` in a new process, which gets `record` and `fds`, and returns its answer.
pub fn ask(role: &str, record: &LayoutRecord, fds: &[BorrowedFd<'_>]) -> Vec<u8> {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([role, "--exact", "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    let first = [IoSlice::new(b"!")];
    sendmsg(&ours, &first, &mut control, SendFlags::empty()).unwrap();
    ours.write_all(&serde_json::to_vec(record).unwrap())
        .unwrap();
    ours.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    ours.read_to_end(&mut answer).unwrap();
    assert!(child.wait().unwrap().success(), "{role} failed");
    answer
}

/// What the new process got, and where its answer goes; `None` in any other process.
pub fn asked(role: &str) -> Option<(LayoutRecord, Vec<OwnedFd>, UnixStream)> {
    std::env::var(ROLE).ok().filter(|asked| asked == role)?;
    let stdin = std::io::stdin();
    let mut socket = UnixStream::from(stdin.as_fd().try_clone_to_owned().unwrap());
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut first = [0];
    let mut slices = [IoSliceMut::new(&mut first)];
    recvmsg(&socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    let mut text = Vec::new();
    socket.read_to_end(&mut text).unwrap();
    Some((serde_json::from_slice(&text).unwrap(), fds, socket))
}
