//! Owns the proof that a stock Debian kernel boots, finds what it was given, and powers off.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;

use crate::support::{runs_guests, said, skip, start};

const KERNEL: &str = "/guest/vmlinuz";
const INITRAMFS: &str = "/guest/initramfs";

/// What is typed once the guest's shell is there. The quotes keep the echo of what is typed apart
/// from what it prints.
const COMMANDS: &str = "\
echo cpus\"=\"$(grep -c ^processor /proc/cpuinfo)
echo packages\"=\"$(grep 'physical id' /proc/cpuinfo | sort -u | wc -l)
echo kib\"=\"$(grep MemTotal /proc/meminfo | tr -dc 0-9)
echo line\"=\"$(cat /proc/cmdline)
echo serial\"=\"$(grep -c 'uart:16550A port:000003F8' /proc/tty/driver/serial)
echo panics\"=\"$(ls /sys/bus/acpi/devices | grep -c QEMU0001)
poweroff -f
";

#[test]
fn a_stock_kernel_boots_with_two_cpus_and_powers_off() {
    let name = "a_stock_kernel_boots_with_two_cpus_and_powers_off";
    if !Path::new(KERNEL).exists() {
        return skip(name, "there is no kernel for a guest: the lab has one");
    }
    if !runs_guests(name) {
        return;
    }
    let line = "console=ttyS0 quiet";
    let mut child = start(&[
        "--kernel",
        KERNEL,
        "--initramfs",
        INITRAMFS,
        "--cmdline",
        line,
        "--cpus",
        "2",
        "--memory",
        "size=256M",
    ]);
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut seen = String::new();
    while !seen.contains("guest: 2 CPUs, ready") {
        let mut bytes = Vec::new();
        let count = stdout.read_until(b'\n', &mut bytes).unwrap();
        seen.push_str(&String::from_utf8_lossy(&bytes));
        if count == 0 {
            panic!("{seen}\n{:?}", said(&child.wait_with_output().unwrap()));
        }
    }
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(COMMANDS.as_bytes()).unwrap();
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).unwrap();
    let rest = String::from_utf8_lossy(&rest);
    let found = |key: &str| {
        let mut lines = rest.lines();
        let line = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_else(|| panic!("no {key} in {rest}"))
            .trim_end()
    };
    assert_eq!((found("cpus"), found("packages")), ("2", "1"), "{rest}");
    assert_eq!(found("line"), line);
    assert_eq!((found("serial"), found("panics")), ("1", "1"), "{rest}");
    let kib: u32 = found("kib").parse().unwrap();
    assert!((150 << 10..256 << 10).contains(&kib), "{kib} KiB");
    drop(stdin);
    let ended = said(&child.wait_with_output().unwrap());
    assert_eq!(
        ended,
        (Some(0), "vm-remap: the guest powered off\n".to_owned())
    );
}
