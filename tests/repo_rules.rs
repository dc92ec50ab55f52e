//! Owns the rules that the compiler does not keep: where unsafe code and mmap may stand, which floor
//! imports which, what a file opens with, which licences come in. Never runs the project.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a check that cannot go on fails, and says why"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The floors of the library, the lowest first. A file imports from its own floor or a lower one.
const FLOORS: [&[&str]; 8] = [
    &["range", "error", "host", "sync"],
    &["source", "layout"],
    &["arena", "slots", "dma"],
    &["backend"],
    &["window"],
    &["access"],
    &["fault"],
    &["vhost_user"],
];

/// Crates that belong to adapters, with the files of the library that are adapters.
const ADAPTED: [&str; 7] = [
    "kvm_ioctls",
    "kvm_bindings",
    "vm_memory",
    "vhost",
    "event_manager",
    "vfio_ioctls",
    "vfio_bindings",
];
const ADAPTERS: [&str; 16] = [
    "plugin/src/access/bounce.rs",
    "plugin/src/access/bytes.rs",
    "plugin/src/access/mixed.rs",
    "plugin/src/access/region.rs",
    "plugin/src/access/slice.rs",
    "plugin/src/access/tracking.rs",
    "plugin/src/dma/vfio.rs",
    "plugin/src/fault/kvm.rs",
    "plugin/src/slots/kvm.rs",
    "plugin/src/slots/kvm_prefault.rs",
    "plugin/src/vhost_user/channel.rs",
    "plugin/src/vhost_user/config.rs",
    "plugin/src/vhost_user/dispatch.rs",
    "plugin/src/vhost_user/handler.rs",
    "plugin/src/vhost_user/request.rs",
    "plugin/src/vhost_user/subscriber.rs",
];

/// The files of the library that change the address space.
const ARENA: [&str; 2] = ["plugin/src/arena/mod.rs", "plugin/src/arena/staged.rs"];

const LICENCES: [&str; 13] = [
    "MIT",
    "NCSA",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
    "0BSD",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The tracked files with this ending, and their texts.
fn tracked(ending: &str) -> Vec<(String, String)> {
    let listed = Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(listed.status.success(), "git ls-files failed");
    let names = String::from_utf8(listed.stdout).unwrap();
    let files = names
        .split('\0')
        .filter(|name| name.ends_with(ending) && !name.is_empty());
    files
        .filter_map(|name| {
            let text = fs::read_to_string(root().join(name)).ok()?;
            Some((name.to_owned(), text))
        })
        .collect()
}

fn complain(broken: &[String]) {
    for line in broken {
        eprintln!("{line}");
    }
    assert!(broken.is_empty(), "{} rules are broken", broken.len());
}

fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate();
    lines
        .map(|(at, line)| (at + 1, line))
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
}

#[test]
fn every_source_file_says_what_it_owns() {
    let broken = tracked(".rs")
        .into_iter()
        .filter(|(_, text)| !text.starts_with("//!"));
    complain(
        &broken
            .map(|(name, _)| format!("{name}: does not open with //!"))
            .collect::<Vec<_>>(),
    );
}

#[test]
fn a_file_that_opens_the_fence_says_why() {
    let mut broken = Vec::new();
    for (name, text) in tracked(".rs") {
        let opens = text.contains("#![expect(unsafe_code");
        let library = !name.contains("tests/");
        if library && opens && !text.contains("// UNSAFETY:") {
            broken.push(format!("{name}: opens the fence without // UNSAFETY:"));
        }
        if text.contains(concat!("allow(unsafe", "_code")) {
            broken.push(format!(
                "{name}: allows unsafe code instead of expecting it"
            ));
        }
    }
    complain(&broken);
}

#[test]
fn the_arena_alone_changes_the_address_space() {
    let mut broken = Vec::new();
    for (name, text) in tracked(".rs") {
        // The second is for the tests: it plays a kernel that fails half-way.
        let more = ["plugin/src/arena/poison.rs", "plugin/src/arena/faults.rs"];
        let may = |name| ARENA.contains(&name) || more.contains(&name);
        if !name.starts_with("plugin/src/") || may(name.as_str()) {
            continue;
        }
        for (at, line) in code(&text).filter(|(_, line)| line.contains("rustix::mm")) {
            broken.push(format!("{name}:{at}: {line}"));
        }
    }
    complain(&broken);
}

/// What does not go through the gate, the tests cannot make fail.
#[test]
fn every_system_call_of_the_arena_goes_through_the_gate() {
    for name in ARENA {
        let text = fs::read_to_string(root().join(name)).unwrap();
        let count = |part: &str| code(&text).filter(|(_, line)| line.contains(part)).count();
        let gates = count("through(Call::");
        assert!(gates > 4, "{name}: the gate was not found");
        assert_eq!(
            count("unsafe {"),
            gates,
            "{name}: an unsafe call stands outside the gate"
        );
    }
    let text = fs::read_to_string(root().join("plugin/src/arena/poison.rs")).unwrap();
    // To make a request is not to send it.
    let calls = |line: &str| line.contains("unsafe {") && !line.contains("Updater");
    let (text, _) = text.split_once("#[cfg(test)]").unwrap();
    let gates = text.matches("through(Call::").count();
    assert_eq!(text.lines().filter(|line| calls(line)).count(), gates);
}

#[test]
fn floors_import_downward_only() {
    let floor_of = |module: &str| FLOORS.iter().position(|floor| floor.contains(&module));
    let mut broken = Vec::new();
    let mut seen = 0;
    for (name, text) in tracked(".rs") {
        let Some(rest) = name.strip_prefix("plugin/src/") else {
            continue;
        };
        let module = rest.split(['/', '.']).next().unwrap();
        if module == "lib" {
            continue;
        }
        let Some(own) = floor_of(module) else {
            broken.push(format!("{name}: stands on no floor"));
            continue;
        };
        for (at, line) in code(&text) {
            for used in line.split("crate::").skip(1) {
                let used = used
                    .split(|c: char| !c.is_alphanumeric() && c != '_')
                    .next()
                    .unwrap();
                seen += 1;
                if floor_of(used).is_some_and(|floor| floor > own) {
                    broken.push(format!("{name}:{at}: reaches up: {}", line.trim()));
                }
            }
        }
    }
    assert!(seen > 50, "the imports were not found");
    complain(&broken);
}

#[test]
fn adapters_alone_know_the_crates_they_adapt() {
    let mut broken = Vec::new();
    for (name, text) in tracked(".rs") {
        if !name.starts_with("plugin/src/") || ADAPTERS.contains(&name.as_str()) {
            continue;
        }
        for (at, line) in code(&text) {
            if ADAPTED
                .iter()
                .any(|adapted| line.contains(&format!("{adapted}::")))
            {
                broken.push(format!("{name}:{at}: {line}"));
            }
        }
    }
    complain(&broken);
}

#[test]
fn nothing_is_left_to_do_later_and_nothing_names_a_machine() {
    let words = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
    ];
    let mut broken = Vec::new();
    for ending in [".rs", ".md", ".toml", "run", "build", ".patch"] {
        for (name, text) in tracked(ending) {
            for (at, line) in text.lines().enumerate() {
                if let Some(word) = words.iter().find(|word| line.contains(*word)) {
                    broken.push(format!("{name}:{}: {word}", at + 1));
                }
            }
        }
    }
    complain(&broken);
}

#[test]
fn dependencies_come_from_the_registry_under_known_licences() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let metadata = Command::new(cargo)
        .args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--all-features",
        ])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        metadata.status.success(),
        "{}",
        String::from_utf8_lossy(&metadata.stderr)
    );
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let mut broken = Vec::new();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 20);
    for package in packages {
        let name = package["name"].as_str().unwrap();
        let own = package["source"].is_null();
        let source = package["source"].as_str().unwrap_or("");
        if own {
            let manifest = package["manifest_path"].as_str().unwrap();
            if !Path::new(manifest).starts_with(root()) {
                broken.push(format!("{name}: comes from {manifest}"));
            }
        } else if !source.starts_with("registry+") {
            broken.push(format!("{name}: comes from {source}"));
        }
        let licence = package["license"]
            .as_str()
            .unwrap_or("none")
            .replace('/', " OR ");
        if !known(&licence) {
            broken.push(format!("{name}: licence {licence}"));
        }
    }
    complain(&broken);
}

/// Whether one side of each OR, and all of each AND, is a licence of the list.
fn known(licence: &str) -> bool {
    let flat = licence.replace(['(', ')'], "");
    flat.split(" AND ")
        .all(|all| all.split(" OR ").any(|one| LICENCES.contains(&one.trim())))
}

#[test]
fn the_threat_model_names_tests_that_exist() {
    let text = fs::read_to_string(root().join("docs/threat-model.md")).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| "));
    let quoted = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    let mut broken = Vec::new();
    let mut seen = 0;
    for name in quoted.filter(|name| name.contains(".rs")) {
        let (path, test) = name.split_once("::").unwrap_or((name, ""));
        let path = match path.split_once('/') {
            Some(("window", file)) => format!("tests/window/{file}"),
            Some(("memory", file)) => format!("plugin/tests/memory/{file}"),
            _ => path.to_owned(),
        };
        let text = fs::read_to_string(root().join(&path)).unwrap_or_default();
        seen += 1;
        if text.is_empty() || !text.contains(&format!("fn {test}")) {
            broken.push(format!("docs/threat-model.md: there is no {name}"));
        }
    }
    assert!(seen > 90, "the names were not found: {seen}");
    complain(&broken);
}
