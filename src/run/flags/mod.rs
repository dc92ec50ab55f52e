//! Owns the flags of `vm-remap run`: cloud-hypervisor's words and crosvm's, and what they come to.
//! Never starts a guest.

mod cpus;
mod device;
mod error;
pub mod foreign;
mod fs;
mod memory;
pub mod table;
mod values;
mod vhost_user;

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use vm_remap::spec::{MemorySpec, size_text};

pub use self::error::FlagError;
use self::error::refused;
use super::launch::{DEFAULT_COMMAND_LINE, FsSpec, Launch, VhostUserSpec};

const CROSVM: &str = "Options in crosvm's words";
const USAGE: &str =
    "vm-remap run [OPTIONS] --kernel <FILE>\n       vm-remap run [OPTIONS] <KERNEL>";
const MORE: &str = "\
Examples:
  vm-remap run --kernel vmlinuz --initramfs initrd.img --memory size=1G --cpus 2
  vm-remap run --kernel vmlinuz --initramfs initrd.img --cmdline 'console=ttyS0 quiet'

Ctrl-A x ends the guest; Ctrl-A Ctrl-A is one Ctrl-A for it.

Exit codes: 0 the guest powered off, 1 it could not be started, 2 arguments that make no sense, \
3 it asked for a reboot, 4 its kernel panicked or stopped with a triple fault, 5 it could not be \
run on, 6 it was ended from outside.";

/// Start a guest: a Linux kernel, shared directories, and devices of other processes.
#[derive(Clone, Debug, clap::Args)]
#[expect(clippy::doc_markdown, reason = "the help shows it as it stands")]
#[command(after_help = MORE, after_long_help = format!("{MORE}\n\n{}", table::text()))]
#[command(override_usage = USAGE)]
pub struct RunArgs {
    /// The kernel to start
    #[arg(long, value_name = "FILE", required_unless_present = "kernel_word")]
    kernel: Option<PathBuf>,

    /// The initial file system
    #[arg(long, value_name = "FILE")]
    initramfs: Option<PathBuf>,

    /// The kernel's command line
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    cmdline: Option<String>,

    /// How many vCPUs: boot=N, or crosvm's N or num-cores=N
    #[arg(long, short = 'c', value_name = "CPUS", value_parser = cpus::parse, default_value = "1")]
    cpus: u8,

    /// The memory: size=SIZE (512M if left out) and more keys, between commas
    ///
    /// Cloud-hypervisor's: shared=on|off (it always is), hugepages=on|off, hugepage_size=SIZE,
    /// prefault=on|off, thp=on|off. Ours, for windows: backend=fixed|memslot,
    /// window=SIZE, segment=SIZE, hole=trap|zero|stop, zap=all|precise. Sizes take the suffixes K, M
    /// and G (binary).
    #[arg(long, value_name = "SPEC")]
    memory: Option<MemorySpec>,

    /// A shared directory: tag=TAG,source=DIR[,dax=on], or tag=TAG,socket=FILE
    ///
    /// With source= the server is started too, and can be told cache=never|auto|always. With
    /// socket= one listens already. Both take
    /// num_queues=N and queue_size=N. Can be given more than once.
    #[arg(long, value_name = "SPEC", value_parser = fs::parse)]
    fs: Vec<FsSpec>,

    /// A device of another process: socket=FILE,device_type=TYPE,queue_sizes=[N...]
    ///
    /// The same as --vhost-user; each takes the keys of both. Can be given more than once.
    #[arg(long, value_name = "SPEC", value_parser = vhost_user::parse)]
    generic_vhost_user: Vec<VhostUserSpec>,

    /// The memory, in MiB
    #[arg(long, short, value_name = "MIB", value_parser = memory::mebibytes)]
    #[arg(help_heading = CROSVM, conflicts_with = "memory")]
    mem: Option<u64>,

    /// Transparent huge pages behind the memory, as --memory thp=on has them
    #[arg(long, help_heading = CROSVM)]
    hugepages: bool,

    /// The initial file system
    #[arg(long, short, value_name = "FILE", help_heading = CROSVM, conflicts_with = "initramfs")]
    initrd: Option<PathBuf>,

    /// A piece of the kernel's command line, behind console=ttyS0; can be given more than once
    #[arg(long, short, value_name = "TEXT", allow_hyphen_values = true)]
    #[arg(help_heading = CROSVM, conflicts_with = "cmdline")]
    params: Vec<String>,

    /// A shared directory: DIR:TAG:type=fs[:dax=true][:cache=never|auto|always]
    #[arg(long, value_name = "SPEC", value_parser = fs::shared_dir, help_heading = CROSVM)]
    shared_dir: Vec<FsSpec>,

    /// A device of another process: type=TYPE,socket=FILE[,max-queue-size=N][,shmem=on|off|SIZE]
    ///
    /// TYPE is a name or a number of virtio's. shmem=off hides the device's shared memory from the
    /// guest; a size stands for a region 0 that the device has and does not speak of. Can be given
    /// more than once.
    #[arg(long, value_name = "SPEC", value_parser = vhost_user::parse, help_heading = CROSVM)]
    vhost_user: Vec<VhostUserSpec>,

    /// The kernel to start
    #[arg(value_name = "KERNEL", conflicts_with = "kernel")]
    kernel_word: Option<PathBuf>,
}

impl RunArgs {
    /// What the flags come to.
    ///
    /// # Errors
    /// [`FlagError`] where two flags contradict each other or ask for what this VMM does not do.
    pub fn launch(self) -> Result<Launch, FlagError> {
        let kernel = self.kernel.or(self.kernel_word);
        let memory = match self.mem {
            Some(size) => {
                let mut memory = MemorySpec::default();
                memory.size = size;
                memory
            }
            None => self.memory.unwrap_or_default(),
        };
        if self.hugepages && !memory.thp {
            let why = "one switches transparent huge pages on and one off; leave one of them out";
            return Err(refused("--hugepages and --memory thp=off", why));
        }
        memory::supported(&memory)?;
        let fs = [self.fs, self.shared_dir].concat();
        let mut tags = HashSet::new();
        if let Some(twin) = fs.iter().find(|share| !tags.insert(share.tag.as_str())) {
            let why = "the guest could not tell two shared directories apart; change one of them";
            return Err(refused(format!("the tag {:?} twice", twin.tag), why));
        }
        // A daemon that listens already may have a window of its own.
        let has_window = fs.iter().any(|share| share.dax)
            || !(self.vhost_user.is_empty() && self.generic_vhost_user.is_empty());
        if let Some(bytes) = memory.window.window().filter(|_| !has_window) {
            let why = "no device of this guest has a window; write dax=on in --fs, or leave it out";
            return Err(refused(format!("window={}", size_text(bytes)), why));
        }
        Ok(Launch {
            kernel: kernel.ok_or_else(|| refused("no kernel", "write --kernel FILE"))?,
            initramfs: self.initramfs.or(self.initrd),
            cmdline: self.cmdline.or_else(|| behind_console(&self.params)),
            cpus: self.cpus,
            memory,
            vhost_user: [self.generic_vhost_user, self.vhost_user].concat(),
            fs,
        })
    }
}

/// The command line with crosvm's `--params` in it. They come behind what it tells a kernel anyway: of
/// that the console is needed here, too.
fn behind_console(params: &[String]) -> Option<String> {
    if params.is_empty() {
        return None;
    }
    let params = params.join(" ");
    let has_it = params
        .split_ascii_whitespace()
        .any(|word| word == DEFAULT_COMMAND_LINE);
    Some(if has_it {
        params
    } else {
        format!("{DEFAULT_COMMAND_LINE} {params}")
    })
}

/// A better word on an option of `vm-remap run` that clap does not know: whose it is, and what to use
/// instead. `words` is what was typed, the program's name first, and `command` what it was to be.
/// `error` stays as it is where it is about something else.
#[must_use]
pub fn explain(error: clap::Error, words: &[OsString], mut command: clap::Command) -> clap::Error {
    let option = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(option)) if error.kind() == ErrorKind::UnknownArgument => option,
        _ => return error,
    };
    if words.get(1).is_none_or(|word| word != "run") {
        return error;
    }
    command.build();
    match (foreign::answer(option), command.find_subcommand_mut("run")) {
        (Some(answer), Some(run)) => run.error(ErrorKind::UnknownArgument, answer),
        _ => error,
    }
}

#[cfg(test)]
mod tests;
