//! What the guest finds in the directory, and what it can do with it.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};

use super::daemon::Daemon;
use super::fuse;
use super::guest::Guest;

#[test]
fn device_says_its_tag_its_queues_and_its_window() {
    let daemon = Daemon::start(&["--threads", "3"]);
    let mut guest = Guest::connect(&daemon);
    let mut expected = b"test".to_vec();
    expected.resize(36, 0);
    expected.extend([3, 0, 0, 0]);
    assert_eq!(guest.configuration(0, 40), expected);
    assert_eq!(guest.configuration(36, 4), [3, 0, 0, 0]);
    use vhost::vhost_user::VhostUserFrontend as _;
    let window = guest.frontend.get_shmem_config().unwrap();
    assert_eq!((window.nregions, window.memory_sizes[0]), (1, 16 << 20));
    assert_eq!(guest.frontend.get_queue_num().unwrap(), 4);
}

#[test]
fn session_begins_with_large_requests_and_dax_for_each_file() {
    let daemon = Daemon::start(&[]);
    let mut guest = Guest::connect(&daemon);
    let answer = guest.ask(fuse::INIT, 0, &fuse::init());
    assert_eq!((answer.error, answer.u32_at(0)), (0, 7));
    let flags = answer.u32_at(12);
    let needed = 1 << 30 | 1 << 22 | 1 << 5;
    assert_eq!(flags & needed, needed, "{flags:#x}");
    let max_write = answer.u32_at(20);
    assert_eq!(max_write, 1 << 20);
    // 2^0 bytes: the daemon asks for no alignment of its own.
    assert_eq!(answer.u32_at(28) >> 16, 0);
    assert_eq!(answer.u32_at(32) & fuse::INIT_FLAGS_2, fuse::INIT_FLAGS_2);
    fs::write(daemon.path("file"), "x").unwrap();
    let entry = guest.ask(fuse::LOOKUP, fuse::ROOT, &fuse::name("file"));
    assert_eq!(entry.u32_at(124), 2, "FUSE_ATTR_DAX");
}

#[test]
fn files_are_read_written_renamed_and_removed_in_each_sandbox() {
    let test = "files_are_read_written_renamed_and_removed_in_each_sandbox";
    Daemon::in_each_sandbox(test, |daemon| {
        fs::write(daemon.path("there"), "already").unwrap();
        let mut guest = Guest::mount(&daemon);
        let (node, size) = guest.look_up("there");
        assert_eq!(size, 7);
        let handle = guest.open(node, libc::O_RDWR);
        let read = guest.ask(fuse::READ, node, &fuse::read(handle, 2, 100));
        assert_eq!((read.error, read.body.as_slice()), (0, &b"ready"[..]));
        let written = guest.ask(fuse::WRITE, node, &fuse::write(handle, 7, b" here"));
        assert_eq!((written.error, written.u32_at(0)), (0, 5));
        assert_eq!(fs::read(daemon.path("there")).unwrap(), b"already here");

        let mut create = fuse::words(&[libc::O_RDWR.cast_unsigned(), 0o644, 0, 0]);
        create.extend(fuse::name("new"));
        let created = guest.ask(fuse::CREATE, fuse::ROOT, &create);
        assert_eq!(created.error, 0);
        assert_eq!(
            fs::metadata(daemon.path("new")).unwrap().mode() & 0o777,
            0o644
        );
        let mut mkdir = fuse::words(&[0o755, 0]);
        mkdir.extend(fuse::name("dir"));
        let made = guest.ask(fuse::MKDIR, fuse::ROOT, &mkdir);
        let mut rename = fuse::longs(&[made.u64_at(0)]);
        rename.extend([fuse::name("new"), fuse::name("old")].concat());
        assert_eq!(guest.ask(fuse::RENAME, fuse::ROOT, &rename).error, 0);
        assert!(daemon.path("dir/old").is_file());
        let mut link = fuse::longs(&[created.u64_at(0)]);
        link.extend(fuse::name("linked"));
        assert_eq!(guest.ask(fuse::LINK, fuse::ROOT, &link).error, 0);
        assert_eq!(fs::metadata(daemon.path("linked")).unwrap().nlink(), 2);
        let unlinked = guest.ask(fuse::UNLINK, fuse::ROOT, &fuse::name("there"));
        assert_eq!(unlinked.error, 0);
        assert!(!daemon.path("there").exists());
        assert_eq!(guest.ask(fuse::STATFS, fuse::ROOT, &[]).error, 0);
    });
}

#[test]
fn directory_is_listed_without_itself_and_its_parent() {
    let daemon = Daemon::start(&[]);
    for name in ["one", "two"] {
        fs::write(daemon.path(name), name).unwrap();
    }
    let mut guest = Guest::mount(&daemon);
    let opened = guest.ask(fuse::OPENDIR, fuse::ROOT, &fuse::open(libc::O_DIRECTORY));
    let read = fuse::read(opened.u64_at(0), 0, 4096);
    let listed = guest.ask(fuse::READDIR, fuse::ROOT, &read);
    assert_eq!(listed.error, 0);
    let mut names = Vec::new();
    let mut at = 0;
    while at < listed.body.len() {
        let len = usize::try_from(listed.u32_at(at + 16)).unwrap();
        names.push(String::from_utf8(listed.body[at + 24..at + 24 + len].to_vec()).unwrap());
        at += (24 + len).next_multiple_of(8);
    }
    names.sort();
    assert_eq!(names, ["one", "two"]);
}

#[test]
fn readonly_share_cannot_be_changed_in_any_sandbox() {
    let test = "readonly_share_cannot_be_changed_in_any_sandbox";
    for sandbox in super::daemon::SANDBOXES {
        let home = tempfile::tempdir().unwrap();
        let arguments = ["--readonly", "--sandbox", sandbox];
        let daemon = match Daemon::start_in(home, &arguments) {
            Ok(daemon) => daemon,
            Err(reason) => {
                super::daemon::skip(test, &reason);
                continue;
            }
        };
        fs::write(daemon.path("file"), "kept").unwrap();
        let mut guest = Guest::mount(&daemon);
        let (node, _) = guest.look_up("file");
        let handle = guest.open(node, libc::O_RDONLY);
        let read = guest.ask(fuse::READ, node, &fuse::read(handle, 0, 10));
        assert_eq!(read.body, b"kept");
        let symlink = [fuse::name("new"), fuse::name("file")].concat();
        for (opcode, node, body) in [
            (fuse::OPEN, node, fuse::open(libc::O_RDWR)),
            (fuse::OPEN, node, fuse::open(libc::O_RDONLY | libc::O_TRUNC)),
            (fuse::WRITE, node, fuse::write(handle, 0, b"lost")),
            (fuse::SETATTR, node, fuse::set_size(0)),
            (fuse::UNLINK, fuse::ROOT, fuse::name("file")),
            (fuse::SYMLINK, fuse::ROOT, symlink),
            (
                fuse::SETUPMAPPING,
                node,
                fuse::setup_mapping(0, 2 << 20, true, 0),
            ),
        ] {
            let answer = guest.ask(opcode, node, &body);
            assert_eq!(answer.error, libc::EROFS, "{opcode} with {sandbox}");
        }
        assert_eq!(guest.map(node, 0, 0, false), 0);
        assert_eq!(fs::read(daemon.path("file")).unwrap(), b"kept");
    }
}

#[test]
fn indirect_descriptors_and_the_urgent_queue_are_served() {
    let daemon = Daemon::start(&[]);
    fs::write(daemon.path("file"), "x").unwrap();
    let mut guest = Guest::mount(&daemon);
    guest.queue.indirect = true;
    let (node, _) = guest.look_up("file");
    let forget = fuse::request(fuse::FORGET, 99, node, &fuse::longs(&[1]));
    guest.urgent.submit(&guest.memory, &forget, 0);
    assert!(guest.urgent.wait(&guest.memory).is_empty());
    let gone = guest.ask(fuse::GETATTR, node, &fuse::get_attributes());
    assert_eq!(gone.error, libc::ESTALE);
}

#[test]
fn nonsense_is_answered_with_an_error_and_the_next_request_is_served() {
    let daemon = Daemon::start(&[]);
    symlink("elsewhere", daemon.path("link")).unwrap();
    let mut guest = Guest::mount(&daemon);
    for (opcode, body) in [
        (fuse::LOOKUP, vec![]),
        (fuse::LOOKUP, b"no end".to_vec()),
        (fuse::SETUPMAPPING, vec![1, 2, 3]),
        (fuse::REMOVEMAPPING, fuse::words(&[1 << 31])),
        (fuse::RENAME, fuse::longs(&[1])),
        (4711, vec![0; 64]),
    ] {
        let answer = guest.ask(opcode, fuse::ROOT, &body);
        assert_ne!(answer.error, 0, "{opcode}");
    }
    // No header, no room for the answer, a header that claims to be longer than it is.
    guest.queue.submit(&guest.memory, &[1, 2, 3], 100);
    assert!(guest.queue.wait(&guest.memory).is_empty());
    let request = fuse::request(fuse::GETATTR, 7, fuse::ROOT, &fuse::get_attributes());
    guest.queue.submit(&guest.memory, &request, 8);
    assert!(guest.queue.wait(&guest.memory).len() <= 8);
    let mut long = fuse::request(fuse::LOOKUP, 9, fuse::ROOT, &fuse::name("link"));
    long[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    guest.queue.submit(&guest.memory, &long, 100);
    guest.queue.wait(&guest.memory);

    let (link, _) = guest.look_up("link");
    let target = guest.ask(fuse::READLINK, link, &[]);
    assert_eq!(target.body, b"elsewhere");
}

#[test]
fn a_broken_ring_stops_its_queue_and_no_other() {
    let daemon = Daemon::start(&[]);
    let mut guest = Guest::mount(&daemon);
    guest.urgent.publish(&guest.memory, 0x8000);
    guest.urgent.offer(&guest.memory, 9999);
    let answer = guest.ask(fuse::GETATTR, fuse::ROOT, &fuse::get_attributes());
    assert_eq!(answer.error, 0);
}

#[test]
fn ring_that_is_stopped_goes_on_where_it_was() {
    use vhost::VhostBackend as _;
    let daemon = Daemon::start(&[]);
    fs::write(daemon.path("file"), "x").unwrap();
    let mut guest = Guest::mount(&daemon);
    guest.look_up("file");
    let base = guest.frontend.get_vring_base(1).unwrap();
    assert_eq!(base, u32::from(guest.queue.submitted()));
    let request = fuse::request(fuse::GETATTR, 7, fuse::ROOT, &fuse::get_attributes());
    guest.queue.submit(&guest.memory, &request, 200);
    guest.frontend.get_vring_base(0).unwrap();
    assert!(!guest.queue.is_done(&guest.memory), "it has been stopped");
    guest.queue.begin(&mut guest.frontend, 1, base);
    assert_eq!(fuse::Answer::new(&guest.queue.wait(&guest.memory)).error, 0);
    guest.look_up("file");
}
