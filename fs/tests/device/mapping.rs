//! What the guest's requests make of the window.

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use super::daemon::Daemon;
use super::fuse;
use super::guest::Guest;
use super::window::Asked;

const MIB2: u64 = 2 << 20;
const PAGE: u64 = 4096;

fn maps(asked: &[Asked]) -> Vec<(u64, u64, u64, bool)> {
    asked.iter().map(Asked::map).collect()
}

fn unmaps(asked: &[Asked]) -> Vec<(u64, u64)> {
    asked.iter().map(Asked::unmap).collect()
}

#[test]
fn each_range_arrives_with_the_right_file_in_each_sandbox() {
    let test = "each_range_arrives_with_the_right_file_in_each_sandbox";
    Daemon::in_each_sandbox(test, |daemon| {
        let content: Vec<u8> = (0..6u32 << 20).map(|at| at.to_le_bytes()[1]).collect();
        fs::write(daemon.path("large"), &content).unwrap();
        let mut guest = Guest::mount(&daemon);
        let (node, _) = guest.look_up("large");
        assert_eq!(guest.map(node, MIB2, 3 * MIB2, false), 0);
        assert_eq!(guest.map(node, 2 * MIB2, 0, true), 0);
        let asked = guest.window.take();
        assert_eq!(
            maps(&asked),
            [(MIB2, 3 * MIB2, MIB2, false), (2 * MIB2, 0, MIB2, true)]
        );
        let on_host = fs::metadata(daemon.path("large")).unwrap();
        for one in &asked {
            let file = one.file();
            let found = file.metadata().unwrap();
            assert_eq!((found.dev(), found.ino()), (on_host.dev(), on_host.ino()));
            let (offset, _, len, writable) = one.map();
            let mut bytes = vec![0; usize::try_from(len).unwrap()];
            file.read_exact_at(&mut bytes, offset).unwrap();
            let start = usize::try_from(offset).unwrap();
            assert_eq!(bytes, content[start..start + bytes.len()]);
            assert_eq!(file.write_at(&bytes[..1], offset).is_ok(), writable);
        }
    });
}

#[test]
fn small_file_is_mapped_to_its_last_page_and_follows_its_growth() {
    let daemon = Daemon::start(&[]);
    fs::write(daemon.path("small"), "12345").unwrap();
    let mut guest = Guest::mount(&daemon);
    let (node, _) = guest.look_up("small");
    assert_eq!(guest.map(node, 0, MIB2, false), 0);
    assert_eq!(maps(&guest.window.take()), [(0, MIB2, PAGE, false)]);

    let handle = guest.open(node, libc::O_RDWR);
    guest.ask(fuse::WRITE, node, &fuse::write(handle, 5, b"67890"));
    assert!(guest.window.take().is_empty(), "still the same page");

    // By the guest's own write, by its truncation, and by somebody on the host.
    guest.ask(fuse::WRITE, node, &fuse::write(handle, PAGE, b"x"));
    assert_eq!(
        maps(&guest.window.take()),
        [(PAGE, MIB2 + PAGE, PAGE, false)]
    );
    guest.ask(fuse::SETATTR, node, &fuse::set_size(4 * PAGE));
    assert_eq!(
        maps(&guest.window.take()),
        [(2 * PAGE, MIB2 + 2 * PAGE, 2 * PAGE, false)]
    );
    let on_host = fs::OpenOptions::new()
        .write(true)
        .open(daemon.path("small"))
        .unwrap();
    on_host.set_len(3 * MIB2).unwrap();
    guest.ask(fuse::GETATTR, node, &fuse::get_attributes());
    assert_eq!(
        maps(&guest.window.take()),
        [(4 * PAGE, MIB2 + 4 * PAGE, MIB2 - 4 * PAGE, false)]
    );

    let remove = fuse::remove_mappings(&[(MIB2, MIB2)]);
    assert_eq!(guest.ask(fuse::REMOVEMAPPING, node, &remove).error, 0);
    let unmapped: u64 = unmaps(&guest.window.take()).iter().map(|one| one.1).sum();
    assert_eq!(unmapped, MIB2);
}

#[test]
fn empty_file_has_its_first_page_mapped_when_it_is_written() {
    let daemon = Daemon::start(&[]);
    fs::write(daemon.path("empty"), "").unwrap();
    let mut guest = Guest::mount(&daemon);
    let (node, _) = guest.look_up("empty");
    assert_eq!(guest.map(node, 0, 0, true), 0);
    assert!(guest.window.take().is_empty());
    let handle = guest.open(node, libc::O_RDWR);
    guest.ask(fuse::WRITE, node, &fuse::write(handle, 0, b"x"));
    assert_eq!(maps(&guest.window.take()), [(0, 0, PAGE, true)]);
}

#[test]
fn range_becomes_writable_by_the_same_message_over_the_same_place() {
    let daemon = Daemon::start(&[]);
    fs::write(daemon.path("file"), vec![0; 1 << 20]).unwrap();
    let mut guest = Guest::mount(&daemon);
    let (node, _) = guest.look_up("file");
    assert_eq!(guest.map(node, 0, 0, false), 0);
    assert_eq!(guest.map(node, 0, 0, true), 0);
    assert_eq!(
        maps(&guest.window.take()),
        [(0, 0, 1 << 20, false), (0, 0, 1 << 20, true)]
    );
}

#[test]
fn several_ranges_are_unmapped_at_once_and_twice_does_no_harm() {
    let daemon = Daemon::start(&[]);
    fs::write(daemon.path("file"), vec![0; 6 << 20]).unwrap();
    let mut guest = Guest::mount(&daemon);
    let (node, _) = guest.look_up("file");
    for at in [0, MIB2, 2 * MIB2] {
        assert_eq!(guest.map(node, at, at, false), 0);
    }
    guest.window.take();
    let remove = fuse::remove_mappings(&[(0, MIB2), (2 * MIB2, MIB2)]);
    assert_eq!(guest.ask(fuse::REMOVEMAPPING, node, &remove).error, 0);
    assert_eq!(unmaps(&guest.window.take()), [(0, MIB2), (2 * MIB2, MIB2)]);
    assert_eq!(guest.ask(fuse::REMOVEMAPPING, node, &remove).error, 0);
    assert!(guest.window.take().is_empty());
}

#[test]
fn place_is_taken_over_from_another_file() {
    let daemon = Daemon::start(&[]);
    fs::write(daemon.path("one"), vec![1; 2 << 20]).unwrap();
    fs::write(daemon.path("two"), vec![2; 2 << 20]).unwrap();
    let mut guest = Guest::mount(&daemon);
    let (one, _) = guest.look_up("one");
    let (two, _) = guest.look_up("two");
    assert_eq!(guest.map(one, 0, 0, false), 0);
    guest.window.take();
    assert_eq!(guest.map(two, 0, 0, false), 0);
    let asked = guest.window.take();
    assert_eq!(asked[0].unmap(), (0, MIB2));
    assert_eq!(asked[1].map(), (0, 0, MIB2, false));
}

#[test]
fn what_does_not_lie_in_the_window_never_reaches_the_frontend() {
    let daemon = Daemon::start(&[]);
    fs::write(daemon.path("file"), vec![0; 4 << 20]).unwrap();
    let mut guest = Guest::mount(&daemon);
    let (node, _) = guest.look_up("file");
    for (file, len, window) in [
        (0, MIB2, 16 << 20),
        (0, MIB2, (16 << 20) - PAGE),
        (0, MIB2, u64::MAX - MIB2 + 1),
        (0, u64::MAX, 0),
        (u64::MAX - PAGE + 1, PAGE, 0),
        (1, MIB2, 0),
        (0, MIB2, 1),
        (0, 0, 0),
        (0, 1, 0),
    ] {
        let body = fuse::setup_mapping(file, len, false, window);
        let answer = guest.ask(fuse::SETUPMAPPING, node, &body);
        assert_eq!(answer.error, libc::EINVAL, "{file:#x} {len:#x} {window:#x}");
    }
    assert!(guest.window.take().is_empty());
}

#[test]
fn refused_map_is_an_error_for_its_request_and_nothing_else() {
    let daemon = Daemon::start(&[]);
    fs::write(daemon.path("file"), vec![7; 4 << 20]).unwrap();
    let mut guest = Guest::mount(&daemon);
    let (node, _) = guest.look_up("file");
    guest.window.refuse(Some(libc::ENOSPC));
    // The vhost crate does not hand the number on.
    assert_eq!(guest.map(node, 0, 0, false), libc::EIO);
    guest.window.refuse(None);
    assert_eq!(guest.map(node, 0, 0, false), 0);
    let handle = guest.open(node, libc::O_RDONLY);
    let read = guest.ask(fuse::READ, node, &fuse::read(handle, 0, 4));
    assert_eq!(read.body, [7; 4]);
    assert!(daemon.log().contains("cannot map 0x200000 bytes at 0x0"));
}

#[test]
fn forgotten_file_and_ended_session_leave_an_empty_window() {
    let daemon = Daemon::start(&[]);
    for name in ["one", "two"] {
        fs::write(daemon.path(name), vec![0; 2 << 20]).unwrap();
    }
    let mut guest = Guest::mount(&daemon);
    let (one, _) = guest.look_up("one");
    let (two, _) = guest.look_up("two");
    assert_eq!(guest.map(one, 0, 0, false), 0);
    assert_eq!(guest.map(two, 0, MIB2, false), 0);
    guest.window.take();
    let forget = fuse::request(fuse::FORGET, 99, one, &fuse::longs(&[1]));
    guest.urgent.submit(&guest.memory, &forget, 0);
    guest.urgent.wait(&guest.memory);
    assert_eq!(unmaps(&guest.window.take()), [(0, MIB2)]);
    assert_eq!(guest.ask(fuse::DESTROY, 0, &[]).error, 0);
    assert_eq!(unmaps(&guest.window.take()), [(MIB2, MIB2)]);
    let after = guest.ask(fuse::GETATTR, two, &fuse::get_attributes());
    assert_eq!(after.error, libc::ENOTCONN);
}

#[test]
fn growth_that_races_with_a_map_leaves_no_page_out() {
    let daemon = Daemon::start(&[]);
    fs::write(daemon.path("file"), "").unwrap();
    let mut guest = Guest::mount(&daemon);
    let (node, _) = guest.look_up("file");
    let handle = guest.open(node, libc::O_RDWR);
    let (mut mapped, mut unmapped) = (0, 0);
    for page in 0..256 {
        // One queue writes while the other maps.
        let body = fuse::write(handle, page * PAGE, &[7; 4096]);
        let write = fuse::request(fuse::WRITE, 7, node, &body);
        guest.urgent.submit(&guest.memory, &write, 100);
        assert_eq!(guest.map(node, 0, 0, page % 2 == 0), 0);
        let written = fuse::Answer::new(&guest.urgent.wait(&guest.memory));
        assert_eq!(written.error, 0);
        for asked in guest.window.take() {
            match asked {
                Asked::Map { len, .. } => mapped += len,
                Asked::Unmap { len, .. } => unmapped += len,
            }
        }
        assert_eq!(mapped - unmapped, (page + 1) * PAGE);
        let remove = fuse::remove_mappings(&[(0, MIB2)]);
        assert_eq!(guest.ask(fuse::REMOVEMAPPING, node, &remove).error, 0);
        let gone = guest.window.take();
        unmapped += unmaps(&gone).iter().map(|one| one.1).sum::<u64>();
        assert_eq!(mapped, unmapped);
    }
}
