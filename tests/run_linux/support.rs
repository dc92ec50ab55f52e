//! Owns how the tests start the command, and what they need of the host. Never asserts anything.

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

/// Whether this host runs guests. Where it does not, says so, past the capture of the test
/// harness.
pub(crate) fn runs_guests(test: &str) -> bool {
    if is_pvm() {
        skip(test, "this host's KVM is the PVM flavour");
        return false;
    }
    if !Path::new("/dev/kvm").exists() {
        skip(test, "there is no /dev/kvm");
        return false;
    }
    true
}

pub(crate) fn is_pvm() -> bool {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let virtualization = cpus.contains(" vmx ") || cpus.contains(" svm ");
    Path::new("/sys/module/kvm_pvm").exists() && !virtualization
}

pub(crate) fn skip(test: &str, reason: &str) {
    let mut stderr = std::io::stderr();
    writeln!(stderr, "SKIP {test}: {reason}").unwrap();
}

/// `vm-remap run`, on pipes.
pub(crate) fn start(arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_vm-remap"))
        .arg("run")
        .args(arguments)
        .env_remove("RUST_LOG")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Types `input` into a guest, and waits for its end. Its input stays open until then.
pub(crate) fn run(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = start(arguments);
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    drop(stdin);
    output
}

/// The exit code, and the text on standard error.
pub(crate) fn said(output: &Output) -> (Option<i32>, String) {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), text)
}
