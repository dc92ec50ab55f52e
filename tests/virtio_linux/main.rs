//! Owns the proof that a stock Linux drives the devices of `vm-remap run`: it mounts a share with
//! DAX, outlives its daemon, and mounts the share of the next one. Never says how a driver works.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod console;
mod share;

use std::fs;
use std::path::Path;

use console::Console;
use share::Share;

const KERNEL: &str = "/guest/vmlinuz";
const INITRAMFS: &str = "/guest/initramfs";

/// Takes the driver from the device, which resets it.
const UNBIND: &str = "cd /sys/bus/virtio/drivers/virtiofs; echo virtio0 >unbind";

/// What md5sum says of the numbers from 0 to 2^20 - 1, of four bytes each, the lowest first.
const WORDS: &str = "cfba5d64ae43205e56f71b9b87151a02  -";

#[test]
fn linux_maps_files_of_a_share_and_outlives_its_daemon() {
    let name = "linux_maps_files_of_a_share_and_outlives_its_daemon";
    if !Path::new(KERNEL).exists() {
        return console::skip(name, "there is no kernel for a guest: the lab has one");
    }
    let dir = tempfile::tempdir().unwrap();
    let (source, socket) = (dir.path().join("source"), dir.path().join("socket"));
    fs::create_dir(&source).unwrap();
    let words: Vec<u8> = (0_u32..1 << 20).flat_map(u32::to_le_bytes).collect();
    fs::write(source.join("words"), &words).unwrap();
    let first = Share::start(&socket, &source);
    let device = format!("tag=share,socket={},dax=on", socket.display());
    let mut guest = Console::start(&[
        "--kernel",
        KERNEL,
        "--initramfs",
        INITRAMFS,
        "--cmdline",
        "console=ttyS0 quiet",
        "--memory",
        "size=256M,window=64M",
        "--fs",
        &device,
    ]);
    guest.wait_for("ready");
    let sum = "md5sum </mnt/words";
    assert_eq!(
        guest.ask("mkdir -p /mnt; mount -t virtiofs -o dax=always share /mnt; echo $?"),
        "0"
    );
    assert_eq!(guest.ask(sum), WORDS);
    assert_eq!(guest.ask("head -c 1000000 /mnt/words | wc -c"), "1000000");
    assert_eq!(guest.ask("echo written >/mnt/new; sync; echo $?"), "0");
    assert_eq!(fs::read_to_string(source.join("new")).unwrap(), "written\n");
    // Nobody in the guest waits for the daemon when it goes.
    first.kill();
    guest.wait_for_log("the daemon is gone");
    assert_eq!(guest.ask("echo $((6 * 7))"), "42");
    let second = Share::start(&socket, &source);
    guest.wait_for_log("there is a daemon again");
    assert_eq!(guest.ask(&format!("{UNBIND}; echo $?")), "0");
    let error = guest.ask("cat /mnt/new 2>&1");
    assert!(error.ends_with("not connected"), "{error}");
    assert_eq!(guest.ask("umount /mnt; echo virtio0 >bind; echo $?"), "0");
    assert_eq!(
        guest.ask("mount -t virtiofs -o dax=always share /mnt; echo $?"),
        "0"
    );
    assert_eq!(guest.ask(sum), WORDS);
    let log = guest.power_off();
    assert!(log.contains("the guest powered off"), "{log}");
    // The bytes came through the window.
    let maps = log
        .split("maps: ")
        .nth(1)
        .and_then(|rest| rest.split(',').next());
    assert!(maps.is_some_and(|maps| maps != "0"), "{log}");
    second.kill();
}
