//! Owns the proof that a stock Linux drives the devices of `vm-remap run`: it mounts a share with
//! DAX, uses files larger than the window, outlives its daemon, and mounts the share of the next one.
//! Never says how a driver works.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod console;
mod mapper;
mod zaps;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use console::Console;
use mapper::Mapper;
use zaps::RootZaps;

const KERNEL: &str = "/guest/vmlinuz";
const INITRAMFS: &str = "/guest/initramfs";

/// Three times the window.
const LARGE: u32 = 24 << 20;

const MOUNT: &str = "mkdir -p /mnt; mount -t virtiofs -o dax=always share /mnt; echo $?";

/// Takes the driver from the device, which resets it.
const UNBIND: &str = "cd /sys/bus/virtio/drivers/virtiofs; echo virtio0 >unbind";

/// A directory with a large file, and a guest that shares it.
struct Stage {
    source: tempfile::TempDir,
    guest: Console,
}

impl Stage {
    fn boot(test: &str, cpus: &str, memory: &str) -> Option<Self> {
        if !Path::new(KERNEL).exists() {
            console::skip(test, "there is no kernel for a guest: the lab has one");
            return None;
        }
        let source = tempfile::tempdir().unwrap();
        let words: Vec<u8> = (0..LARGE / 4).flat_map(u32::to_le_bytes).collect();
        fs::write(source.path().join("large"), words).unwrap();
        let device = format!("tag=share,source={},dax=on", source.path().display());
        let mut guest = Console::start(&[
            "--kernel",
            KERNEL,
            "--initramfs",
            INITRAMFS,
            "--cmdline",
            "console=ttyS0 quiet",
            "--cpus",
            cpus,
            "--memory",
            memory,
            "--fs",
            &device,
        ]);
        guest.wait_for("ready");
        // A machine check is for one CPU, whatever the others are at.
        assert_eq!(guest.ask("grep -c ^processor /proc/cpuinfo"), cpus);
        assert_eq!(guest.ask(MOUNT), "0");
        Some(Self { source, guest })
    }

    /// Both sides have the same in `file`.
    fn agree(&mut self, file: &str) {
        let path = self.source.path().join(file);
        let output = Command::new("md5sum").arg(path).output().unwrap();
        let here = String::from_utf8(output.stdout).unwrap();
        let there = self.guest.ask(&format!("md5sum </mnt/{file}"));
        let sum = |text: &str| text.split(' ').next().unwrap().to_owned();
        assert_eq!(sum(&there), sum(&here), "{file}");
    }

    fn does(&mut self, command: &str) {
        assert_eq!(self.guest.ask(&format!("{command}; echo $?")), "0");
    }

    fn open(&self, file: &str) -> File {
        let path = self.source.path().join(file);
        File::options().read(true).write(true).open(path).unwrap()
    }

    /// Files that do not fit into the window, so that the guest takes ranges back.
    fn use_large_files(&mut self) {
        self.agree("large");
        self.does("cp /mnt/large /mnt/copy");
        // Over what is there, so through the window, and backwards.
        self.does("dd if=/mnt/large of=/mnt/copy bs=4M skip=5 seek=1 count=1 conv=notrunc");
        self.does("dd if=/mnt/large of=/mnt/copy bs=4M skip=1 seek=4 count=1 conv=notrunc,fsync");
        self.agree("copy");
        assert_ne!(self.byte("copy", 4 << 20), self.byte("large", 4 << 20));
        self.does("truncate -s 9000001 /mnt/copy && mv /mnt/copy /mnt/moved");
        assert_eq!(self.open("moved").metadata().unwrap().len(), 9_000_001);
        self.agree("moved");
    }

    /// Four bytes, in truth.
    fn byte(&self, file: &str, offset: u64) -> [u8; 4] {
        let mut bytes = [0; 4];
        self.open(file).read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    /// A file that both sides see and change at once, and that shrinks under the guest.
    fn share_a_mapping(&mut self) {
        fs::write(self.source.path().join("mapped"), [b'a'; 8192]).unwrap();
        let mut mapper = Mapper::start(&mut self.guest, "/mnt/mapped");
        let guest = &mut self.guest;
        assert_eq!(mapper.ask(guest, 5000, None), "97");
        let path = self.source.path().join("mapped");
        let file = File::options().read(true).write(true).open(path).unwrap();
        file.write_all_at(b"b", 5000).unwrap();
        assert_eq!(mapper.ask(guest, 5000, None), "98");
        assert_eq!(mapper.ask(guest, 6000, Some(b'c')), "99");
        let mut byte = [0];
        file.read_exact_at(&mut byte, 6000).unwrap();
        assert_eq!(byte, *b"c");
        file.set_len(0).unwrap();
        // The process ends, and nothing else does; but for a kernel that was built without machine
        // checks (Debian's 6.1 for clouds): there it finds what an open bus has.
        let can_be_told = guest.ask("test -d /sys/devices/system/machinecheck; echo $?") == "0";
        let expected = if can_be_told { SIGBUS } else { "255" };
        let found = mapper.ask(guest, 5000, None);
        let output = guest.ask("cat /tmp/mapped | tr '\\n' ' '");
        assert_eq!(found, expected, "{output}");
        mapper.end(guest);
        // What an inode keeps of a mapping would outlive the device that is unbound later on, and
        // Linux takes no care of that (fs/dax.c `dax_disassociate_entry`, 6.12: a page fault).
        self.does("rm /mnt/mapped");
    }
}

/// How the shell tells of a process that SIGBUS has ended.
const SIGBUS: &str = "ended 135";

/// The process that `vm-remap run` has started to serve the share.
fn daemon(guest: &Console) -> rustix::process::Pid {
    let id = guest.id();
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    let child = children.split_whitespace().next().unwrap();
    rustix::process::Pid::from_raw(child.parse().unwrap()).unwrap()
}

/// The daemon has no way to the VM, and what is typed at the VMM's terminal is not for it.
fn is_apart(guest: &Console) {
    let child = daemon(guest);
    assert_eq!(rustix::process::getpgid(Some(child)).unwrap(), child);
    let open = fs::read_dir(format!("/proc/{}/fd", child.as_raw_nonzero())).unwrap();
    let open: Vec<_> = open
        .map(|entry| fs::read_link(entry.unwrap().path()).unwrap_or_default())
        .collect();
    assert!(!open.is_empty());
    let text = format!("{open:?}");
    assert!(!text.contains("kvm"), "{text}");
}

fn kill_daemon(guest: &Console) {
    let child = daemon(guest);
    rustix::process::kill_process(child, rustix::process::Signal::KILL).unwrap();
}

/// How often something was mapped into the window, from the log of the VMM.
fn maps(log: &str) -> u32 {
    let maps = log.split("maps: ").nth(1).unwrap();
    maps.split(',').next().unwrap().parse().unwrap()
}

#[test]
fn linux_maps_files_of_a_share_and_outlives_its_daemon() {
    let name = "linux_maps_files_of_a_share_and_outlives_its_daemon";
    let Some(mut stage) = Stage::boot(name, "2", "size=256M,window=8M,backend=fixed") else {
        return;
    };
    let zaps = RootZaps::count_from_now();
    Mapper::put(stage.source.path());
    stage.use_large_files();
    stage.share_a_mapping();
    assert_eq!(zaps.count(), 0);
    stage.does("echo written >/mnt/new; sync");
    let there = stage.source.path().join("new");
    assert_eq!(fs::read_to_string(there).unwrap(), "written\n");
    // Nobody in the guest waits for the daemon when it goes.
    let guest = &mut stage.guest;
    is_apart(guest);
    kill_daemon(guest);
    guest.wait_for_log("the daemon is gone");
    assert_eq!(guest.ask("echo $((6 * 7))"), "42");
    guest.wait_for_log("there is a daemon again");
    assert_eq!(guest.ask(&format!("{UNBIND}; echo $?")), "0");
    let error = guest.ask("cat /mnt/new 2>&1");
    assert!(error.ends_with("not connected"), "{error}");
    assert_eq!(guest.ask("umount /mnt; echo virtio0 >bind; echo $?"), "0");
    assert_eq!(guest.ask(MOUNT), "0");
    stage.agree("moved");
    assert_eq!(zaps.count(), 0);
    let log = stage.guest.power_off();
    assert!(log.contains("the guest powered off"), "{log}");
    assert!(log.contains("has ended with signal: 9"), "{log}");
    // The bytes came through the window, each file of more than its size at least once.
    assert!(maps(&log) > 24, "{log}");
}

#[test]
fn the_same_through_memslots_empties_the_guest_again_and_again() {
    let name = "the_same_through_memslots_empties_the_guest_again_and_again";
    let memory = "size=256M,window=8M,backend=memslot,zap=all";
    let Some(mut stage) = Stage::boot(name, "1", memory) else {
        return;
    };
    let zaps = RootZaps::count_from_now();
    stage.agree("large");
    stage.agree("large");
    let count = zaps.count();
    assert!(count > 10, "{count}");
    let log = stage.guest.power_off();
    assert!(maps(&log) > 12, "{log}");
}
