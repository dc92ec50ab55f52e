//! Owns a guest that a test types into, and reads the console of. Never knows what it is asked.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

pub(crate) fn skip(test: &str, reason: &str) {
    let mut stderr = std::io::stderr();
    writeln!(stderr, "SKIP {test}: {reason}").unwrap();
}

pub(crate) struct Console {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
    asked: u32,
    /// It ends the watch.
    _watched: Sender<()>,
}

/// How long a guest may live: less than the lab gives a test, so that what it said is seen.
const LIFE: Duration = Duration::from_secs(240);

/// Ends a guest that hangs, so that whoever reads what it says comes to the end of that.
fn watch(child: &Child) -> Sender<()> {
    let (watched, ended) = channel();
    let pid = Pid::from_child(child);
    std::thread::spawn(move || {
        if ended.recv_timeout(LIFE) == Err(RecvTimeoutError::Timeout) {
            let mut stderr = std::io::stderr();
            writeln!(stderr, "the guest has not ended for {LIFE:?}").unwrap();
            kill_process(pid, Signal::KILL).unwrap();
        }
    });
    watched
}

impl Console {
    /// Starts `vm-remap run`.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_vm-remap"))
            .arg("run")
            .args(arguments)
            .env("RUST_LOG", "info")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let log = Arc::new(Mutex::new(String::new()));
        let kept = Arc::clone(&log);
        let reader = std::thread::spawn(move || {
            for line in stderr.lines() {
                let line = line.unwrap();
                // For the one who reads why a test failed.
                let mut stderr = std::io::stderr();
                writeln!(stderr, "{line}").unwrap();
                *kept.lock().unwrap() += &format!("{line}\n");
            }
        });
        Self {
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()),
            _watched: watch(&child),
            child,
            log,
            reader: Some(reader),
            asked: 0,
        }
    }

    /// Reads the console until a line has `text`; the line.
    pub(crate) fn wait_for(&mut self, text: &str) -> String {
        loop {
            let mut bytes = Vec::new();
            let count = self.output.read_until(b'\n', &mut bytes).unwrap();
            let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
            let mut stderr = std::io::stderr();
            writeln!(stderr, "guest: {line}").unwrap();
            assert!(
                count > 0,
                "the guest has ended: {}",
                self.log.lock().unwrap()
            );
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Has the guest's shell do `command`; the last line that it prints.
    pub(crate) fn ask(&mut self, command: &str) -> String {
        self.asked = self.asked.wrapping_add(1);
        let mark = format!("answer{}", self.asked);
        // The quotes keep the echo of what is typed apart from what it prints.
        let typed = format!("echo '{mark}'=\"$({command})\"\n");
        let typed = if command.starts_with("cd ") || command.contains("mount") {
            format!("{command} >/tmp/out 2>&1; echo '{mark}'=\"$(tail -n 1 /tmp/out)\"\n")
        } else {
            typed
        };
        self.input.write_all(typed.as_bytes()).unwrap();
        let line = self.wait_for(&format!("{mark}="));
        line.split_once('=').unwrap().1.to_owned()
    }

    /// Types `line`, and waits for nothing.
    pub(crate) fn line(&mut self, line: &str) {
        self.input
            .write_all(format!("{line}\n").as_bytes())
            .unwrap();
    }

    /// The process of `vm-remap`.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `vm-remap` has logged `text`.
    pub(crate) fn wait_for_log(&self, text: &str) {
        let ended = || self.reader.as_ref().is_none_or(JoinHandle::is_finished);
        while !self.log.lock().unwrap().contains(text) {
            assert!(!ended(), "it has ended, and never said {text:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Powers the guest off; everything that was logged.
    pub(crate) fn power_off(mut self) -> String {
        self.input.write_all(b"poweroff -f\n").unwrap();
        let ended = self.child.wait().unwrap();
        self.reader.take().unwrap().join().unwrap();
        let log = self.log.lock().unwrap().clone();
        assert!(ended.success(), "{ended}: {log}");
        log
    }
}

impl Drop for Console {
    /// Where a test has failed, its guest is not to go on beside the next one.
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
    }
}
