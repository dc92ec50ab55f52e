//! Owns the test of a process whose control group has no memory left, and the record of what Linux
//! does then. A process of its own, in a group of its own, in the lab.

use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use vm_remap::Error;
use vm_remap::Prefault;
use vm_remap::Protection::ReadWrite;

use crate::alone::{start, word};
use crate::support::*;

const LEN: u64 = 64 * MIB;
const LIMIT: u64 = 24 * MIB;

/// A control group with little memory; gone when dropped.
struct Group(PathBuf);

impl Group {
    fn make(root: &Path) -> std::io::Result<Self> {
        fs::create_dir_all(root)?;
        // Elsewhere it is mounted already; there is one hierarchy.
        let _mounted = Command::new("mount")
            .args(["-t", "cgroup2", "none"])
            .arg(root)
            .status();
        fs::write(root.join("cgroup.subtree_control"), "+memory")?;
        let group = root.join("small");
        fs::create_dir_all(&group)?;
        fs::write(group.join("memory.max"), LIMIT.to_string())?;
        // A machine without swap has no such file.
        let _swap = fs::write(group.join("memory.swap.max"), "0");
        Ok(Self(group))
    }

    fn kills(&self) -> u64 {
        let events = fs::read_to_string(self.0.join("memory.events")).unwrap();
        let kills = events
            .lines()
            .find_map(|line| line.strip_prefix("oom_kill "));
        kills.unwrap().parse().unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _gone = fs::remove_dir(&self.0);
    }
}

/// In the small group: a prefault of more than there is, and then a look at what holds.
fn overstep(group: &Path) {
    let watched = Watched::open(2 * LEN);
    let small = memfd(MIB, 7);
    watched.map(pages(0, 64), &small, 7).unwrap();
    let large = memfd(LEN, 1);
    fs::write(group.join("cgroup.procs"), std::process::id().to_string()).unwrap();
    let range = pages(0, LEN / vm_remap::PAGE_SIZE);
    let filled = source(&large).prefault(Prefault::HostWrite);
    let error = watched
        .sees(range, Some(1), |window| {
            window.replace(range, &filled, ReadWrite)
        })
        .unwrap_err();
    assert!(matches!(error, Error::Prefault { .. }), "{error}");
}

#[test]
fn a_prefault_beyond_the_control_group_is_an_error_or_the_kernels_kill() {
    let test = "control_group::a_prefault_beyond_the_control_group_is_an_error_or_the_kernels_kill";
    let root = Path::new("/tmp/control-groups");
    if word().is_some_and(|word| word == "overstep") {
        overstep(&root.join("small"));
        return;
    }
    if !in_the_lab() {
        skip(
            test,
            "it makes a control group of the machine; it runs in the lab",
        );
        return;
    }
    let group = match Group::make(root) {
        Ok(group) => group,
        Err(error) => {
            skip(
                test,
                &format!("no control group with a limit of memory: {error}"),
            );
            return;
        }
    };
    let (status, _) = start(test, "overstep");
    // Either way nobody else is touched, and nothing is half-done: an error has changed nothing,
    // and of a process that is killed nothing is left.
    let killed = status.signal() == Some(libc::SIGKILL);
    assert!(killed || status.success(), "{status}");
    assert_eq!(group.kills() > 0, killed, "{status}");
    let outcome = if killed {
        "the kernel killed the process"
    } else {
        "an error"
    };
    let mut stderr = std::io::stderr();
    writeln!(stderr, "a prefault beyond the control group: {outcome}").unwrap();
}
