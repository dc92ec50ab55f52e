//! Owns the project's own programs for the machine: has cargo build them
//! linked statically. Never runs them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::profile::Steps;
use crate::progress;

/// Named, so that the flags below spare procedural macros.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// One static program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Binary {
    /// Its name in the machine.
    pub(crate) name: String,
    /// Where it lies on this machine; a test may know another program of the
    /// project by that path.
    pub(crate) path: PathBuf,
    pub(crate) is_test: bool,
}

/// Builds the command and the integration tests.
pub(crate) fn build(root: &Path, folder: &Path, steps: &Steps) -> Result<Vec<Binary>> {
    progress::line("building the command and the tests, linked statically");
    let mut binaries = named(&cargo(
        root,
        folder,
        &["build", "--bins", "--all-features"],
        steps,
    )?);
    binaries.retain(|binary| !binary.is_test);
    let tests = ["test", "--no-run", "--all-features", "--tests"];
    let tests = named(&cargo(root, folder, &tests, steps)?);
    binaries.extend(tests.into_iter().filter(|binary| binary.is_test));
    Ok(binaries)
}

fn cargo(root: &Path, folder: &Path, args: &[&str], steps: &Steps) -> Result<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(args)
        .args(["--quiet", "--profile", "lab", "--target", TARGET])
        .args(["--message-format", "json-render-diagnostics"])
        .args(steps.packages.iter().flat_map(|name| ["-p", name]))
        .arg("--target-dir")
        .arg(folder)
        .current_dir(root)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .stderr(Stdio::inherit());
    let output = command.output().context("cannot run cargo")?;
    ensure!(
        output.status.success(),
        "cannot build the programs for the lab (cargo: {}): its messages are above; if it misses \
         the target, run `rustup target add {TARGET}`",
        output.status
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[derive(Debug, Deserialize)]
struct Message {
    #[serde(default)]
    executable: Option<PathBuf>,
    #[serde(default)]
    package_id: String,
    target: Option<Target>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

/// The commands and integration tests among cargo's messages, by name. Those
/// that share a name get their package's name in front.
fn named(messages: &str) -> Vec<Binary> {
    let mut found = Vec::new();
    for line in messages.lines() {
        let Ok(Message {
            executable: Some(path),
            package_id,
            target: Some(Target { name, kind }),
        }) = serde_json::from_str(line)
        else {
            continue;
        };
        let is = |wanted: &str| kind.iter().any(|kind| kind == wanted);
        // A command's unit tests are of the kind `bin` too, and have a hash.
        let is_command = is("bin") && path.file_name().is_some_and(|file| file == &*name);
        if is("test") || is_command {
            let is_test = is("test");
            found.push((
                package_id,
                Binary {
                    name,
                    path,
                    is_test,
                },
            ));
        }
    }
    let names: Vec<_> = found.iter().map(|(_, found)| found.name.clone()).collect();
    let mut binaries: Vec<_> = found
        .into_iter()
        .map(|(id, mut binary)| {
            if names.iter().filter(|name| **name == binary.name).count() > 1 {
                binary.name = format!("{}-{}", package_name(&id), binary.name);
            }
            binary
        })
        .collect();
    binaries.sort_by(|a, b| a.name.cmp(&b.name));
    binaries
}

/// `path+file:///x/plugin#name@1.0` or `path+file:///x/name#1.0`.
fn package_name(id: &str) -> &str {
    let (place, version) = id.rsplit_once('#').unwrap_or((id, ""));
    match version.split_once('@') {
        Some((name, _)) => name,
        None => place.rsplit('/').next().unwrap_or(place),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(id: &str, name: &str, kind: &str, executable: &str) -> String {
        format!(
            r#"{{"reason":"compiler-artifact","package_id":"{id}",
            "target":{{"name":"{name}","kind":["{kind}"]}},"executable":{executable}}}"#
        )
        .replace('\n', "")
    }

    #[test]
    fn commands_and_integration_tests_are_found() {
        let text = [
            message(
                "path+file:///x#cli@0.1.0",
                "vm-remap",
                "bin",
                r#""/t/vm-remap""#,
            ),
            message(
                "path+file:///x#cli@0.1.0",
                "vm-remap",
                "bin",
                r#""/t/deps/vm_remap-1a""#,
            ),
            message(
                "path+file:///x#cli@0.1.0",
                "cli",
                "lib",
                r#""/t/deps/cli-1a""#,
            ),
            message(
                "path+file:///x#cli@0.1.0",
                "live",
                "test",
                r#""/t/deps/live-1a""#,
            ),
            message(
                "path+file:///x/plugin#0.1.0",
                "live",
                "test",
                r#""/t/deps/live-2b""#,
            ),
            message("path+file:///x/plugin#0.1.0", "plugin", "lib", "null"),
            r#"{"reason":"build-finished","success":true}"#.to_owned(),
        ]
        .join("\n");
        let found: Vec<_> = named(&text)
            .into_iter()
            .map(|binary| (binary.name, binary.path, binary.is_test))
            .collect();
        assert_eq!(
            found,
            [
                ("cli-live".to_owned(), "/t/deps/live-1a".into(), true),
                ("plugin-live".to_owned(), "/t/deps/live-2b".into(), true),
                ("vm-remap".to_owned(), "/t/vm-remap".into(), false)
            ]
        );
    }
}
