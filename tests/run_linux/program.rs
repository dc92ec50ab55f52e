//! Owns kernels of a few instructions, as files. Never runs one.

use std::path::PathBuf;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use vm_remap_cli::run::Launch;

/// Where the kernels are loaded.
const BASE: u64 = 0x10_0000;

/// What a guest may take from the tables that it is given.
pub(crate) const SLEEP_PORT: u32 = 0x600;
pub(crate) const POWER_OFF: u32 = 5 << 2 | 1 << 5;

/// An ELF file with `code` at [`BASE`], which is also its entry.
fn kernel(code: &[u8]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    // An executable for x86-64, its headers, and one program header of 56 bytes.
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    file.extend([BASE, 64, 0].map(u64::to_le_bytes).concat());
    file.extend([0_u8; 4]);
    file.extend([64_u16, 56, 1, 0, 0, 0].map(u16::to_le_bytes).concat());
    // A segment to load, readable and executable.
    file.extend([1_u32, 5].map(u32::to_le_bytes).concat());
    let len = u64::try_from(code.len()).unwrap();
    file.extend(
        [120, BASE, BASE, len, len, 1]
            .map(u64::to_le_bytes)
            .concat(),
    );
    file.extend(code);
    file
}

/// A file with such a kernel.
pub(crate) struct Tiny {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Tiny {
    pub(crate) fn new(program: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Self {
        let mut a = CodeAssembler::new(64).unwrap();
        program(&mut a).unwrap();
        let code = a.assemble(BASE).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernel");
        std::fs::write(&path, kernel(&code)).unwrap();
        Self {
            _folder: folder,
            path,
        }
    }

    pub(crate) fn launch(&self, memory: &str) -> Launch {
        Launch {
            kernel: self.path.clone(),
            initramfs: None,
            cmdline: None,
            cpus: 1,
            memory: memory.parse().unwrap(),
            vhost_user: Vec::new(),
            fs: Vec::new(),
        }
    }

    pub(crate) fn arguments(&self) -> [&str; 2] {
        ["--kernel", self.path.to_str().unwrap()]
    }
}

pub(crate) fn out_byte(a: &mut CodeAssembler, port: u32, value: u32) -> Result<(), IcedError> {
    a.mov(edx, port)?;
    a.mov(eax, value)?;
    a.out(dx, al)
}

pub(crate) fn stay(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut here = a.create_label();
    a.set_label(&mut here)?;
    a.hlt()?;
    a.jmp(here)
}
