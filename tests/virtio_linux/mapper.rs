//! Owns the process in the guest that maps a file of the share: this test's own program, which the
//! guest finds there. Never runs on this side of the guest.

use std::fs::File;
use std::io::{BufRead, Write};
use std::path::Path;

use vm_memory::mmap::MmapRegion;
use vm_memory::{Bytes, FileOffset, VolatileMemory};

use crate::console::Console;

/// The file to map, and the file that is told what is found.
const FILE: &str = "VM_REMAP_TEST_MAPS";
const SAID: &str = "VM_REMAP_TEST_SAYS";

/// It maps a file, and reads and writes its bytes as its input says, where it was started for that.
#[test]
#[ignore = "it is the process that another test starts, in a guest"]
fn map_a_file() {
    let (Some(file), Some(said)) = (std::env::var_os(FILE), std::env::var_os(SAID)) else {
        return;
    };
    let file = File::options().read(true).write(true).open(file).unwrap();
    let len = usize::try_from(file.metadata().unwrap().len()).unwrap();
    let mapped: MmapRegion = MmapRegion::from_file(FileOffset::new(file, 0), len).unwrap();
    let mut said = File::options().append(true).open(said).unwrap();
    for (count, line) in std::io::stdin().lock().lines().enumerate() {
        let line = line.unwrap();
        let mut words = line.split(' ').map(|word| word.parse::<usize>().unwrap());
        let at = mapped.get_slice(words.next().unwrap(), 1).unwrap();
        if let Some(byte) = words.next() {
            at.write_obj(u8::try_from(byte).unwrap(), 0).unwrap();
        }
        let found: u8 = at.read_obj(0).unwrap();
        writeln!(said, "{count}: {found}").unwrap();
    }
}

/// One such process.
pub(crate) struct Mapper {
    asked: u32,
}

impl Mapper {
    /// Puts the program into the share.
    pub(crate) fn put(source: &Path) {
        std::fs::copy(std::env::current_exe().unwrap(), source.join("mapper")).unwrap();
    }

    /// Starts it in the guest, which has the share at `/mnt`.
    pub(crate) fn start(guest: &mut Console, file: &str) -> Self {
        // The program is to outlive its daemon.
        assert_eq!(guest.ask("cp /mnt/mapper /tmp/mapper; echo $?"), "0");
        assert_eq!(guest.ask("mkfifo /tmp/in; : >/tmp/said; echo $?"), "0");
        guest.line(&format!(
            "({FILE}={file} {SAID}=/tmp/said /tmp/mapper --ignored --exact mapper::map_a_file \
             </tmp/in >/tmp/mapped 2>&1; echo ended $? >>/tmp/said) & exec 3>/tmp/in"
        ));
        Self { asked: 0 }
    }

    /// What the process finds at `offset`, after it has written `byte` there, if there is one; or how
    /// it ended.
    pub(crate) fn ask(&mut self, guest: &mut Console, offset: u32, byte: Option<u8>) -> String {
        let byte = byte.map_or_else(String::new, |byte| format!(" {byte}"));
        let mark = self.asked;
        self.asked = mark.wrapping_add(1);
        let said = guest.ask(&format!(
            "echo '{offset}{byte}' >&3; until grep -q -e '^{mark}:' -e ended /tmp/said; \
             do sleep 0.1; done; tail -n 1 /tmp/said"
        ));
        said.trim_start_matches(&format!("{mark}: ")).to_owned()
    }

    /// Waits until the process is no more; it ends with its input.
    pub(crate) fn end(self, guest: &mut Console) {
        guest.line("exec 3>&-");
        guest.ask("until grep -q ended /tmp/said; do sleep 0.1; done");
    }
}
