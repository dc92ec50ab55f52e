//! Owns the tests of whole command lines, in both spellings and mixed. Never starts a guest.

use std::path::Path;

use clap::{CommandFactory, Parser, Subcommand};
use vm_remap::BackendKind;

use super::*;
use crate::run::launch::{FsCache, FsServer, FsShare, Queues, Shmem};

/// A program that has the command.
#[derive(Debug, Parser)]
#[command(name = "vm-remap")]
struct Program {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<RunArgs>),
    Other,
}

fn parsed(line: &[&str]) -> Result<Command, String> {
    let words = std::iter::once("vm-remap").chain(line.iter().copied());
    let words: Vec<OsString> = words.map(OsString::from).collect();
    let program = Program::try_parse_from(&words)
        .map_err(|error| explain(error, &words, Program::command()).to_string())?;
    Ok(program.command)
}

pub(super) fn typed(line: &[&str]) -> Result<Launch, String> {
    let Command::Run(run) = parsed(&[&["run"], line].concat())? else {
        panic!("another command was found");
    };
    run.launch().map_err(|error| error.to_string())
}

/// The command `run`, as clap has it.
pub(super) fn command() -> clap::Command {
    let mut program = Program::command();
    program.build();
    program.find_subcommand("run").unwrap().clone()
}

fn refused(line: &[&str]) -> String {
    typed(line).unwrap_err()
}

fn share(source: &str, tag: &str, dax: bool) -> FsSpec {
    FsSpec {
        tag: tag.into(),
        server: FsServer::Daemon(FsShare {
            source: source.into(),
            cache: FsCache::Auto,
        }),
        dax,
        queues: 1,
        queue_size: 1024,
    }
}

#[test]
fn the_command_is_consistent() {
    Program::command().debug_assert();
}

#[test]
fn one_guest_in_both_spellings() {
    let theirs = typed(&[
        "--kernel",
        "vmlinux",
        "--initramfs",
        "initrd.img",
        "--cmdline",
        "console=ttyS0 root=virtiofs:tag",
        "--cpus",
        "boot=2,max=2",
        "--memory",
        "size=1024M,shared=on",
        "--fs",
        "tag=tag,source=/tmp,dax=on",
        "--generic-vhost-user",
        "socket=/tmp/gpu,device_type=gpu,queue_sizes=[64,16]",
    ])
    .unwrap();
    let mut crosvm = typed(&[
        "--mem",
        "1024",
        "--cpus",
        "2",
        "--initrd",
        "initrd.img",
        "--params",
        "console=ttyS0",
        "-p",
        "root=virtiofs:tag",
        "--shared-dir",
        "/tmp:tag:type=fs:dax=true",
        "--vhost-user",
        "gpu,socket=/tmp/gpu,max-queue-size=64",
        "vmlinux",
    ])
    .unwrap();
    assert_eq!(theirs.kernel, Path::new("vmlinux"));
    assert_eq!(theirs.initramfs.as_deref(), Some(Path::new("initrd.img")));
    assert_eq!(
        theirs.cmdline.as_deref(),
        Some("console=ttyS0 root=virtiofs:tag")
    );
    assert_eq!(theirs.cpus, 2);
    assert_eq!(theirs.memory.size, 1 << 30);
    assert_eq!(theirs.fs, [share("/tmp", "tag", true)]);
    assert_eq!(
        theirs.vhost_user,
        [VhostUserSpec {
            socket: "/tmp/gpu".into(),
            device: 16,
            queues: Queues::Sizes(vec![64, 16]),
            shmem: Shmem::Device,
        }]
    );
    assert_eq!(crosvm.vhost_user[0].queues, Queues::AtMost(64));
    crosvm.vhost_user.clone_from(&theirs.vhost_user);
    crosvm.memory.shared = true;
    assert_eq!(crosvm, theirs);
}

#[test]
fn short_flags_and_equals_signs_are_crosvms_too() {
    let long = typed(&[
        "--mem", "512", "--cpus", "4", "--initrd", "i", "--params", "a", "k",
    ]);
    let short = typed(&["-m", "size=512", "-c4", "-i=i", "-p", "a", "k"]);
    assert_eq!(long.unwrap(), short.unwrap());
    let equals = typed(&[
        "--mem=512",
        "--shared-dir=/tmp:t:type=fs",
        "--params=-- x",
        "k",
    ]);
    let equals = equals.unwrap();
    assert_eq!(equals.cmdline.as_deref(), Some("console=ttyS0 -- x"));
    assert_eq!(equals.fs, [share("/tmp", "t", false)]);
}

#[test]
fn crosvms_params_come_behind_its_console() {
    let cmdline = |words: &[&str]| {
        let line: Vec<&str> = words
            .iter()
            .flat_map(|word| ["-p", *word])
            .chain(["k"])
            .collect();
        typed(&line).unwrap().cmdline.unwrap()
    };
    assert_eq!(
        cmdline(&["root=/dev/vda ro"]),
        "console=ttyS0 root=/dev/vda ro"
    );
    assert_eq!(
        cmdline(&["quiet", "console=ttyS0 ro"]),
        "quiet console=ttyS0 ro"
    );
    assert_eq!(cmdline(&["console=ttyS01"]), "console=ttyS0 console=ttyS01");
    let whole = typed(&["--cmdline", "quiet", "k"]).unwrap();
    assert_eq!(whole.cmdline.as_deref(), Some("quiet"));
}

#[test]
fn little_is_enough_and_spellings_can_be_mixed() {
    let least = typed(&["vmlinux"]).unwrap();
    assert_eq!(least.memory, MemorySpec::default());
    assert_eq!((least.cpus, least.cmdline), (1, None));
    let mixed = typed(&[
        "--memory",
        "size=4G,backend=memslot,window=8G",
        "--hugepages",
        "--shared-dir",
        "/a:a:type=fs:dax=true",
        "--fs",
        "tag=b,source=/b",
        "-c",
        "boot=1",
        "vmlinux",
    ])
    .unwrap();
    assert_eq!(mixed.memory.window.backend(), Some(BackendKind::Memslot));
    assert_eq!(mixed.memory.window.window(), Some(8 << 30));
    assert!(mixed.memory.thp);
    let tags: Vec<_> = mixed.fs.iter().map(|share| share.tag.as_str()).collect();
    assert_eq!(tags, ["b", "a"]);
}

#[test]
fn a_contradiction_names_both_sides() {
    for (line, one, other) in [
        (
            &["--mem", "1", "--memory", "size=1M", "k"][..],
            "--mem ",
            "--memory ",
        ),
        (
            &["--initrd", "i", "--initramfs", "i", "k"],
            "--initrd ",
            "--initramfs ",
        ),
        (
            &["--params", "a", "--cmdline", "b", "k"],
            "--params ",
            "--cmdline ",
        ),
        (&["--kernel", "k", "k"], "--kernel ", "[KERNEL]"),
        (
            &["--hugepages", "--memory", "thp=off", "k"],
            "--hugepages",
            "--memory thp=off",
        ),
        (
            &["--cpus", "boot=1,num-cores=1", "k"],
            "boot=",
            "num-cores=",
        ),
    ] {
        let text = refused(line);
        assert!(
            text.contains(one) && text.contains(other),
            "{line:?}: {text}"
        );
    }
    assert_eq!(
        refused(&[
            "--fs",
            "tag=t,source=/a",
            "--shared-dir",
            "/b:t:type=fs",
            "k"
        ]),
        "cannot use the tag \"t\" twice: the guest could not tell two shared directories apart; \
         change one of them"
    );
}

#[test]
fn a_wrong_value_is_refused_with_the_flag_and_the_reason() {
    for (line, flag, reason) in [
        (
            &["--memory", "size=1G,backend=nonsense", "k"][..],
            "--memory <SPEC>",
            "cannot find a backend named \"nonsense\": there are fixed, memslot",
        ),
        (
            &["--memory", "hotplug_sise=1G", "k"],
            "--memory <SPEC>",
            "did you mean hotplug_size?",
        ),
        (
            &["--mem", "1G", "k"],
            "--mem <MIB>",
            "cannot use \"1G\": it counts MiB",
        ),
        (
            &["--cpus", "0", "k"],
            "--cpus <CPUS>",
            "there can be 1 to 254",
        ),
        (
            &["--shared-dir", "/:t", "k"],
            "--shared-dir <SPEC>",
            "write :type=fs",
        ),
        (
            &["--vhost-user", "gpu", "k"],
            "--vhost-user <SPEC>",
            "socket=FILE is missing",
        ),
    ] {
        let text = refused(line);
        assert!(
            text.contains(flag) && text.contains(reason),
            "{line:?}: {text}"
        );
    }
    assert_eq!(
        refused(&["--memory", "size=1G,hotplug_size=1G", "k"]),
        "cannot use hotplug_size=1G: this VMM plugs no memory in; give all of it as size="
    );
    let window = "cannot use window=16M: no device of this guest has a window; write dax=on in --fs, \
                  or leave it out";
    let share = ["--memory", "window=16M", "--fs", "tag=t,source=/a", "k"];
    assert_eq!(refused(&share), window);
    assert_eq!(refused(&["--memory", "window=16M", "k"]), window);
    let device = "type=gpu,socket=/s";
    typed(&["--memory", "window=16M", "--vhost-user", device, "k"]).unwrap();
    let text = refused(&["--cpus", "2"]);
    assert!(text.contains("vm-remap run [OPTIONS] <KERNEL>"), "{text}");
    assert!(text.contains("--kernel <FILE>"), "{text}");
}

#[test]
fn an_option_of_theirs_is_named_with_the_nearest_of_ours() {
    for (line, text) in [
        (
            &["--gpu", "backend=virglrenderer", "k"][..],
            "error: cannot use --gpu, which is crosvm's: this VMM has no graphics; take them from \
             another process with --vhost-user type=gpu,socket=FILE\n",
        ),
        (
            &["--disk=path=x", "--kernel", "k"],
            "error: cannot use --disk, which is cloud-hypervisor's and crosvm's: this VMM has no \
             disks; share a directory with --fs tag=TAG,source=DIR, or take a disk of another \
             process with --vhost-user type=block,socket=FILE\n",
        ),
        (
            &["-s", "/tmp/sock", "k"],
            "error: cannot use -s, which is crosvm's: this VMM takes no commands while it \
             runs; leave the option out\n",
        ),
        (
            &["--kernel", "k", "--api-socket", "/s"],
            "error: cannot use --api-socket, which is cloud-hypervisor's: this VMM takes no commands \
             while it runs; leave the option out\n",
        ),
    ] {
        let said = refused(line);
        assert!(said.starts_with(text), "{said}");
        assert!(said.contains("Usage: vm-remap run"), "{said}");
    }
    let all = [&foreign::CLOUD_HYPERVISOR[..], &foreign::CROSVM[..]].concat();
    for option in all.iter().flat_map(|foreign| foreign.options.split(' ')) {
        let said = refused(&[option, "x", "k"]);
        assert!(
            said.starts_with(&format!("error: cannot use {option}, which")),
            "{said}"
        );
    }
    let text = refused(&["--nobody-has-this", "k"]);
    assert!(
        text.contains("unexpected argument '--nobody-has-this'"),
        "{text}"
    );
    let text = parsed(&["other", "--gpu"]).unwrap_err();
    assert!(text.contains("unexpected argument '--gpu'"), "{text}");
}

#[test]
fn completions_and_the_manual_have_both_spellings() {
    let mut script = Vec::new();
    let bash = clap_complete::Shell::Bash;
    clap_complete::generate(bash, &mut Program::command(), "vm-remap", &mut script);
    let mut page = Vec::new();
    clap_mangen::Man::new(command()).render(&mut page).unwrap();
    let (script, page) = (
        String::from_utf8(script).unwrap(),
        String::from_utf8(page).unwrap(),
    );
    for flag in [
        "--initramfs",
        "--initrd",
        "--memory",
        "--mem",
        "--shared-dir",
        "--vhost-user",
    ] {
        assert!(script.contains(flag), "{flag} is not in the completions");
        let flag = flag.replace('-', "\\-");
        assert!(page.contains(&flag), "{flag} is not in the manual");
    }
}
