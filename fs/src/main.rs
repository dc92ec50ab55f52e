//! The command `vm-remap-fs`: everything it does lies in the library of this package.

use std::error::Error as _;
use std::process::ExitCode;

use clap::Parser as _;
use vm_remap_fs::{Options, serve};

/// Share a directory of the host with a guest: virtio-fs with a DAX window, over vhost-user
///
/// One daemon serves one frontend, and ends with status 0 when it disconnects.
#[derive(Debug, clap::Parser)]
#[command(version, after_help = EXAMPLE)]
struct Command {
    #[command(flatten)]
    options: Options,
}

const EXAMPLE: &str = "\
Example:
  vm-remap-fs --socket /run/home.sock --source /srv/home --tag home --window 4G

  Then start the VMM with a vhost-user device of type fs (virtio device 26) on
  that socket and with guest memory that can be shared. In the guest:

  mount -t virtiofs -o dax home /mnt

  For dax the VMM has to know the vhost-user messages SHMEM_MAP and SHMEM_UNMAP,
  and the guest needs CONFIG_FUSE_DAX. Without one of them, mount without dax.

  RUST_LOG=debug says more.";

/// The libraries log what a guest gives cause for, as often as it likes.
const DEFAULT_LOG: &str = "vm_remap_fs=info,vhost=warn,vhost_user_backend=warn";

fn main() -> ExitCode {
    let defaults = env_logger::Env::default().default_filter_or(DEFAULT_LOG);
    env_logger::Builder::from_env(defaults).init();
    match serve(&Command::parse().options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{}", causes(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error with all that led to it, on one line.
fn causes(error: &vm_remap_fs::ServeError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(below) = cause {
        text = format!("{text}: {below}");
        cause = below.source();
    }
    text
}
