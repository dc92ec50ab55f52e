//! Owns the tests of descriptors that do not let themselves be closed: whoever sends them, the VMM's
//! loop goes on. Never maps one.

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::channel as pipe;
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;
use vm_remap::vhost_user::{BackendChannel, ChannelError};

use crate::raw::{MAP, Raw, UNMAP, WANTS_ANSWER, header, message};
use crate::stuck_file::Stuck;
use crate::support::*;

/// A socket whose last close takes an hour, and the end that reads nothing.
fn lingering() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (other, _) = listener.accept().unwrap();
    socket.set_nonblocking(true).unwrap();
    while socket.write(&[0; 65536]).is_ok() {}
    set_socket_linger(&socket, Some(Duration::from_secs(3600))).unwrap();
    (socket, other)
}

/// Sends bytes with `count` such sockets, and waits until the loop has been through a wake-up and
/// has dropped the channel.
fn loop_goes_on(bytes: &[u8], count: usize) {
    let device = Device::new();
    let (mut channel, end) = device.channel();
    let raw = Raw::new(end);
    let (sockets, _others): (Vec<_>, Vec<_>) = (0..count).map(|_| lingering()).unzip();
    let fds: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
    raw.send(bytes, &fds);
    drop(sockets);
    let (done, over) = pipe();
    std::thread::spawn(move || {
        let woken = channel.wake().is_ok();
        drop(channel);
        done.send(woken).unwrap();
    });
    let woken = over.recv_timeout(Duration::from_secs(20));
    assert!(woken.is_ok(), "the loop waits for a socket to be closed");
}

#[test]
fn socket_that_lingers_in_a_message_keeps_nobody_waiting() {
    loop_goes_on(&message(MAP, &request(0, 1)), 1);
    loop_goes_on(&message(UNMAP, &request(0, 1)), 1);
}

#[test]
fn sockets_that_linger_beyond_those_that_are_kept_keep_nobody_waiting() {
    loop_goes_on(&message(MAP, &request(0, 1)), 5);
}

#[test]
fn socket_that_lingers_in_half_a_message_keeps_nobody_waiting() {
    loop_goes_on(&header(MAP, WANTS_ANSWER, 40), 1);
    loop_goes_on(&[0xff; 600], 1);
}

#[test]
fn socket_that_lingers_unread_keeps_nobody_waiting() {
    let device = Device::new();
    let (mut channel, end) = device.channel();
    let raw = Raw::new(end);
    let (socket, _other) = lingering();
    raw.send(&[0xff; 12], &[]);
    raw.send(&[0], &[socket.as_fd()]);
    drop(socket);
    let (done, over) = pipe();
    std::thread::spawn(move || {
        channel.wake().unwrap_err();
        drop(channel);
        done.send(()).unwrap();
    });
    let dropped = over.recv_timeout(Duration::from_secs(20));
    assert!(dropped.is_ok(), "the loop waits for a socket to be closed");
}

/// Each time it came again it left a thread behind, with up to 256 descriptors of the VMM's.
#[test]
fn backend_that_comes_again_leaves_no_more_than_a_few_threads() {
    let handler = Arc::new(Device::new().handler());
    let mut others = Vec::new();
    let refused = (0..100).find_map(|_| {
        let opened = BackendChannel::new(Arc::clone(&handler), true);
        let (mut channel, end) = match opened {
            Ok(opened) => opened,
            Err(why) => return Some(why),
        };
        let (socket, other) = lingering();
        let raw = Raw::new(end);
        raw.send(&message(UNMAP, &request(0, 1)), &[socket.as_fd()]);
        drop(socket);
        others.push(other);
        let woken = channel.wake().unwrap();
        assert_eq!(woken.refused.len(), 1);
        None
    });
    let refused = refused.unwrap();
    let ChannelError::Lingering { channels } = refused else {
        panic!("{refused}");
    };
    assert!(channels <= others.len(), "{channels}");
    // Whoever reads, or is gone, lets them go.
    drop(others);
    let again = (0..20_000).find_map(|_| {
        std::thread::sleep(Duration::from_millis(1));
        BackendChannel::new(Arc::clone(&handler), true).ok()
    });
    assert!(again.is_some());
}

#[test]
fn backend_whose_descriptors_pile_up_is_sent_away() {
    let device = Device::new();
    let (mut channel, end) = device.channel();
    let raw = Raw::new(end);
    let (socket, _other) = lingering();
    let unmap = message(UNMAP, &request(0, 1));
    raw.send(&unmap, &[socket.as_fd()]);
    drop(socket);
    let (pipe, _writer) = rustix::pipe::pipe().unwrap();
    let many = [pipe.as_fd(); 60];
    let closed = (0..10).find_map(|_| {
        let woken = channel.wake().err();
        raw.try_send(&unmap, &many).unwrap_or_default();
        woken
    });
    let cause = closed.unwrap().cause;
    assert!(matches!(cause, ChannelError::Violation { .. }), "{cause}");
}

#[test]
fn file_whose_owner_does_not_answer_is_refused_without_asking_it() {
    let Some(stuck) = Stuck::mount() else {
        let name = "file_whose_owner_does_not_answer_is_refused_without_asking_it";
        writeln!(std::io::stderr(), "SKIP {name}: no FUSE may be mounted").unwrap();
        return;
    };
    let device = Device::new();
    let (mut channel, end) = device.channel();
    let mut raw = Raw::new(end);
    let file = stuck.open();
    raw.send(&message(MAP, &request(0, 1)), &[file.as_fd()]);
    drop(file);
    stuck.stick();
    let (done, over) = pipe();
    let vmm = std::thread::spawn(move || {
        let woken = channel.wake();
        done.send(woken.unwrap().refused.len()).unwrap();
    });
    let refused = over.recv_timeout(Duration::from_secs(20));
    drop(stuck);
    assert_eq!(refused, Ok(1), "the loop waits for the owner of a file");
    assert_eq!(raw.answer(), (MAP, -1));
    vmm.join().unwrap();
}
