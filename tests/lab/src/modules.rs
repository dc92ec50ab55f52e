//! Owns which kernel modules a machine loads and in what order. Reads what
//! each module says it depends on, since `modules.dep` is no part of the
//! package (depmod writes it where a kernel is installed).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// One module, ready to be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
}

/// The modules of one kernel.
#[derive(Debug)]
pub(crate) struct Modules {
    files: BTreeMap<String, PathBuf>,
    busybox: PathBuf,
}

impl Modules {
    /// Finds every module below `folder`. `busybox` uncompresses them.
    pub(crate) fn below(folder: &Path, busybox: PathBuf) -> Result<Self> {
        let mut files = BTreeMap::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            let entries = fs::read_dir(&folder)
                .with_context(|| format!("cannot list {}", folder.display()))?;
            for entry in entries {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    folders.push(entry.path());
                } else if let Some(name) = module_name(&entry.path()) {
                    files.insert(name, entry.path());
                }
            }
        }
        Ok(Self { files, busybox })
    }

    /// Uses `path` in place of the kernel's own module of that name.
    pub(crate) fn replace(&mut self, path: PathBuf) -> Result<()> {
        let name =
            module_name(&path).with_context(|| format!("{} is no module", path.display()))?;
        ensure!(path.is_file(), "cannot find {}", path.display());
        self.files.insert(name, path);
        Ok(())
    }

    /// The modules `wanted` and all they depend on, in loading order.
    pub(crate) fn in_order(&self, wanted: &[String]) -> Result<Vec<Module>> {
        let mut ready = Vec::new();
        resolve(wanted, &|name| self.read(name), &mut Vec::new(), &mut ready)?;
        Ok(ready)
    }

    /// Those of `names` that are modules of this kernel: it has the others built in, or not at all.
    pub(crate) fn among(&self, names: &[&str]) -> Vec<String> {
        let there = names
            .iter()
            .filter(|name| self.files.contains_key(&plain(name)));
        there.map(|&name| name.to_owned()).collect()
    }

    fn read(&self, name: &str) -> Result<Module> {
        let path = self.files.get(&plain(name)).with_context(|| {
            format!("cannot find the module {name} in the kernel package (is it built in?)")
        })?;
        let unpack = match path.extension().and_then(|ending| ending.to_str()) {
            Some("ko") => None,
            Some("gz") => Some("zcat"),
            _ => Some("xzcat"),
        };
        let bytes = if let Some(applet) = unpack {
            let output = Command::new(&self.busybox)
                .arg(applet)
                .arg(path)
                .output()
                .with_context(|| format!("cannot run {}", self.busybox.display()))?;
            ensure!(
                output.status.success(),
                "cannot uncompress {}: {}",
                path.display(),
                String::from_utf8_lossy(&output.stderr).trim()
            );
            output.stdout
        } else {
            fs::read(path).with_context(|| format!("cannot read {}", path.display()))?
        };
        let name = plain(name);
        Ok(Module { name, bytes })
    }
}

/// Puts `wanted` behind what it depends on. `path` holds the modules whose
/// dependencies are being resolved.
fn resolve(
    wanted: &[String],
    read: &dyn Fn(&str) -> Result<Module>,
    path: &mut Vec<String>,
    ready: &mut Vec<Module>,
) -> Result<()> {
    for name in wanted {
        let name = plain(name);
        if ready.iter().any(|module| module.name == name) {
            continue;
        }
        ensure!(
            !path.contains(&name),
            "the modules {} depend on each other",
            path.join(", ")
        );
        let module = read(&name)?;
        path.push(name);
        resolve(&depends(&module.bytes), read, path, ready)?;
        path.pop();
        ready.push(module);
    }
    Ok(())
}

/// What a module's `.modinfo` section says that it depends on.
fn depends(module: &[u8]) -> Vec<String> {
    let Some(list) = module
        .split(|&byte| byte == 0)
        .find_map(|text| text.strip_prefix(b"depends="))
    else {
        return Vec::new();
    };
    String::from_utf8_lossy(list)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

/// The name of the module in the file `path`, if it is one.
fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let (name, ending) = file.split_once(".ko")?;
    matches!(ending, "" | ".xz" | ".gz").then(|| plain(name))
}

/// The kernel takes `-` and `_` in a module's name for the same.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded(wanted: &[&str], known: &[(&str, &str)]) -> Result<Vec<String>> {
        let read = |name: &str| -> Result<Module> {
            let (_, list) = known
                .iter()
                .find(|(other, _)| *other == name)
                .with_context(|| format!("no {name}"))?;
            Ok(Module {
                name: name.to_owned(),
                bytes: format!("ELF\0license=GPL\0depends={list}\0name={name}\0").into_bytes(),
            })
        };
        let wanted: Vec<_> = wanted.iter().map(|&name| name.to_owned()).collect();
        let mut ready = Vec::new();
        resolve(&wanted, &read, &mut Vec::new(), &mut ready)?;
        Ok(ready.into_iter().map(|module| module.name).collect())
    }

    #[test]
    fn dependencies_are_loaded_first_and_once() {
        let known = [
            ("kvm_amd", "kvm,ccp"),
            ("kvm", "irqbypass"),
            ("ccp", ""),
            ("irqbypass", ""),
        ];
        assert_eq!(
            loaded(&["kvm-amd", "kvm"], &known).unwrap(),
            ["irqbypass", "kvm", "ccp", "kvm_amd"]
        );
    }

    #[test]
    fn missing_dependency_is_named() {
        let error = loaded(&["kvm"], &[("kvm", "irqbypass")]).unwrap_err();
        assert_eq!(error.to_string(), "no irqbypass");
    }

    #[test]
    fn modules_that_depend_on_each_other_are_refused() {
        let error = loaded(&["a"], &[("a", "b"), ("b", "a")]).unwrap_err();
        assert_eq!(error.to_string(), "the modules a, b depend on each other");
    }

    #[test]
    fn module_files_are_told_by_their_ending() {
        let name = |file: &str| module_name(Path::new(file));
        assert_eq!(name("x/kvm-amd.ko.xz").as_deref(), Some("kvm_amd"));
        assert_eq!(name("kvm.ko").as_deref(), Some("kvm"));
        assert_eq!(name("modules.order"), None);
        assert_eq!(name("kvm.ko.tmp"), None);
    }

    #[test]
    fn names_that_are_no_modules_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("virtio_mmio.ko.xz"), "").unwrap();
        let modules = Modules::below(folder.path(), "busybox".into()).unwrap();
        assert_eq!(modules.among(&["virtio-mmio", "virtiofs"]), ["virtio-mmio"]);
    }

    #[test]
    fn replaced_module_wins() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("old"), folder.path().join("new"));
        for (place, text) in [(&old, "old"), (&new, "new")] {
            fs::create_dir(place).unwrap();
            fs::write(place.join("kvm.ko"), text).unwrap();
        }
        let mut modules = Modules::below(&old, "busybox".into()).unwrap();
        modules.replace(new.join("kvm.ko")).unwrap();
        let ready = modules.in_order(&["kvm".to_owned()]).unwrap();
        assert_eq!(ready.first().unwrap().bytes, b"new");
        let error = modules.replace(new.join("ccp.ko")).unwrap_err();
        assert!(error.to_string().starts_with("cannot find "));
    }
}
