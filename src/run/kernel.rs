//! Owns what lies in RAM when the guest starts: kernel, initramfs, command line, boot parameters.
//! Never touches a vCPU.
//!
//! Both kinds of image are entered by Linux's 64-bit boot protocol
//! (Documentation/arch/x86/boot.rst): in long mode, with a page of boot parameters.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::{BzImage, Cmdline, Elf, KernelLoader as _, load_cmdline};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

use super::launch::{DEFAULT_COMMAND_LINE, Launch};
use super::layout::{ACPI, COMMAND_LINE, HIGH_RAM_START, Layout, MIB, ZERO_PAGE};

/// `setup_header.boot_flag`, and `HdrS` in `setup_header.header`.
const BOOT_FLAG: u16 = 0xaa55;
const HEADER: u32 = 0x5372_6448;
/// Where a bzImage has `HdrS`.
const HEADER_AT: u64 = 0x202;
/// The first version of the boot protocol with `xloadflags`, and the flag for a 64-bit entry.
const VERSION_64: u16 = 0x020c;
const XLF_KERNEL_64: u16 = 1;
/// Where the 64-bit entry lies behind the start of the image.
const ENTRY_64: u64 = 0x200;
/// A loader without a number of its own.
const LOADER_OTHER: u8 = 0xff;
/// The longest command line that Linux takes on x86, without the 0 at its end.
const COMMAND_LINE_LEN: u32 = 2047;
/// The alignment of a kernel that does not tell one.
const ALIGNMENT: u32 = 0x20_0000;
const ELF: &[u8] = b"\x7fELF";

/// An image in RAM.
#[derive(Clone, Copy, Debug)]
struct Image {
    /// Where to enter it, in long mode.
    entry: u64,
    /// The first byte that it does not use before it knows the memory map.
    end: u64,
    header: setup_header,
}

/// Loads what `launch` names, and returns where to enter the kernel.
///
/// # Errors
/// A file that is missing or no kernel, or memory that does not hold it all.
pub(super) fn load(launch: &Launch, layout: &Layout, memory: &GuestMemoryMmap) -> Result<u64> {
    let image = load_image(&launch.kernel, layout, memory)?;
    let mut header = image.header;
    let line = launch.cmdline.as_deref().unwrap_or(DEFAULT_COMMAND_LINE);
    write_command_line(line, header.cmdline_size, memory)?;
    header.cmd_line_ptr = u32::try_from(COMMAND_LINE)?;
    header.type_of_loader = LOADER_OTHER;
    if let Some(path) = &launch.initramfs {
        let limit = u64::from(header.initrd_addr_max).saturating_add(1);
        let (base, len) = load_initramfs(path, layout, image.end, limit, memory)?;
        header.ramdisk_image = base;
        header.ramdisk_size = len;
    }
    memory
        .write_obj(parameters(header, layout)?, GuestAddress(ZERO_PAGE))
        .context("cannot write the boot parameters into guest memory")?;
    Ok(image.entry)
}

/// Opens a file that is read into RAM; one of a length that is known.
fn open(path: &Path, what: &str) -> Result<(File, u64)> {
    let shown = path.display();
    let file = File::open(path).with_context(|| format!("cannot open the {what} {shown}"))?;
    let meta = file
        .metadata()
        .with_context(|| format!("cannot examine the {what} {shown}"))?;
    ensure!(
        meta.is_file(),
        "cannot load the {what} {shown}: it is no regular file"
    );
    Ok((file, meta.len()))
}

fn load_image(path: &Path, layout: &Layout, memory: &GuestMemoryMmap) -> Result<Image> {
    let (mut file, len) = open(path, "kernel")?;
    let mut magic = [0; 4];
    let is = |at: u64, wanted: &[u8], magic: &mut [u8; 4]| {
        file.read_exact_at(magic, at).is_ok() && magic == wanted
    };
    let shown = path.display();
    let have = layout.low_ram().len;
    let image = if is(0, ELF, &mut magic) {
        load_elf(&mut file, memory).with_context(|| {
            format!(
                "cannot load the kernel {shown} ({len} bytes) into {} MiB",
                have / MIB
            )
        })?
    } else if is(HEADER_AT, &HEADER.to_le_bytes(), &mut magic) {
        let image = load_bzimage(&mut file, memory).with_context(|| {
            format!(
                "cannot load the kernel {shown} ({len} bytes) into {} MiB",
                have / MIB
            )
        })?;
        image.with_context(|| {
            format!(
                "cannot start the kernel {shown}: it has no 64-bit entry (boot protocol 2.12 or \
                 newer); take an x86-64 kernel"
            )
        })?
    } else {
        bail!("cannot use {shown} as a kernel: it is neither a bzImage nor an ELF file");
    };
    ensure!(
        image.end <= layout.low_ram().end(),
        "cannot start the kernel {shown}: it needs {} MiB to unpack itself and {} MiB are there; \
         give the guest more memory",
        image.end.div_ceil(MIB),
        have / MIB
    );
    Ok(image)
}

fn load_elf(file: &mut File, memory: &GuestMemoryMmap) -> Result<Image> {
    let start = GuestAddress(HIGH_RAM_START);
    let loaded = Elf::load(memory, None, file, Some(start))?;
    Ok(Image {
        entry: loaded.kernel_load.0,
        end: loaded.kernel_end,
        header: setup_header {
            boot_flag: BOOT_FLAG,
            header: HEADER,
            kernel_alignment: ALIGNMENT,
            cmdline_size: COMMAND_LINE_LEN,
            initrd_addr_max: u32::MAX,
            ..Default::default()
        },
    })
}

/// `None` where the image has no 64-bit entry.
fn load_bzimage(file: &mut File, memory: &GuestMemoryMmap) -> Result<Option<Image>> {
    let start = GuestAddress(HIGH_RAM_START);
    let loaded = BzImage::load(memory, Some(start), file, None)?;
    let header = loaded.setup_header.context("it has no header")?;
    if header.version < VERSION_64 || header.xloadflags & XLF_KERNEL_64 == 0 {
        return Ok(None);
    }
    // It unpacks itself no lower than where it prefers to run.
    let align = u64::from(header.kernel_alignment.max(1));
    let runs_at = HIGH_RAM_START
        .checked_next_multiple_of(align)
        .unwrap_or(u64::MAX)
        .max(header.pref_address);
    let unpacked = runs_at.saturating_add(header.init_size.into());
    Ok(Some(Image {
        entry: loaded.kernel_load.0.saturating_add(ENTRY_64),
        end: loaded.kernel_end.max(unpacked),
        header,
    }))
}

fn write_command_line(line: &str, limit: u32, memory: &GuestMemoryMmap) -> Result<()> {
    // A kernel that tells 0 takes what all take.
    let limit = if limit == 0 {
        COMMAND_LINE_LEN
    } else {
        limit.min(COMMAND_LINE_LEN)
    };
    let room = usize::try_from(limit)?;
    ensure!(
        line.len() <= room,
        "cannot pass a command line of {} bytes to the kernel: it takes {limit}; shorten it",
        line.len()
    );
    // The crate counts the 0 at the end.
    let mut checked = Cmdline::new(room.saturating_add(1))?;
    if !line.is_empty() {
        checked
            .insert_str(line)
            .with_context(|| format!("cannot pass the command line {line:?} to the kernel"))?;
    }
    load_cmdline(memory, GuestAddress(COMMAND_LINE), &checked)
        .context("cannot write the command line into guest memory")
}

fn load_initramfs(
    path: &Path,
    layout: &Layout,
    floor: u64,
    limit: u64,
    memory: &GuestMemoryMmap,
) -> Result<(u32, u32)> {
    let (mut file, len) = open(path, "initramfs")?;
    let shown = path.display();
    ensure!(len > 0, "cannot load the initramfs {shown}: it is empty");
    let base = layout.top_of_low_ram(len, floor, limit)?;
    memory
        .read_exact_volatile_from(GuestAddress(base), &mut file, usize::try_from(len)?)
        .with_context(|| format!("cannot read the initramfs {shown}"))?;
    Ok((u32::try_from(base)?, u32::try_from(len)?))
}

fn parameters(header: setup_header, layout: &Layout) -> Result<boot_params> {
    let mut parameters = boot_params {
        hdr: header,
        acpi_rsdp_addr: ACPI,
        ..Default::default()
    };
    let map = layout.e820();
    parameters.e820_entries = u8::try_from(map.len())?;
    for (entry, (range, kind)) in parameters.e820_table.iter_mut().zip(map) {
        *entry = boot_e820_entry {
            addr: range.base,
            size: range.len,
            r#type: kind as u32,
        };
    }
    Ok(parameters)
}
