//! Owns what a guest of the machine boots, beside the machine's own kernel. Never starts one.

use std::path::Path;

use anyhow::Result;

use crate::initramfs::Initramfs;
use crate::modules::Modules;

/// What a guest may use, where its kernel has it as a module.
const MODULES: [&str; 3] = ["virtio_mmio", "virtiofs", "pvpanic-mmio"];

/// The archive for a guest with the kernel of `modules`.
pub(crate) fn archive(busybox: &Path, modules: &Modules) -> Result<Initramfs> {
    let wanted = modules.among(&MODULES);
    Initramfs::nested(busybox, modules.in_order(&wanted)?)
}
