//! Owns the Debian packages that the lab needs: finds, fetches and unpacks
//! them below the cache directory. Never installs a kernel on this machine.

use std::cmp::Ordering;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::progress;

/// A package that lies unpacked in the cache.
#[derive(Debug, Clone)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    /// The directory that stands for `/`.
    pub(crate) root: PathBuf,
}

/// Where packages are kept.
#[derive(Debug)]
pub(crate) struct Store {
    folder: PathBuf,
}

impl Store {
    pub(crate) fn open(folder: PathBuf) -> Result<Self> {
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        ensure_tool("dpkg-deb", "dpkg")?;
        Ok(Self { folder })
    }

    /// The newest package whose name fits `pattern`, from apt's sources or,
    /// where apt has none, from the packages already fetched.
    pub(crate) fn newest(&self, pattern: &str) -> Result<Package> {
        for name in fitting(pattern, apt_names(pattern)) {
            let Some(version) = apt_version(&name) else {
                continue;
            };
            let deb = match self.fetched(&name, Some(&version))? {
                Some(deb) => deb,
                None => self.fetch(&name, &version)?,
            };
            return self.unpack(&deb);
        }
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let file = entry?.file_name().to_string_lossy().into_owned();
            if file.ends_with(".deb") {
                names.extend(file.split_once('_').map(|(name, _)| name.to_owned()));
            }
        }
        for name in fitting(pattern, names) {
            if let Some(deb) = self.fetched(&name, None)? {
                return self.unpack(&deb);
            }
        }
        bail!(
            "cannot find a package like {pattern}: run `apt-get update`, or add a Debian release \
             that has it to apt's sources, or put its .deb into {}",
            self.folder.display()
        )
    }

    fn fetched(&self, name: &str, version: Option<&str>) -> Result<Option<PathBuf>> {
        let start = match version {
            // As apt writes it.
            Some(version) => format!("{name}_{}_", version.replace(':', "%3a")),
            None => format!("{name}_"),
        };
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            if file.starts_with(&start) && file.ends_with(".deb") {
                found.push(path);
            }
        }
        found.sort_by(|a, b| natural(&a.to_string_lossy(), &b.to_string_lossy()));
        Ok(found.pop())
    }

    fn fetch(&self, name: &str, version: &str) -> Result<PathBuf> {
        progress::line(&format!("fetching {name} {version}"));
        let mut command = Command::new("apt-get");
        command.args(["-qq", "download"]);
        if is_root() {
            // Else apt warns that its own user may not write here.
            command.args(["-o", "APT::Sandbox::User=root"]);
        }
        let status = command
            .arg(format!("{name}={version}"))
            .current_dir(&self.folder)
            .status()
            .context("cannot run apt-get")?;
        ensure!(
            status.success(),
            "cannot fetch {name} {version} (apt-get: {status}): check the network, run \
             `apt-get update`, or put the .deb into {}",
            self.folder.display()
        );
        self.fetched(name, Some(version))?
            .with_context(|| format!("apt-get left no {name}_*.deb in {}", self.folder.display()))
    }

    fn unpack(&self, deb: &Path) -> Result<Package> {
        let field = |name: &str| output(Command::new("dpkg-deb").arg("-f").arg(deb).arg(name));
        let (name, version) = (field("Package")?, field("Version")?);
        let root = deb.with_extension("");
        if !root.is_dir() {
            progress::line(&format!("unpacking {name} {version}"));
            // Under another name until complete, so that an interrupted run
            // leaves nothing that looks whole.
            let partial = self.folder.join(format!("{name}.partial"));
            if partial.exists() {
                fs::remove_dir_all(&partial)?;
            }
            output(Command::new("dpkg-deb").arg("-x").arg(deb).arg(&partial))?;
            fs::rename(&partial, &root)
                .with_context(|| format!("cannot create {}", root.display()))?;
        }
        Ok(Package {
            name,
            version,
            root,
        })
    }
}

/// Makes sure that `tool` is on PATH; root gets `package` installed for it.
pub(crate) fn ensure_tool(tool: &str, package: &str) -> Result<()> {
    if is_on_path(tool) {
        return Ok(());
    }
    if is_root() && is_on_path("apt-get") {
        progress::line(&format!("installing {package}"));
        let status = Command::new("apt-get")
            .args(["-qq", "install", "-y", "--no-install-recommends", package])
            .env("DEBIAN_FRONTEND", "noninteractive")
            .status()
            .context("cannot run apt-get")?;
        if status.success() && is_on_path(tool) {
            return Ok(());
        }
    }
    bail!("cannot find {tool}: as root, run `apt-get install {package}`, then start the lab again")
}

/// Runs `command` and returns its trimmed output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    ensure!(
        output.status.success(),
        "{program} failed ({}): {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

fn is_on_path(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(tool).is_file())
}

fn apt_names(pattern: &str) -> Vec<String> {
    let start = pattern.split('*').next().unwrap_or(pattern);
    // Without apt there are no names, and the cache has to do.
    output(Command::new("apt-cache").args(["pkgnames", start]))
        .map(|names| names.lines().map(str::to_owned).collect())
        .unwrap_or_default()
}

/// The version that apt would fetch; none for a name that it only heard of.
fn apt_version(name: &str) -> Option<String> {
    let shown = output(Command::new("apt-cache").args(["show", "--no-all-versions", name])).ok()?;
    let version = shown
        .lines()
        .find_map(|line| line.strip_prefix("Version: "))?;
    Some(version.to_owned())
}

/// The names that fit `pattern`, newest first. `*` stands for a version: it
/// starts with a digit and has no `-`.
fn fitting(pattern: &str, mut names: Vec<String>) -> Vec<String> {
    names.retain(|name| match pattern.split_once('*') {
        None => name == pattern,
        Some((before, after)) => name
            .strip_prefix(before)
            .and_then(|rest| rest.strip_suffix(after))
            .is_some_and(|version| {
                version.starts_with(|first: char| first.is_ascii_digit()) && !version.contains('-')
            }),
    });
    names.sort_by(|a, b| natural(b, a));
    names.dedup();
    names
}

/// Orders text with its runs of digits compared as numbers.
fn natural(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    while let (Some((first_a, rest_a)), Some((first_b, rest_b))) =
        (a.split_first(), b.split_first())
    {
        if first_a.is_ascii_digit() && first_b.is_ascii_digit() {
            let (number_a, after_a) = digits(a);
            let (number_b, after_b) = digits(b);
            let order = number_a.len().cmp(&number_b.len());
            match order.then_with(|| number_a.cmp(number_b)) {
                Ordering::Equal => (a, b) = (after_a, after_b),
                other => return other,
            }
        } else {
            match first_a.cmp(first_b) {
                Ordering::Equal => (a, b) = (rest_a, rest_b),
                other => return other,
            }
        }
    }
    a.len().cmp(&b.len())
}

/// The digits that `text` starts with, without leading zeros, and the rest.
fn digits(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text
        .iter()
        .position(|byte| !byte.is_ascii_digit())
        .unwrap_or(text.len());
    let (mut number, rest) = text.split_at(end);
    while let Some((b'0', shorter)) = number.split_first() {
        number = shorter;
    }
    (number, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn newest_version_comes_first_by_number_not_by_letter() {
        let names = owned(&[
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64-unsigned",
            "linux-image-6.1.0-57-amd64",
            "linux-image-6.1.0-rt-cloud-amd64",
        ]);
        assert_eq!(
            fitting("linux-image-6.1.0-*-cloud-amd64", names),
            [
                "linux-image-6.1.0-56-cloud-amd64",
                "linux-image-6.1.0-9-cloud-amd64"
            ]
        );
    }

    #[test]
    fn backport_suffix_belongs_to_the_version() {
        let names = owned(&[
            "linux-image-6.12-cloud-amd64",
            "linux-image-6.12.99+deb12-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
        ]);
        assert_eq!(
            fitting("linux-image-6.12.*-cloud-amd64", names),
            [
                "linux-image-6.12.117+deb12-cloud-amd64",
                "linux-image-6.12.99+deb12-cloud-amd64"
            ]
        );
    }

    #[test]
    fn plain_name_fits_itself_only() {
        let names = owned(&["busybox-static", "busybox-static-dbg"]);
        assert_eq!(fitting("busybox-static", names), ["busybox-static"]);
    }

    #[test]
    fn natural_order_compares_numbers_and_ignores_leading_zeros() {
        assert_eq!(natural("a9b", "a10a"), Ordering::Less);
        assert_eq!(natural("a007", "a7"), Ordering::Equal);
        assert_eq!(natural("a7", "a7b"), Ordering::Less);
        assert_eq!(natural("b", "a99"), Ordering::Greater);
    }
}
