//! How the daemon begins and ends, and what a guest finds that outlives it.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::sync::mpsc::channel;
use std::thread;

use rustix::process::{Signal, kill_process};

use super::daemon::Daemon;
use super::fuse;
use super::guest::Guest;

fn refusal(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_vm-remap-fs"))
        .args(arguments)
        .output()
        .unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn frontend_that_goes_ends_the_daemon_well_with_its_counts() {
    let mut daemon = Daemon::start(&[]);
    fs::write(daemon.path("file"), vec![0; 8192]).unwrap();
    let mut guest = Guest::mount(&daemon);
    assert!(!daemon.socket().exists(), "the path has gone");
    let (node, _) = guest.look_up("file");
    assert_eq!(guest.map(node, 0, 0, false), 0);
    drop(guest);
    assert!(daemon.wait().success(), "{}", daemon.log());
    let counts =
        "3 requests, 1 maps of 8192 bytes, 0 unmaps, 0 refused by the frontend, 0 complaints";
    assert!(daemon.log().contains(counts), "{}", daemon.log());
}

#[test]
fn signal_ends_the_daemon_well_before_and_while_it_serves() {
    let mut waiting = Daemon::start(&[]);
    kill_process(waiting.pid(), Signal::TERM).unwrap();
    assert!(waiting.wait().success(), "{}", waiting.log());
    assert!(!waiting.socket().exists());

    let mut serving = Daemon::start(&[]);
    let _guest = Guest::mount(&serving);
    kill_process(serving.pid(), Signal::INT).unwrap();
    assert!(serving.wait().success(), "{}", serving.log());
    assert!(serving.log().contains("1 requests"), "{}", serving.log());
}

#[test]
fn signal_ends_the_daemon_also_while_a_guest_never_stops_asking() {
    let mut daemon = Daemon::start(&[]);
    // A request that takes longer than whoever asks may be kept from a CPU.
    for number in 0..5000 {
        fs::write(daemon.path(&number.to_string()), "").unwrap();
    }
    let mut guest = Guest::mount(&daemon);
    let opened = guest.ask(fuse::OPENDIR, fuse::ROOT, &fuse::open(libc::O_DIRECTORY));
    let list = fuse::read(opened.u64_at(0), 0, 1 << 19);
    assert_eq!(guest.ask(fuse::READDIR, fuse::ROOT, &list).error, 0);
    let (mut queue, memory) = (guest.queue, guest.memory);
    let (busy, is_busy) = channel();
    // The last request again and again, for as long as this process lives.
    thread::spawn(move || {
        for round in 0_u64.. {
            queue.stay_ahead(&memory);
            if round == 100 {
                busy.send(()).unwrap();
            }
        }
    });
    is_busy.recv().unwrap();
    kill_process(daemon.pid(), Signal::TERM).unwrap();
    assert!(daemon.wait().success(), "{}", daemon.log());
}

#[test]
fn guest_that_outlives_its_daemon_gets_a_clear_error_until_it_mounts_anew() {
    let first = Daemon::start(&[]);
    fs::write(first.path("file"), "content").unwrap();
    fs::write(first.path("other"), "other").unwrap();
    let mut guest = Guest::mount(&first);
    let (node, _) = guest.look_up("file");
    let handle = guest.open(node, libc::O_RDWR);
    let home = first.kill();

    // The VMM connects the device anew; the guest has noticed nothing.
    let second = Daemon::start_in(home, &[]).unwrap();
    let mut guest = Guest::connect(&second);
    for (opcode, body) in [
        (fuse::GETATTR, fuse::get_attributes()),
        (fuse::LOOKUP, fuse::name("file")),
        (fuse::READ, fuse::read(handle, 0, 10)),
        (fuse::WRITE, fuse::write(handle, 0, b"wrong file?")),
        (fuse::SETUPMAPPING, fuse::setup_mapping(0, 2 << 20, true, 0)),
        (fuse::REMOVEMAPPING, fuse::remove_mappings(&[(0, 2 << 20)])),
    ] {
        assert_eq!(guest.ask(opcode, node, &body).error, libc::ENOTCONN);
    }
    let forget = fuse::request(fuse::FORGET, 99, node, &fuse::longs(&[1]));
    guest.urgent.submit(&guest.memory, &forget, 0);
    guest.urgent.wait(&guest.memory);
    assert!(guest.window.take().is_empty());
    assert_eq!(fs::read(second.path("file")).unwrap(), b"content");

    assert_eq!(guest.ask(fuse::INIT, 0, &fuse::init()).error, 0);
    let (node, size) = guest.look_up("file");
    assert_eq!(size, 7);
    assert_eq!(guest.map(node, 0, 0, false), 0);
}

#[test]
fn unknown_files_and_handles_are_told_apart() {
    let daemon = Daemon::start(&[]);
    fs::write(daemon.path("file"), "x").unwrap();
    let mut guest = Guest::mount(&daemon);
    let (node, _) = guest.look_up("file");
    for unknown in [0, 4711, u64::MAX] {
        for (opcode, body) in [
            (fuse::GETATTR, fuse::get_attributes()),
            (fuse::LOOKUP, fuse::name("file")),
            (fuse::OPEN, fuse::open(libc::O_RDONLY)),
            (fuse::READ, fuse::read(1, 0, 10)),
            (
                fuse::SETUPMAPPING,
                fuse::setup_mapping(0, 2 << 20, false, 0),
            ),
        ] {
            let answer = guest.ask(opcode, unknown, &body);
            assert_eq!(answer.error, libc::ESTALE, "{opcode} of {unknown:#x}");
        }
    }
    let read = guest.ask(fuse::READ, node, &fuse::read(4711, 0, 10));
    assert_eq!(read.error, libc::EBADF);
}

#[test]
fn new_session_in_the_same_daemon_begins_empty() {
    let daemon = Daemon::start(&[]);
    fs::write(daemon.path("file"), "x").unwrap();
    let mut guest = Guest::mount(&daemon);
    let (node, _) = guest.look_up("file");
    assert_eq!(guest.map(node, 0, 0, false), 0);
    guest.window.take();
    assert_eq!(guest.ask(fuse::INIT, 0, &fuse::init()).error, 0);
    assert_eq!(guest.window.take()[0].unmap(), (0, 4096));
    // A VMM that resets the device has emptied the window before.
    let (again, _) = guest.look_up("file");
    assert_eq!(guest.map(again, 0, 0, false), 0);
    guest.window.refuse(Some(libc::ENOENT));
    guest.begin();
    guest.window.refuse(None);
    assert!(!daemon.log().contains("cannot unmap"), "{}", daemon.log());
    let stale = guest.ask(fuse::GETATTR, node, &fuse::get_attributes());
    assert_eq!(stale.error, libc::ESTALE);
    guest.look_up("file");
}

#[test]
fn inherited_socket_is_listened_on() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("inherited.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let fd = listener.as_raw_fd();
    // It would close on exec.
    rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty()).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_vm-remap-fs"))
        .args(["--fd", &fd.to_string(), "--source"])
        .arg(home.path())
        .spawn()
        .unwrap();
    use vhost::VhostBackend as _;
    let frontend = vhost::vhost_user::Frontend::connect(&path, 1).unwrap();
    frontend.set_owner().unwrap();
    assert_ne!(frontend.get_features().unwrap(), 0);
    drop(frontend);
    assert!(child.wait().unwrap().success());
}

#[test]
fn vmm_starts_the_daemon_as_its_child() {
    let home = tempfile::tempdir().unwrap();
    let options = vm_remap_fs::Options {
        socket: None,
        fd: None,
        source: home.path().to_owned(),
        tag: "child".to_owned(),
        window: 2 << 20,
        readonly: true,
        cache: vm_remap_fs::CachePolicyOption::Never,
        threads: 2,
        sandbox: vm_remap_fs::Sandbox::Auto,
    };
    let program = Command::new(env!("CARGO_BIN_EXE_vm-remap-fs"));
    let (mut child, connection) = vm_remap_fs::start(program, options).unwrap();
    use vhost::VhostBackend as _;
    use vhost::vhost_user::VhostUserFrontend as _;
    let mut frontend = vhost::vhost_user::Frontend::from_stream(connection, 3);
    frontend.set_owner().unwrap();
    let features = frontend.get_features().unwrap();
    let protocol = frontend.get_protocol_features().unwrap();
    frontend.set_protocol_features(protocol).unwrap();
    frontend.set_features(features).unwrap();
    assert_eq!(frontend.get_queue_num().unwrap(), 3);
    assert_eq!(
        frontend.get_shmem_config().unwrap().memory_sizes[0],
        2 << 20
    );
    drop(frontend);
    assert!(child.wait().unwrap().success());
}

#[test]
fn what_cannot_be_served_is_said_with_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    let path = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("file"), "x").unwrap();
    let _taken = UnixListener::bind(path("taken.sock")).unwrap();
    let socket = path("new.sock");
    for (arguments, says) in [
        (
            vec!["--socket", &socket, "--source", "/nowhere"],
            "cannot share /nowhere: name a directory that exists",
        ),
        (
            vec!["--socket", &socket, "--source", &path("file")],
            "name a directory",
        ),
        (
            vec!["--socket", &path("file"), "--source", "/tmp"],
            "something else is there; remove it or name another path",
        ),
        (
            vec!["--socket", &path("taken.sock"), "--source", "/tmp"],
            "the socket of a daemon that runs is there",
        ),
        (
            vec!["--fd", "0", "--source", "/tmp"],
            "it is no listening unix socket",
        ),
        (
            vec!["--fd", "999", "--source", "/tmp"],
            "cannot listen on descriptor 999",
        ),
    ] {
        let said = refusal(&arguments);
        assert!(said.contains(says), "{arguments:?}: {said}");
    }
    assert_eq!(fs::read(path("file")).unwrap(), b"x");
}

#[test]
fn socket_that_a_killed_daemon_left_is_taken_over() {
    let home = Daemon::start(&[]).kill();
    assert!(home.path().join("fs.sock").exists());
    let daemon = Daemon::start_in(home, &[]).unwrap();
    Guest::mount(&daemon);
}

#[test]
fn help_says_how_it_is_used() {
    let output = Command::new(env!("CARGO_BIN_EXE_vm-remap-fs"))
        .arg("--help")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for says in [
        "mount -t virtiofs -o dax home /mnt",
        "--socket <PATH>",
        "--sandbox <HOW>",
        "CONFIG_FUSE_DAX",
    ] {
        assert!(text.contains(says), "{says}: {text}");
    }
}

#[test]
fn flags_of_a_read_do_not_cost_a_handle_its_descriptor() {
    let daemon = Daemon::start(&[]);
    fs::write(daemon.path("file"), "content").unwrap();
    let mut guest = Guest::mount(&daemon);
    let opened = guest.ask(fuse::OPENDIR, fuse::ROOT, &fuse::open(libc::O_DIRECTORY));
    let handle = opened.u64_at(0);
    // No directory takes them.
    let flags = (libc::O_DIRECT | libc::O_ASYNC).cast_unsigned();
    let mut read = fuse::read(handle, 0, 10);
    read[32..36].copy_from_slice(&flags.to_le_bytes());
    assert_ne!(guest.ask(fuse::READ, fuse::ROOT, &read).error, 0);
    let mut write = fuse::write(handle, 0, b"x");
    write[32..36].copy_from_slice(&flags.to_le_bytes());
    assert_ne!(guest.ask(fuse::WRITE, fuse::ROOT, &write).error, 0);
    // The number is not another file's now.
    guest.look_up("file");
    let list = fuse::read(handle, 0, 4096);
    let listed = guest.ask(fuse::READDIR, fuse::ROOT, &list);
    assert_eq!((listed.error, listed.body.len()), (0, 32));
    assert_eq!(guest.ask(fuse::DESTROY, 0, &[]).error, 0);
    guest.begin();
}
