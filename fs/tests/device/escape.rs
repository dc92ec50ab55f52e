//! What a guest that wants out finds.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::daemon::{Daemon, skip};
use super::fuse;
use super::guest::Guest;

#[test]
fn names_that_lead_elsewhere_are_refused_in_each_sandbox() {
    let test = "names_that_lead_elsewhere_are_refused_in_each_sandbox";
    Daemon::in_each_sandbox(test, |daemon| {
        fs::write(daemon.outside("secret"), "secret").unwrap();
        fs::create_dir(daemon.path("dir")).unwrap();
        fs::write(daemon.path("dir/file"), "").unwrap();
        let mut guest = Guest::mount(&daemon);
        let (dir, _) = guest.look_up("dir");
        for name in ["..", ".", "", "../secret", "/etc/passwd", "dir/file"] {
            for node in [fuse::ROOT, dir] {
                let answer = guest.ask(fuse::LOOKUP, node, &fuse::name(name));
                assert_eq!(answer.error, libc::EINVAL, "look up {name:?}");
                let mut mkdir = fuse::words(&[0o755, 0]);
                mkdir.extend(fuse::name(name));
                let made = guest.ask(fuse::MKDIR, node, &mkdir);
                assert_eq!(made.error, libc::EINVAL, "make {name:?}");
                let removed = guest.ask(fuse::UNLINK, node, &fuse::name(name));
                assert_eq!(removed.error, libc::EINVAL, "remove {name:?}");
                let mut rename = fuse::longs(&[fuse::ROOT]);
                rename.extend([fuse::name("dir"), fuse::name(name)].concat());
                let renamed = guest.ask(fuse::RENAME, fuse::ROOT, &rename);
                assert_eq!(renamed.error, libc::EINVAL, "rename to {name:?}");
            }
        }
    });
}

#[test]
fn directory_that_is_moved_out_does_not_take_the_guest_along() {
    let test = "directory_that_is_moved_out_does_not_take_the_guest_along";
    Daemon::in_each_sandbox(test, |daemon| {
        fs::create_dir(daemon.path("dir")).unwrap();
        fs::write(daemon.outside("secret"), "secret").unwrap();
        let mut guest = Guest::mount(&daemon);
        let (dir, _) = guest.look_up("dir");
        fs::rename(daemon.path("dir"), daemon.outside("moved")).unwrap();
        let parent = guest.ask(fuse::LOOKUP, dir, &fuse::name(".."));
        assert_eq!(parent.error, libc::EINVAL);
    });
}

#[test]
fn links_are_links_and_are_never_followed_by_the_daemon() {
    let test = "links_are_links_and_are_never_followed_by_the_daemon";
    Daemon::in_each_sandbox(test, |daemon| {
        fs::write(daemon.outside("secret"), "secret").unwrap();
        symlink(daemon.outside("secret"), daemon.path("absolute")).unwrap();
        symlink("../secret", daemon.path("relative")).unwrap();
        symlink("..", daemon.path("parent")).unwrap();
        let mut guest = Guest::mount(&daemon);
        for name in ["absolute", "relative", "parent"] {
            let (node, _) = guest.look_up(name);
            for (opcode, body) in [
                (fuse::OPEN, fuse::open(libc::O_RDONLY)),
                (fuse::OPEN, fuse::open(libc::O_RDWR)),
                (fuse::OPENDIR, fuse::open(libc::O_DIRECTORY)),
                (fuse::LOOKUP, fuse::name("secret")),
                (
                    fuse::SETUPMAPPING,
                    fuse::setup_mapping(0, 2 << 20, false, 0),
                ),
            ] {
                let answer = guest.ask(opcode, node, &body);
                assert_ne!(answer.error, 0, "{opcode} through {name}");
            }
            assert_eq!(guest.ask(fuse::READLINK, node, &[]).error, 0);
            let attributes = guest.ask(fuse::GETATTR, node, &fuse::get_attributes());
            let kind = attributes.u32_at(16 + 60) & libc::S_IFMT;
            assert_eq!(kind, libc::S_IFLNK, "{name}");
        }
        assert!(guest.window.take().is_empty());
        let mut create = fuse::words(&[libc::O_RDWR.cast_unsigned(), 0o644, 0, 0]);
        create.extend(fuse::name("relative"));
        let created = guest.ask(fuse::CREATE, fuse::ROOT, &create);
        assert_ne!(created.error, 0, "create through a link");
        assert_eq!(fs::read(daemon.outside("secret")).unwrap(), b"secret");
    });
}

#[test]
fn links_that_come_and_go_never_show_what_they_name() {
    let test = "links_that_come_and_go_never_show_what_they_name";
    Daemon::in_each_sandbox(test, |daemon| {
        fs::create_dir(daemon.outside("other")).unwrap();
        fs::write(daemon.outside("other/file"), "secret").unwrap();
        fs::create_dir(daemon.path("real")).unwrap();
        fs::write(daemon.path("real/file"), "public").unwrap();
        symlink("../other", daemon.path("link")).unwrap();
        let mut guest = Guest::mount(&daemon);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let (real, link) = (daemon.path("real"), daemon.path("link"));
                while !done.load(Ordering::Relaxed) {
                    rustix::fs::renameat_with(
                        rustix::fs::CWD,
                        &real,
                        rustix::fs::CWD,
                        &link,
                        rustix::fs::RenameFlags::EXCHANGE,
                    )
                    .unwrap();
                }
            });
            for _ in 0..300 {
                let dir = guest.ask(fuse::LOOKUP, fuse::ROOT, &fuse::name("real"));
                let file = guest.ask(fuse::LOOKUP, dir.u64_at(0), &fuse::name("file"));
                if file.error != 0 {
                    continue;
                }
                let node = file.u64_at(0);
                let handle = guest.open(node, libc::O_RDONLY);
                let read = guest.ask(fuse::READ, node, &fuse::read(handle, 0, 6));
                assert_eq!(read.body, b"public");
            }
            done.store(true, Ordering::Relaxed);
        });
    });
}

#[test]
fn special_files_are_not_opened() {
    let daemon = Daemon::start(&[]);
    let made = std::process::Command::new("mkfifo")
        .arg(daemon.path("fifo"))
        .status();
    if !made.is_ok_and(|status| status.success()) {
        return skip("special_files_are_not_opened", "no mkfifo");
    }
    let mut guest = Guest::mount(&daemon);
    let (node, _) = guest.look_up("fifo");
    let opened = guest.ask(fuse::OPEN, node, &fuse::open(libc::O_RDONLY));
    assert_eq!(opened.error, libc::EBADF);
    let mapped = guest.map(node, 0, 0, false);
    assert_eq!(mapped, libc::EBADF);
}

#[test]
fn namespace_holds_the_directory_and_nothing_else() {
    let test = "namespace_holds_the_directory_and_nothing_else";
    let home = tempfile::tempdir().unwrap();
    let daemon = match Daemon::start_in(home, &["--sandbox", "namespace"]) {
        Ok(daemon) => daemon,
        Err(reason) => return skip(test, &reason),
    };
    fs::write(daemon.path("inside"), "").unwrap();
    // The mount proves that the sandbox has been entered.
    let _guest = Guest::mount(&daemon);
    let pid = daemon.pid().as_raw_nonzero();
    let root: Vec<_> = fs::read_dir(format!("/proc/{pid}/root"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(root, ["inside"]);
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
}

/// A directory that the host had made read-only was writable inside: the mounts began anew.
#[test]
fn namespace_gives_nothing_back_that_the_host_has_taken_from_a_mount() {
    let test = "namespace_gives_nothing_back_that_the_host_has_taken_from_a_mount";
    let script = "mount -t tmpfs below \"$0\"; mkdir \"$0/in it\"; \
                  mount -t tmpfs within \"$0/in it\"; mount --bind \"$0\" \"$0\"; \
                  mount -t tmpfs within \"$0/in it\"; \
                  mount -o remount,bind,ro,noexec \"$0\"";
    let daemon = match Daemon::start_after(script, &["--sandbox", "namespace"]) {
        Ok(daemon) => daemon,
        Err(reason) => return skip(test, &reason),
    };
    // The mount proves that the sandbox has been entered.
    let mut guest = Guest::mount(&daemon);
    let pid = daemon.pid().as_raw_nonzero();
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let options = |place: &str| {
        let mut lines = mounts.lines().map(|line| line.split(' '));
        lines.find_map(|mut words| {
            let found = words.nth(4) == Some(place);
            found.then(|| words.next().unwrap().to_owned())
        })
    };
    let own = options("/").unwrap();
    for option in ["ro", "noexec", "nosuid", "nodev"] {
        assert!(own.split(',').any(|has| has == option), "{option}: {own}");
    }
    let below = options("/in\\040it").unwrap();
    for option in ["rw", "nosuid", "nodev"] {
        assert!(
            below.split(',').any(|has| has == option),
            "{option}: {below}"
        );
    }
    let mut mkdir = fuse::words(&[0o755, 0]);
    mkdir.extend(fuse::name("new"));
    let made = guest.ask(fuse::MKDIR, fuse::ROOT, &mkdir);
    assert_eq!(made.error, libc::EROFS);
}

#[test]
fn needless_capabilities_and_new_privileges_are_gone() {
    let daemon = Daemon::start(&[]);
    let _guest = Guest::mount(&daemon);
    let pid = daemon.pid().as_raw_nonzero();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!(field("NoNewPrivs"), "1");
    // Chown, both DAC ones, fowner, fsetid, setgid, setuid.
    let needed = 0b1101_1111;
    for set in ["CapPrm", "CapEff"] {
        let held = u64::from_str_radix(&field(set), 16).unwrap();
        assert_eq!(held & !needed, 0, "{set}: {held:#x}");
    }
}

#[test]
fn user_without_rights_is_kept_inside_by_landlock() {
    let daemon = match Daemon::start_as_nobody(&[]) {
        Ok(daemon) => daemon,
        Err(reason) => return skip("user_without_rights_is_kept_inside_by_landlock", &reason),
    };
    assert!(
        daemon.log().contains("inside by Landlock"),
        "{}",
        daemon.log()
    );
    fs::write(daemon.path("file"), vec![7; 4096]).unwrap();
    let mut guest = Guest::mount(&daemon);
    let (node, _) = guest.look_up("file");
    assert_eq!(guest.map(node, 0, 0, false), 0);
    assert_eq!(guest.window.take()[0].map(), (0, 0, 4096, false));
    let mut create = fuse::words(&[libc::O_RDWR.cast_unsigned(), 0o644, 0, 0]);
    create.extend(fuse::name("new"));
    assert_eq!(guest.ask(fuse::CREATE, fuse::ROOT, &create).error, 0);
    // It may not write what it does not own.
    let denied = guest.ask(fuse::OPEN, node, &fuse::open(libc::O_RDWR));
    assert_eq!(denied.error, libc::EACCES);
}

#[test]
fn sandbox_that_cannot_be_had_is_refused_before_anybody_is_served() {
    let test = "sandbox_that_cannot_be_had_is_refused_before_anybody_is_served";
    if !rustix::process::geteuid().is_root() {
        return skip(test, "only root can become nobody");
    }
    let said = Daemon::start_as_nobody(&["--sandbox", "namespace"]).err();
    let text = said.unwrap_or_default();
    assert!(
        text.contains(
            "a mount namespace takes root (CAP_SYS_ADMIN); run as root, or say --sandbox"
        ),
        "{text}"
    );
    let root = ["--sandbox", "namespace", "--source", "/"];
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_vm-remap-fs"))
        .args(root)
        .args(["--socket", "/nowhere/fs.sock"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("share a directory below it"), "{text}");
}
