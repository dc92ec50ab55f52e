//! Owns the tests of the channel in the loop of `event-manager`. Never drives it otherwise.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel as pipe};

use event_manager::{EventManager, SubscriberOps};
use vhost::vhost_user::{VhostUserFrontend, VhostUserFrontendReqHandler};
use vm_remap::vhost_user::{
    BackendEvent, BackendSubscriber, ChannelError, NoOtherRequests, ShmemLimits,
};

use crate::daemon::{Connected, config, connect};
use crate::raw::{MAP, Raw, UNMAP, message};
use crate::support::*;

type Tell = Box<dyn FnMut(BackendEvent)>;
type Loop = EventManager<BackendSubscriber<NoOtherRequests, Tell>>;

/// A loop that drives a channel, and what it tells.
fn driven<T: std::os::fd::AsRawFd>(channel: Channel, main: &T) -> (Loop, Receiver<BackendEvent>) {
    let (send, receive) = pipe();
    let tell: Tell = Box::new(move |event| send.send(event).unwrap());
    let subscriber = BackendSubscriber::new(channel, main, tell).unwrap();
    let mut events = EventManager::new().unwrap();
    events.add_subscriber(subscriber);
    (events, receive)
}

/// Turns the loop until nothing happens any more; how often it turned.
fn turn(events: &mut Loop) -> usize {
    (0..1000)
        .find(|_| events.run_with_timeout(20).unwrap() == 0)
        .unwrap()
}

#[test]
fn loop_serves_a_flood_in_portions_and_all_of_it() {
    let device = Device::new();
    let limits = ShmemLimits::default().requests_per_wake(4);
    let (channel, end) = channel(device.handler().limits(limits));
    let mut raw = Raw::new(end);
    let (_far, main) = UnixStream::pair().unwrap();
    let (mut events, told) = driven(channel, &main);
    let file = blob(1, 3);
    for page in 0..30 {
        raw.send(&message(MAP, &request(page, 1)), &[file.as_fd()]);
        raw.send(&message(MAP, &request(page, 1)), &[file.as_fd()]);
    }
    let turns = turn(&mut events);
    assert!((15..=17).contains(&turns), "{turns}");
    assert_eq!(device.seen().len(), 30);
    assert_eq!(told.try_iter().count(), 30);
    for _ in 0..30 {
        assert_eq!((raw.answer(), raw.answer()), ((MAP, 0), (MAP, -17)));
    }
}

#[test]
fn half_a_message_does_not_keep_the_loop_turning() {
    let device = Device::new();
    let (channel, end) = device.channel();
    let mut raw = Raw::new(end);
    let (_far, main) = UnixStream::pair().unwrap();
    let (mut events, told) = driven(channel, &main);
    let bytes = message(UNMAP, &request(0, PAGES));
    raw.send(&bytes[..20], &[]);
    assert!(turn(&mut events) <= 2);
    raw.send(&bytes[20..], &[]);
    turn(&mut events);
    assert_eq!(raw.answer(), (UNMAP, 0));
    told.try_recv().unwrap_err();
}

#[test]
fn violation_is_told_once_and_nothing_is_watched_any_more() {
    let device = Device::new();
    let (channel, end) = device.channel();
    let mut raw = Raw::new(end);
    let (far, main) = UnixStream::pair().unwrap();
    let (mut events, told) = driven(channel, &main);
    let file = blob(1, 3);
    raw.send(&message(MAP, &request(0, 1)), &[file.as_fd()]);
    turn(&mut events);
    assert_eq!((raw.answer(), device.seen().len()), ((MAP, 0), 1));
    raw.send(&[0xff; 12], &[]);
    turn(&mut events);
    let event = told.try_recv().unwrap();
    let BackendEvent::Closed(closed) = event else {
        panic!("{event:?}");
    };
    assert!(matches!(closed.cause, ChannelError::Violation { .. }));
    assert_eq!(device.seen(), []);
    drop(far);
    assert_eq!(turn(&mut events), 0);
    told.try_recv().unwrap_err();
}

#[test]
fn backend_that_vanishes_leaves_holes() {
    let Connected {
        mut frontend,
        backends,
        daemon,
    } = connect(config());
    let device = Device::new();
    let (channel, end) = device.channel();
    frontend.set_backend_request_fd(&end).unwrap();
    drop(end);
    let backend = backends.recv().unwrap();
    let (mut events, told) = driven(channel, &frontend);
    // It leaves a process behind that holds the channel.
    let left_behind = backend.clone();
    let thread = std::thread::spawn(move || {
        backend.shmem_map(&request(0, 2), &blob(2, 1)).unwrap();
    });
    while !thread.is_finished() {
        events.run_with_timeout(20).unwrap();
    }
    thread.join().unwrap();
    assert_eq!(device.seen().len(), 2);
    // What the kernel does with the daemon's end when the daemon is killed.
    rustix::net::shutdown(main_of(&frontend), rustix::net::Shutdown::Both).unwrap();
    daemon.join().unwrap();
    turn(&mut events);
    let event = told.try_recv().unwrap();
    let BackendEvent::Closed(closed) = event else {
        panic!("{event:?}");
    };
    assert!(matches!(closed.cause, ChannelError::Disconnected));
    assert!(closed.left.is_none());
    assert_eq!(device.seen(), []);
    left_behind.shmem_map(&request(0, 2), &blob(2, 1)).unwrap_err();
}

#[expect(unsafe_code, reason = "the frontend tells a number")]
fn main_of(frontend: &impl std::os::fd::AsRawFd) -> std::os::fd::BorrowedFd<'_> {
    // SAFETY: the frontend owns it and is borrowed for as long.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(frontend.as_raw_fd()) }
}
