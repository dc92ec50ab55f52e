//! Owns the proofs of what a device is not made from, and how that is said. Never starts a device.

use std::error::Error;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use vhost::vhost_user::message::VhostUserProtocolFeatures;
use virtio_bindings::virtio_mmio::*;
use vm_remap_cli::run::virtio::vhost_user::{Queues, SharedMemory, VhostUserError};

use crate::daemon::{Manner, REGION, REGION_LEN, Request};
use crate::driver::{Machine, WINDOW};

/// The whole text of an error.
fn text(error: &VhostUserError) -> String {
    let source = error.source().map(|source| format!(": {source}"));
    format!("{error}{}", source.unwrap_or_default())
}

#[test]
fn a_daemon_that_nobody_started_is_named() {
    let machine = Machine::new();
    let mut options = machine.options();
    options.wait = Duration::ZERO;
    let refused = text(&machine.device(&options).err().unwrap());
    let socket = machine.socket();
    assert!(
        refused.starts_with("cannot connect to the daemon at "),
        "{refused}"
    );
    assert!(refused.contains(socket.to_str().unwrap()), "{refused}");
    assert!(refused.contains("No such file"), "{refused}");
}

#[test]
fn a_daemon_that_does_not_answer_is_not_waited_for_forever() {
    let machine = Machine::new();
    let _silent = UnixListener::bind(machine.socket()).unwrap();
    let mut options = machine.options();
    options.patience = Duration::from_millis(10);
    assert_eq!(
        text(&machine.device(&options).err().unwrap()),
        "cannot wait for the daemon any longer: it has not answered for 10ms; look what it is \
         doing"
    );
}

#[test]
fn a_socket_of_something_else_is_no_daemon() {
    let machine = Machine::new();
    let listener = UnixListener::bind(machine.socket()).unwrap();
    let other = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"220 mail.example.org ESMTP\r\n").unwrap();
        stream
    });
    let refused = text(&machine.device(&machine.options()).err().unwrap());
    assert!(
        refused.starts_with("cannot ask the daemon for its features: "),
        "{refused}"
    );
    drop(other.join().unwrap());
}

#[test]
fn shared_memory_beyond_the_limit_is_refused_with_both_figures() {
    let machine = Machine::new();
    let daemon = machine.daemon(&Manner::default());
    let mut options = machine.options();
    options.shared_memory = SharedMemory::Announced(REGION_LEN - 4096);
    let refused = text(&machine.device(&options).err().unwrap());
    assert_eq!(
        refused,
        "cannot use the shared memory of the daemon: cannot use the shared memory regions: with \
         region 3 of 0x200000 bytes they are more than 0x1ff000 in all; raise the limit, or give \
         the device less"
    );
    daemon.kill();
}

#[test]
fn a_device_without_shared_memory_works_all_the_same() {
    let machine = Machine::new();
    let daemon = machine.daemon(&Manner::default());
    let mut options = machine.options();
    options.shared_memory = SharedMemory::Off;
    let mut driver = machine.device(&options).unwrap();
    assert_eq!(driver.region(REGION), (u64::MAX, u64::MAX));
    driver.start();
    assert_eq!(driver.ask(0, Request::Add(1)), 2);
    daemon.kill();
}

#[test]
fn a_region_that_the_daemon_does_not_announce_can_be_given() {
    let machine = Machine::new();
    let mut options = machine.options();
    options.shared_memory = SharedMemory::Given(1 << 20);
    options.queues = Queues::Sizes(vec![8, 16]);
    let daemon = machine.daemon(&Manner::default());
    let mut driver = machine.device(&options).unwrap();
    assert_eq!(driver.region(0), (WINDOW, 1 << 20));
    assert_eq!(driver.region(REGION), (u64::MAX, u64::MAX));
    driver.set(VIRTIO_MMIO_QUEUE_SEL, 1);
    assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_NUM_MAX), 16);
    drop(driver);
    daemon.kill();
    let daemon = machine.daemon(&Manner {
        lacks: VhostUserProtocolFeatures::SHMEM,
        ..Manner::default()
    });
    assert_eq!(
        text(&machine.device(&options).err().unwrap()),
        "cannot use the daemon: it does not offer VHOST_USER_PROTOCOL_F_SHMEM, which a device here \
         needs"
    );
    daemon.kill();
}

#[test]
fn a_daemon_without_most_of_the_protocol_works_all_the_same() {
    let machine = Machine::new();
    let daemon = machine.daemon(&Manner {
        lacks: VhostUserProtocolFeatures::all() - VhostUserProtocolFeatures::MQ,
        ..Manner::default()
    });
    let mut driver = machine.device(&machine.options()).unwrap();
    assert_eq!(driver.region(REGION), (u64::MAX, u64::MAX));
    assert_eq!(driver.config(0), [0_u8]);
    for _ in 0..2 {
        driver.start();
        assert_eq!(driver.ask(1, Request::Add(1)), 2);
    }
    daemon.kill();
}

#[test]
fn a_daemon_that_lets_go_of_its_channel_works_all_the_same() {
    let machine = Machine::new();
    let daemon = machine.daemon(&Manner {
        never_asks: true,
        ..Manner::default()
    });
    let mut driver = machine.device(&machine.options()).unwrap();
    for number in 0..3 {
        driver.start();
        assert_eq!(driver.ask(0, Request::Add(number)), number + 1);
    }
    daemon.kill();
}

#[test]
fn queues_that_the_daemon_does_not_have_are_refused() {
    let machine = Machine::new();
    let daemon = machine.daemon(&Manner::default());
    let mut options = machine.options();
    options.queues = Queues::Sizes(vec![64; 3]);
    assert_eq!(
        text(&machine.device(&options).err().unwrap()),
        "cannot use 3 queues: the daemon has 2, and a device here can have 64; leave the number \
         out for those there are"
    );
    daemon.kill();
    options.queues = Queues::Sizes(vec![64, 48]);
    assert_eq!(
        text(&machine.device(&options).err().unwrap()),
        "cannot use queues of 48 descriptors: it must be a power of two up to 32768"
    );
}
