//! Owns the archive that the machine boots from. Decides what lies where in
//! it; never looks for the files itself.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result};
use cpio::newc::{Builder, ModeFileType, trailer};

use crate::binaries::Binary;
use crate::modules::Module;
use crate::profile::Step;

/// What one path of the archive is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Content {
    Folder,
    Program(Vec<u8>),
    Data(Vec<u8>),
    Link(String),
}

/// The archive, as a list of paths in the order in which they are unpacked.
#[derive(Debug, Default)]
pub(crate) struct Initramfs {
    entries: Vec<(String, Content)>,
    folders: BTreeSet<String>,
}

impl Initramfs {
    /// An archive with what every machine needs.
    pub(crate) fn new(busybox: &Path, settings: &Settings<'_>) -> Result<Self> {
        let mut archive = Self::default();
        archive.add("init", Content::Program(include_bytes!("../init").to_vec()));
        archive.add("bin/busybox", Content::Program(read(busybox)?));
        archive.add("lab/settings", Content::Data(settings.render()));
        Ok(archive)
    }

    /// Adds modules, to be loaded in this order.
    pub(crate) fn modules(&mut self, modules: Vec<Module>) {
        for (place, module) in modules.into_iter().enumerate() {
            let path = format!("lab/modules/{place:02}-{}.ko", module.name);
            self.add(&path, Content::Data(module.bytes));
        }
    }

    /// What boots inside of a guest of the machine: busybox, and a shell on the console.
    pub(crate) fn nested(busybox: &Path, modules: Vec<Module>) -> Result<Self> {
        let mut archive = Self::default();
        let init = include_bytes!("../guest-init").to_vec();
        archive.add("init", Content::Program(init));
        archive.add("bin/busybox", Content::Program(read(busybox)?));
        archive.modules(modules);
        Ok(archive)
    }

    /// Adds a kernel and the archive for it, for the machine's own guests.
    pub(crate) fn guest(&mut self, kernel: &Path, archive: &Self) -> Result<()> {
        self.add("guest/vmlinuz", Content::Data(read(kernel)?));
        let bytes = archive
            .bytes()
            .context("cannot pack the archive of a guest")?;
        self.add("guest/initramfs", Content::Data(bytes));
        Ok(())
    }

    /// Adds a program, and a link to it where it lies on this machine. The first process puts the
    /// links of `lab/there` in place once all is mounted.
    pub(crate) fn binary(&mut self, binary: &Binary) -> Result<()> {
        let path = format!("lab/bin/{}", binary.name);
        self.add(&path, Content::Program(read(&binary.path)?));
        if let Some(there) = binary.path.to_str().filter(|_| !binary.is_test) {
            self.add(
                &format!("lab/there{there}"),
                Content::Link(format!("/{path}")),
            );
        }
        Ok(())
    }

    /// Sets what the machine runs.
    pub(crate) fn steps(&mut self, steps: &[Step]) {
        self.add("lab/steps", Content::Data(render_steps(steps)));
    }

    /// Has the machine run `command` on a terminal.
    pub(crate) fn talk(&mut self, command: &[String]) {
        let line = format!("talk {}\n", quoted(command));
        self.add("lab/steps", Content::Data(line.into_bytes()));
    }

    /// Writes the archive.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let context = || format!("cannot write {}", path.display());
        let file = fs::File::create(path).with_context(context)?;
        let mut out = io::BufWriter::new(file);
        self.write_to(&mut out)
            .and_then(|()| out.flush())
            .with_context(context)
    }

    fn bytes(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.write_to(&mut bytes)?;
        Ok(bytes)
    }

    fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        for (path, content) in &self.entries {
            write_entry(out, path, content)?;
        }
        trailer(out).map(|_| ())
    }

    fn add(&mut self, path: &str, content: Content) {
        let path = path.trim_start_matches('/');
        for (end, _) in path.match_indices('/') {
            let (folder, _) = path.split_at(end);
            if self.folders.insert(folder.to_owned()) {
                self.entries.push((folder.to_owned(), Content::Folder));
            }
        }
        self.entries.push((path.to_owned(), content));
    }
}

/// What the machine's first process is told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings<'a> {
    pub(crate) token: &'a str,
    pub(crate) profile: &'a str,
    pub(crate) hugepages: u32,
}

impl Settings<'_> {
    fn render(&self) -> Vec<u8> {
        let Self {
            token,
            profile,
            hugepages,
        } = self;
        // One test at a time: a hang or a panic then has a name.
        format!(
            "TOKEN={token}\nHUGEPAGES={hugepages}\nexport VM_REMAP_LAB={profile}\n\
             export RUST_BACKTRACE=1 RUST_TEST_THREADS=1\n"
        )
        .into_bytes()
    }
}

fn render_steps(steps: &[Step]) -> Vec<u8> {
    let mut text = String::new();
    for step in steps {
        let stdout = step.stdout.as_deref().unwrap_or("-");
        let limit = step.timeout_s.to_string();
        let words = ["step", &step.name, &limit, stdout].map(str::to_owned);
        text.push_str(&quoted(&words));
        text.push(' ');
        text.push_str(&quoted(&step.command));
        text.push('\n');
    }
    text.into_bytes()
}

/// The words as a shell takes them, each unchanged.
fn quoted(words: &[String]) -> String {
    let words: Vec<_> = words
        .iter()
        .map(|word| format!("'{}'", word.replace('\'', r"'\''")))
        .collect();
    words.join(" ")
}

fn write_entry(out: &mut impl Write, path: &str, content: &Content) -> io::Result<()> {
    let (kind, mode, bytes) = match content {
        Content::Folder => (ModeFileType::Directory, 0o755, &[][..]),
        Content::Program(bytes) => (ModeFileType::Regular, 0o755, bytes.as_slice()),
        Content::Data(bytes) => (ModeFileType::Regular, 0o644, bytes.as_slice()),
        Content::Link(target) => (ModeFileType::Symlink, 0o777, target.as_bytes()),
    };
    let length = u32::try_from(bytes.len()).map_err(|_| {
        let text = format!("{path} has {} bytes, more than 4 GiB", bytes.len());
        io::Error::new(io::ErrorKind::FileTooLarge, text)
    })?;
    let builder = Builder::new(path).mode(mode).set_mode_file_type(kind);
    let mut entry = builder.write(out, length);
    entry.write_all(bytes)?;
    entry.finish()?;
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings<'_> = Settings {
        token: "abc",
        profile: "6.1",
        hugepages: 8,
    };

    fn program(folder: &Path, name: &str, is_test: bool) -> Binary {
        let path = folder.join(name);
        fs::write(&path, name).unwrap();
        Binary {
            name: name.to_owned(),
            path,
            is_test,
        }
    }

    #[test]
    fn every_folder_comes_once_and_before_what_it_holds() {
        let folder = tempfile::tempdir().unwrap();
        let busybox = program(folder.path(), "busybox", false);
        let mut archive = Initramfs::new(&busybox.path, &SETTINGS).unwrap();
        archive
            .binary(&program(folder.path(), "vm-remap", false))
            .unwrap();
        archive
            .binary(&program(folder.path(), "live", true))
            .unwrap();
        archive.modules(vec![Module {
            name: "kvm".to_owned(),
            bytes: vec![1],
        }]);
        let paths: Vec<_> = archive
            .entries
            .iter()
            .map(|(path, _)| path.as_str())
            .collect();
        for path in &paths {
            assert_eq!(paths.iter().filter(|other| *other == path).count(), 1);
            if let Some((parent, _)) = path.rsplit_once('/') {
                let place = |wanted: &str| paths.iter().position(|path| *path == wanted);
                assert!(place(parent).unwrap() < place(path).unwrap(), "{path}");
            }
        }
        for path in [
            "init",
            "lab/bin/vm-remap",
            "lab/bin/live",
            "lab/modules/00-kvm.ko",
        ] {
            assert!(paths.contains(&path), "{path}");
        }
    }

    /// The links of programs lay where the machine mounts `/tmp`, and were hidden by it.
    #[test]
    fn link_to_a_program_lies_where_no_mount_hides_it() {
        let folder = tempfile::tempdir().unwrap();
        let command = program(folder.path(), "vm-remap", false);
        let mut archive = Initramfs::new(&command.path, &SETTINGS).unwrap();
        archive.binary(&command).unwrap();
        archive
            .binary(&program(folder.path(), "live", true))
            .unwrap();
        let links: Vec<_> = archive
            .entries
            .iter()
            .filter(|(_, content)| matches!(content, Content::Link(_)))
            .collect();
        let expected = (
            format!("lab/there{}", command.path.display()),
            Content::Link("/lab/bin/vm-remap".to_owned()),
        );
        assert_eq!(links, [&expected]);
    }

    #[test]
    fn written_archive_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let busybox = program(folder.path(), "busybox", false);
        let mut archive = Initramfs::new(&busybox.path, &SETTINGS).unwrap();
        archive.talk(&["sh".to_owned()]);
        let path = folder.path().join("archive");
        archive.write(&path).unwrap();
        let mut rest = fs::File::open(&path).unwrap();
        let mut found = Vec::new();
        loop {
            let reader = cpio::newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            found.push((reader.entry().name().to_owned(), reader.entry().mode()));
            rest = reader.finish().unwrap();
        }
        let expected = [
            ("init", 0o100_755),
            ("bin", 0o040_755),
            ("bin/busybox", 0o100_755),
            ("lab", 0o040_755),
            ("lab/settings", 0o100_644),
            ("lab/steps", 0o100_644),
        ];
        assert_eq!(found, expected.map(|(path, mode)| (path.to_owned(), mode)));
    }

    #[test]
    fn a_guest_gets_a_kernel_and_an_archive_that_boots() {
        let folder = tempfile::tempdir().unwrap();
        let busybox = program(folder.path(), "busybox", false);
        let module = Module {
            name: "virtio_mmio".to_owned(),
            bytes: vec![1],
        };
        let nested = Initramfs::nested(&busybox.path, vec![module]).unwrap();
        let mut archive = Initramfs::new(&busybox.path, &SETTINGS).unwrap();
        archive.guest(&busybox.path, &nested).unwrap();
        let content = |wanted: &str| {
            let mut entries = archive.entries.iter();
            entries.find(|(path, _)| path == wanted).unwrap().1.clone()
        };
        assert_eq!(content("guest/vmlinuz"), Content::Data(b"busybox".to_vec()));
        let Content::Data(bytes) = content("guest/initramfs") else {
            panic!("the archive is a file");
        };
        let first = cpio::newc::Reader::new(bytes.as_slice()).unwrap();
        assert_eq!(first.entry().name(), "init");
        assert_eq!(first.entry().mode(), 0o100_755);
    }

    #[test]
    fn steps_are_quoted_for_the_shell() {
        let step = Step {
            name: "a".to_owned(),
            command: vec!["echo".to_owned(), "it's $HOME".to_owned()],
            stdout: None,
            timeout_s: 9,
            is_test: false,
        };
        assert_eq!(
            String::from_utf8(render_steps(&[step])).unwrap(),
            "'step' 'a' '9' '-' 'echo' 'it'\\''s $HOME'\n"
        );
    }
}
