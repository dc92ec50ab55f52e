//! Owns what a profile and the list of steps say. Never acts on it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// One emulated machine, as `profiles/<name>.toml` describes it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Profile {
    #[serde(skip)]
    pub(crate) name: String,
    /// Name of the kernel package; `*` stands for its version.
    pub(crate) package: String,
    /// The out-of-tree KVM that replaces the package's.
    #[serde(default)]
    pub(crate) variant: Option<String>,
    /// Whether a run without `--kernel` includes it.
    #[serde(default)]
    pub(crate) default: bool,
    /// The tests and steps that run without a command; all of them where empty.
    #[serde(default)]
    pub(crate) only: Vec<String>,
    /// The kind of machine, the value of QEMU's `-machine`; its own default where it is none.
    #[serde(default)]
    pub(crate) machine: Option<String>,
    pub(crate) cpu: String,
    pub(crate) smp: u32,
    pub(crate) memory_mib: u32,
    pub(crate) devices: Vec<String>,
    pub(crate) modules: Vec<String>,
    pub(crate) hugepages: u32,
    pub(crate) cmdline: String,
    /// How long the machine may take until its first step.
    pub(crate) boot_timeout_s: u64,
    /// How long all its steps may take.
    pub(crate) timeout_s: u64,
}

/// Reads the profile `name`.
pub(crate) fn read(lab: &Path, name: &str) -> Result<Profile> {
    let known = names(lab)?;
    ensure!(
        known.iter().any(|other| other == name),
        "cannot find a profile {name}: there are {}",
        known.join(", ")
    );
    let path = lab.join("profiles").join(format!("{name}.toml"));
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(name, &text).with_context(|| format!("cannot use {}", path.display()))
}

/// The names of all profiles, sorted.
pub(crate) fn names(lab: &Path) -> Result<Vec<String>> {
    let folder = lab.join("profiles");
    let entries =
        fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        names.extend(name.strip_suffix(".toml").map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

fn parse(name: &str, text: &str) -> Result<Profile> {
    let mut profile: Profile = toml::from_str(text)?;
    name.clone_into(&mut profile.name);
    ensure!(
        profile.package.matches('*').count() == 1,
        "the package {:?} needs one * for its version",
        profile.package
    );
    ensure!(
        profile.smp > 0 && profile.memory_mib >= 512,
        "a machine needs a CPU and 512 MiB, not {} and {} MiB",
        profile.smp,
        profile.memory_mib
    );
    Ok(profile)
}

/// What a run without a command does, as `steps.toml` describes it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Steps {
    /// Packages whose integration tests run.
    pub(crate) packages: Vec<String>,
    /// Test binaries that do not.
    pub(crate) deny_tests: Vec<String>,
    pub(crate) test_timeout_s: u64,
    #[serde(rename = "step")]
    pub(crate) commands: Vec<Step>,
}

/// One command of a run.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Step {
    pub(crate) name: String,
    pub(crate) command: Vec<String>,
    /// The result file that gets standard output; none means the step's log.
    #[serde(default)]
    pub(crate) stdout: Option<String>,
    pub(crate) timeout_s: u64,
    /// Whether the output is libtest's, to be counted test by test.
    #[serde(skip)]
    pub(crate) is_test: bool,
}

/// Reads `steps.toml`.
pub(crate) fn read_steps(lab: &Path) -> Result<Steps> {
    let path = lab.join("steps.toml");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("cannot use {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lab() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR"))
    }

    #[test]
    fn every_shipped_profile_is_valid() {
        let names = names(lab()).unwrap();
        assert_eq!(names, ["6.1", "6.12", "cured", "dma", "worker"]);
        for name in names {
            let profile = read(lab(), &name).unwrap();
            assert_eq!(profile.name, name);
            assert!(profile.cpu.contains("+npt"), "{name}");
            assert!(profile.modules.contains(&"kvm-amd".to_owned()), "{name}");
            assert!(profile.boot_timeout_s <= profile.timeout_s, "{name}");
            assert!(profile.default, "{name}");
            // A name that is misspelt would run nothing, and nobody would see it.
            let commands = read_steps(lab()).unwrap().commands;
            for only in &profile.only {
                let step = commands.iter().any(|step| step.name == *only);
                let test = lab().join(format!("../{only}.rs")).exists();
                assert!(step || test, "{name}: {only}");
            }
        }
    }

    #[test]
    fn unknown_profile_names_the_known_ones() {
        let error = read(lab(), "5.10").unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot find a profile 5.10: there are 6.1, 6.12, cured, dma, worker"
        );
    }

    #[test]
    fn misspelt_key_is_refused() {
        let text = fs::read_to_string(lab().join("profiles/6.1.toml")).unwrap();
        let error = parse("x", &text.replace("smp", "cpus")).unwrap_err();
        assert!(error.to_string().contains("cpus"), "{error}");
    }

    #[test]
    fn package_without_a_version_pattern_is_refused() {
        let text = fs::read_to_string(lab().join("profiles/6.1.toml")).unwrap();
        let error = parse("x", &text.replace("0-*-", "0-54-")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the package \"linux-image-6.1.0-54-cloud-amd64\" needs one * for its version"
        );
    }

    #[test]
    fn shipped_steps_are_valid() {
        let steps = read_steps(lab()).unwrap();
        assert_eq!(steps.packages, ["vm-remap-cli", "vm-remap"]);
        assert!(steps.commands.iter().all(|step| !step.command.is_empty()));
        assert!(steps.commands.iter().all(|step| !step.is_test));
    }
}
