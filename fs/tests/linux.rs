//! Has a Linux guest mount the share: a Debian kernel of the lab's under QEMU's emulation, without a
//! window, which that QEMU does not have. Skipped without `qemu-system-x86_64`, a static `busybox`
//! and a kernel package that the lab has fetched (`tests/lab/run`).

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails, and says why"
)]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// What the guest does as its first process. Each line must succeed.
const SCRIPT: &str = r#"#!/bin/busybox sh
busybox=/bin/busybox
$busybox --install -s /bin
mount -t proc none /proc
mount -t devtmpfs none /dev
set -ex
mount -t virtiofs home /mnt
cd /mnt
test "$(cat greeting)" = "from the host"
echo "from the guest" > answer
dd if=/dev/urandom of=big bs=1M count=6
md5sum big > sum
mkdir dir
mv big dir/moved
sed -i s/big/moved/ sum
(cd dir && md5sum -c ../sum)
ln dir/moved linked
test "$(stat -c %h linked)" = 2
ln -s ../../etc/passwd way-out
test "$(readlink way-out)" = ../../etc/passwd
truncate -s 5000000 linked
test "$(stat -c %s dir/moved)" = 5000000
mkdir many
for i in $(seq 300); do echo $i > many/$i; done
test "$(ls many | wc -l)" = 300
rm -r many linked
cp /bin/busybox copied
chown 1234:5678 copied
cp copied busybox
./busybox true
rm busybox
if mknod device c 1 3; then exit 1; fi
mkfifo fifo
rm fifo
cd /
umount /mnt
mount -t virtiofs home /mnt
test -s /mnt/answer
echo well > /mnt/verdict
umount /mnt
poweroff -f
"#;

const PATIENCE: Duration = Duration::from_secs(300);

#[test]
fn linux_mounts_the_share_and_finds_a_file_system() {
    if !rustix::process::geteuid().is_root() {
        return skip("the guest changes owners, which takes root");
    }
    let Some((kernel, busybox)) = needed() else {
        return skip("no QEMU, no static busybox, or no kernel with CONFIG_VIRTIO_FS=y");
    };
    let home = tempfile::tempdir().unwrap();
    let share = home.path().join("share");
    fs::create_dir(&share).unwrap();
    fs::write(share.join("greeting"), "from the host\n").unwrap();
    let archive = home.path().join("initrd");
    fs::write(&archive, pack(&busybox)).unwrap();
    let socket = home.path().join("fs.sock");
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_vm-remap-fs"))
        .args(["--tag", "home", "--threads", "2", "--source"])
        .arg(&share)
        .arg("--socket")
        .arg(&socket)
        .spawn()
        .unwrap();
    wait_for(|| socket.exists());
    let console = home.path().join("console");
    let mut guest = boot(&kernel, &archive, &socket, &console);
    wait_for(|| guest.try_wait().unwrap().is_some());
    let said = fs::read_to_string(&console).unwrap();
    let verdict = fs::read_to_string(share.join("verdict")).unwrap_or_default();
    assert_eq!(verdict, "well\n", "{said}");
    assert!(daemon.wait().unwrap().success());

    let answer = fs::read_to_string(share.join("answer")).unwrap();
    assert_eq!(answer, "from the guest\n");
    assert_eq!(
        fs::metadata(share.join("dir/moved")).unwrap().len(),
        5_000_000
    );
    let copied = fs::metadata(share.join("copied")).unwrap();
    assert_eq!((copied.uid(), copied.gid()), (1234, 5678));
    assert_eq!(
        fs::read(share.join("copied")).unwrap(),
        fs::read(busybox).unwrap()
    );
    assert!(
        fs::symlink_metadata(share.join("way-out"))
            .unwrap()
            .is_symlink()
    );
}

fn boot(kernel: &Path, archive: &Path, socket: &Path, console: &Path) -> Child {
    let out = fs::File::create(console).unwrap();
    Command::new("qemu-system-x86_64")
        .args(["-machine", "q35,accel=tcg", "-cpu", "max", "-m", "256"])
        .args(["-object", "memory-backend-memfd,id=m,size=256M,share=on"])
        .args(["-numa", "node,memdev=m", "-no-reboot", "-nographic"])
        .arg("-chardev")
        .arg(format!("socket,id=c,path={}", socket.display()))
        .arg("-device")
        .arg("vhost-user-fs-pci,chardev=c,tag=home,num-request-queues=2")
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(archive)
        .args(["-append", "console=ttyS0 panic=-1 quiet"])
        .stdin(Stdio::null())
        .stderr(out.try_clone().unwrap())
        .stdout(out)
        .spawn()
        .unwrap()
}

/// The archive that the guest boots from.
fn pack(busybox: &Path) -> Vec<u8> {
    let directory = 0o040_755;
    let program = 0o100_755;
    let entries = [
        ("bin", directory, Vec::new()),
        ("dev", directory, Vec::new()),
        ("mnt", directory, Vec::new()),
        ("proc", directory, Vec::new()),
        ("bin/busybox", program, fs::read(busybox).unwrap()),
        ("init", program, SCRIPT.as_bytes().to_vec()),
    ];
    let mut archive = Vec::new();
    for (name, mode, content) in entries {
        let size = u32::try_from(content.len()).unwrap();
        let entry = cpio::newc::Builder::new(name).mode(mode);
        let mut writer = entry.write(&mut archive, size);
        writer.write_all(&content).unwrap();
        writer.finish().unwrap();
    }
    cpio::newc::trailer(&mut archive).unwrap();
    archive
}

/// A kernel with the driver built in, and a busybox that needs nothing else.
fn needed() -> Option<(PathBuf, PathBuf)> {
    let qemu = Command::new("qemu-system-x86_64").arg("--version").output();
    qemu.ok().filter(|output| output.status.success())?;
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
    let packages = workspace.join("target/lab/packages");
    let mut kernel = None;
    let mut busybox = None;
    for package in fs::read_dir(packages).ok()? {
        let package = package.ok()?.path();
        for file in fs::read_dir(package.join("boot")).into_iter().flatten() {
            let file = file.ok()?.path();
            let name = file.file_name()?.to_str()?;
            if let Some(version) = name.strip_prefix("config-")
                && fs::read_to_string(&file)
                    .ok()?
                    .contains("\nCONFIG_VIRTIO_FS=y\n")
            {
                kernel = Some(file.with_file_name(format!("vmlinuz-{version}")));
            }
        }
        let program = ["bin/busybox", "usr/bin/busybox"].map(|name| package.join(name));
        busybox = busybox.or_else(|| program.into_iter().find(|path| path.is_file()));
    }
    Some((kernel?, busybox?))
}

fn wait_for(mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "waited for too long");
        thread::sleep(Duration::from_millis(20));
    }
}

fn skip(reason: &str) {
    let mut past_the_harness = std::io::stderr();
    writeln!(
        past_the_harness,
        "SKIP linux_mounts_the_share_and_finds_a_file_system: {reason}"
    )
    .unwrap();
}
