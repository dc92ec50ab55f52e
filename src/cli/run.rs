//! Owns the arguments of `vm-remap run`. Never touches KVM.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::run::{Launch, MemorySpec};

const EXAMPLES: &str = "\
Examples:
  vm-remap run --kernel vmlinuz --initramfs initrd.img --memory 1G --cpus 2
  vm-remap run --kernel vmlinuz --initramfs initrd.img --cmdline 'console=ttyS0 quiet'

Ctrl-A x ends the guest; Ctrl-A Ctrl-A is one Ctrl-A for it.

Exit codes: 0 the guest powered off, 1 it could not be started, 2 arguments that make no sense, \
3 it asked for a reboot, 4 its kernel panicked or stopped with a triple fault, 5 it could not be \
run on, 6 it was ended from outside.";

/// What to run.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The kernel: a bzImage (vmlinuz) or an ELF file (vmlinux).
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// The archive that the kernel unpacks into its first file system.
    #[arg(long, value_name = "FILE")]
    initramfs: Option<PathBuf>,
    /// The kernel's command line; `console=ttyS0` if not given.
    #[arg(long, value_name = "STRING")]
    cmdline: Option<String>,
    /// How many CPUs the guest has.
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    cpus: u8,
    /// How much memory the guest has, as in 512M or 2G.
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = size)]
    memory: u64,
}

fn size(text: &str) -> Result<u64, parse_size::Error> {
    parse_size::Config::new().with_binary().parse_size(text)
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let launch = Launch {
        kernel: arguments.kernel.clone(),
        initramfs: arguments.initramfs.clone(),
        cmdline: arguments.cmdline.clone(),
        cpus: arguments.cpus,
        memory: MemorySpec::new(arguments.memory),
    };
    let end = crate::run::run(&launch)?;
    // There is nobody left to tell when the standard error is closed.
    writeln!(std::io::stderr(), "vm-remap: {end}").unwrap_or_default();
    Ok(ExitCode::from(end.exit_code()))
}
