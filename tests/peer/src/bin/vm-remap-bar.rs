//! Owns the command line of the program in the guest. Never looks itself.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use vm_remap_peer::{PAGE, bar, guest};

/// Runs in the guest of a VMM that has a `vm-remap-peer`: finds the device's shared-memory region
/// among the BARs of the PCI devices and looks there for what the device says. Needs root, and the
/// device started by its driver (virtio-rng). Exits with 0 if all was as the device said.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The number of the shared-memory region.
    #[arg(long, value_name = "N", default_value_t = 0)]
    region: u8,
    /// Seconds that the device may take for its next order.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    patience: u64,
}

fn main() -> ExitCode {
    match look(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // Nobody is left to tell if that fails, too.
            drop(writeln!(std::io::stderr(), "vm-remap-bar: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn look(arguments: &Arguments) -> Result<bool> {
    let (device, region) = bar::find(Path::new("/sys/bus/pci/devices"), arguments.region)?
        .with_context(|| {
            format!(
                "no virtio device has a shared-memory region {}: does the VMM know of them?",
                arguments.region
            )
        })?;
    let mut out = std::io::stdout();
    writeln!(
        out,
        "{}: region {} of {:#x} bytes at {:#x} of BAR {}",
        device.display(),
        region.id,
        region.len,
        region.offset,
        region.bar
    )?;
    let memory = bar::map(&device, &region)?;
    let pages = region.len.checked_div(PAGE).unwrap_or_default();
    let seen = guest::serve(&memory, pages, Duration::from_secs(arguments.patience))?;
    writeln!(
        out,
        "looked {} times at {} pages, {} of them holes: {} wrong",
        seen.looks, seen.pages, seen.holes, seen.wrong
    )?;
    Ok(seen.wrong == 0)
}
