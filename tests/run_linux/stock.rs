//! Owns the proof that a stock Debian kernel boots, finds what it was given, and powers off.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout};

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

/// A guest of the lab's own kernel, whose shell is there.
struct Guest {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Guest {
    fn boot(test: &str, line: &str, cpus: &str) -> Option<Self> {
        if !Path::new(KERNEL).exists() {
            skip(test, "there is no kernel for a guest: the lab has one");
            return None;
        }
        if !runs_guests(test) {
            return None;
        }
        let files = ["--kernel", KERNEL, "--initramfs", INITRAMFS];
        let figures = ["--cpus", cpus, "--memory", "size=256M", "--cmdline", line];
        let mut child = start(&[&files[..], &figures].concat());
        let stdin = child.stdin.take().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut seen = String::new();
        while !seen.contains(&format!("guest: {cpus} CPUs, ready")) {
            let mut bytes = Vec::new();
            let count = stdout.read_until(b'\n', &mut bytes).unwrap();
            seen.push_str(&String::from_utf8_lossy(&bytes));
            if count == 0 {
                panic!("{seen}\n{:?}", said(&child.wait_with_output().unwrap()));
            }
        }
        Some(Self {
            child,
            stdin,
            stdout,
        })
    }

    /// Types `commands`, and returns what the guest printed and how it ended.
    fn end(mut self, commands: &str) -> (String, (Option<i32>, String)) {
        self.stdin.write_all(commands.as_bytes()).unwrap();
        let mut rest = Vec::new();
        self.stdout.read_to_end(&mut rest).unwrap();
        let rest = String::from_utf8_lossy(&rest).into_owned();
        (rest, said(&self.child.wait_with_output().unwrap()))
    }
}

#[test]
fn a_stock_kernel_boots_with_two_cpus_and_powers_off() {
    let name = "a_stock_kernel_boots_with_two_cpus_and_powers_off";
    let line = "console=ttyS0 quiet";
    let Some(guest) = Guest::boot(name, line, "2") else {
        return;
    };
    let (printed, ended) = guest.end(COMMANDS);
    let found = |key: &str| {
        let mut lines = printed.lines();
        let line = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_else(|| panic!("no {key} in {printed}"))
            .trim_end()
    };
    assert_eq!((found("cpus"), found("packages")), ("2", "1"), "{printed}");
    assert_eq!(found("line"), line);
    assert_eq!((found("serial"), found("panics")), ("1", "1"), "{printed}");
    let kib: u32 = found("kib").parse().unwrap();
    assert!((150 << 10..256 << 10).contains(&kib), "{kib} KiB");
    let off = "vm-remap: the guest powered off\n".to_owned();
    assert_eq!(ended, (Some(0), off), "{printed}");
}

#[test]
fn a_stock_kernel_that_reboots_is_told_from_one_that_powers_off() {
    let name = "a_stock_kernel_that_reboots_is_told_from_one_that_powers_off";
    let Some(guest) = Guest::boot(name, "console=ttyS0 quiet", "1") else {
        return;
    };
    let (printed, ended) = guest.end("reboot -f\n");
    let again = "vm-remap: the guest asked for a reboot; start it again for one\n".to_owned();
    assert_eq!(ended, (Some(3), again), "{printed}");
}
