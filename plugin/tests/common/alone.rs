//! Owns running a test in a process of its own: for what is counted, limited or used up process by
//! process. Never decides what is tested.

use std::process::{Command, ExitStatus, Stdio};

/// Tells the process that it is the one started for the test, and with what.
const VARIABLE: &str = "VM_REMAP_TEST_ALONE";

/// Runs `body` in a process of its own, and fails where it does there. `test` is the whole name of
/// the test that calls this.
pub fn alone(test: &str, body: impl FnOnce()) {
    if word().is_some_and(|word| word == test) {
        return body();
    }
    let (status, output) = start(test, test);
    assert!(status.success(), "{test} failed alone: {status}");
    // A name that no test has would be a success too.
    assert!(output.contains("1 passed"), "{test} did not run: {output}");
}

/// What the process was started with by [`start`], if it was.
pub fn word() -> Option<String> {
    std::env::var(VARIABLE).ok()
}

/// Runs the test `test` alone in another process, which finds `word`, and waits for it. Returns how
/// it ended, and what it wrote.
pub fn start(test: &str, word: &str) -> (ExitStatus, String) {
    let child = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(VARIABLE, word)
        // Many arenas of malloc are many areas that come and go.
        .env("MALLOC_ARENA_MAX", "1")
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&child.stdout).into_owned();
    (child.status, output)
}
