//! Owns what one machine brought back: the files, and the counts of what
//! passed and failed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::channel::Event;
use crate::profile::Step;
use crate::progress;
use crate::tally::{Tally, signal, tally};

/// The name of the step that runs a person's own command.
pub(crate) const COMMAND: &str = "command";

/// What is known of one boot so far.
#[derive(Debug)]
pub(crate) struct Results {
    machine: String,
    folder: PathBuf,
    steps: Vec<Step>,
    /// The step that runs, what it wrote and the files it left.
    running: Option<String>,
    log: Vec<u8>,
    files: Vec<(String, usize)>,
    ended: Vec<String>,
    /// How the last step ended.
    pub(crate) status: Option<i32>,
    pub(crate) tally: Tally,
}

impl Results {
    pub(crate) fn new(machine: &str, folder: &Path, steps: Vec<Step>) -> Self {
        Self {
            machine: machine.to_owned(),
            folder: folder.to_owned(),
            steps,
            running: None,
            log: Vec::new(),
            files: Vec::new(),
            ended: Vec::new(),
            status: None,
            tally: Tally::default(),
        }
    }

    /// Takes in what the machine told.
    pub(crate) fn take(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Broken(why) => bail!("cannot prepare the machine: {why}"),
            Event::Begin(name) => {
                self.log.clear();
                self.files.clear();
                self.running = Some(name);
            }
            Event::Output(bytes) => self.log.extend(bytes),
            Event::File { name, bytes } => self.keep(&name, &bytes)?,
            Event::End {
                name,
                status,
                seconds,
            } => self.end(&name, status, seconds)?,
            Event::Ready { .. } | Event::Done => {}
        }
        Ok(())
    }

    /// The step that runs, and the test in it.
    pub(crate) fn current(&self) -> String {
        let step = self.running.as_deref().unwrap_or("no step");
        format!("{step}{}", self.running_test())
    }

    /// Names the test that has begun and not ended; empty where none has.
    fn running_test(&self) -> String {
        let log = String::from_utf8_lossy(&self.log);
        let name = log.lines().last().and_then(|line| {
            let name = line.strip_prefix("test ")?.split_once(" ...")?.0;
            Some(format!(", in the test {name}"))
        });
        name.unwrap_or_default()
    }

    /// Counts the steps that did not end, since the machine did for `why`.
    pub(crate) fn abandon(&mut self, why: &str) -> Result<()> {
        if let Some(name) = self.running.take() {
            let path = self.write_log(&name)?;
            let log = String::from_utf8_lossy(&self.log).into_owned();
            let test = self.running_test();
            self.say(&format!(
                "{name}: not ended{test}: {why}; see {}",
                path.display()
            ));
            let is_test = self.is_test(&name);
            self.tally.count(tally(&log, is_test, 1, true));
            self.ended.push(name);
        }
        let missing: Vec<_> = self
            .steps
            .iter()
            .map(|step| step.name.clone())
            .filter(|name| !self.ended.contains(name))
            .collect();
        for name in missing {
            self.say(&format!("{name}: not run: {why}"));
            self.tally.count(Tally::failure());
        }
        Ok(())
    }

    fn end(&mut self, name: &str, status: i32, seconds: u64) -> Result<()> {
        self.running = None;
        self.status = Some(status);
        self.ended.push(name.to_owned());
        let path = self.write_log(name)?;
        let log = String::from_utf8_lossy(&self.log).into_owned();
        let wrote = !log.trim().is_empty() || self.files.iter().any(|(_, length)| *length > 0);
        let counts = tally(&log, self.is_test(name), status, wrote);
        let limit = self
            .steps
            .iter()
            .find(|step| step.name == name)
            .map_or(u64::MAX, |step| step.timeout_s);
        let mut text = format!("{name}: {counts} ({seconds} s)");
        if counts.failed > 0 {
            let why = match signal(status) {
                Some(9) if seconds >= limit => format!("stopped after its {limit} s"),
                Some(signal) => format!("killed by signal {signal}"),
                None if status == 127 => "no such command".to_owned(),
                None if status != 0 => format!("exit status {status}"),
                None => "printed nothing".to_owned(),
            };
            text.push_str(&format!(": {why}"));
            if !counts.failures.is_empty() {
                text.push_str(&format!(": {}", counts.failures.join(", ")));
            }
            text.push_str(&format!("; see {}", path.display()));
        }
        // A command's output and status speak for themselves.
        if name != COMMAND || signal(status).is_some() {
            self.say(&text);
        }
        self.tally.count(counts);
        Ok(())
    }

    fn is_test(&self, name: &str) -> bool {
        self.steps
            .iter()
            .any(|step| step.name == name && step.is_test)
    }

    fn write_log(&self, name: &str) -> Result<PathBuf> {
        let path = self.folder.join(format!("{name}.log"));
        fs::write(&path, &self.log).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    fn keep(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        // The machine is not believed: a name must stay in the folder.
        if name.is_empty() || name.starts_with('.') || name.contains('/') {
            bail!("cannot keep a result named {name:?}: it must be a plain file name");
        }
        self.files.push((name.to_owned(), bytes.len()));
        let path = self.folder.join(name);
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        if name == "dmesg.txt" {
            let complaints = complaints(&String::from_utf8_lossy(bytes));
            if complaints > 0 {
                self.say(&format!(
                    "its kernel complained {complaints} times; see {}",
                    path.display()
                ));
            }
        }
        Ok(())
    }

    fn say(&self, text: &str) {
        progress::line(&format!("{}: {text}", self.machine));
    }
}

/// Counts the warnings and worse in a kernel's log.
fn complaints(dmesg: &str) -> usize {
    dmesg
        .lines()
        .filter(|line| {
            [
                "WARNING: CPU",
                "BUG: ",
                "Oops: ",
                "rcu_sched self-detected stall",
            ]
            .iter()
            .any(|words| line.contains(words))
        })
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(name: &str, is_test: bool) -> Step {
        Step {
            name: name.to_owned(),
            command: vec![name.to_owned()],
            stdout: None,
            timeout_s: 10,
            is_test,
        }
    }

    fn end(name: &str, status: i32) -> Event {
        Event::End {
            name: name.to_owned(),
            status,
            seconds: 1,
        }
    }

    #[test]
    fn steps_are_counted_and_their_output_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let steps = vec![
            step("live", true),
            step("doctor", false),
            step("bench", false),
        ];
        let mut results = Results::new("6.1", folder.path(), steps);
        for event in [
            Event::Begin("live".to_owned()),
            Event::Output(b"test result: FAILED. 3 passed; 1 failed; 0 ignored\n".to_vec()),
            end("live", 101),
            Event::Begin("doctor".to_owned()),
            end("doctor", 0),
            Event::Begin("bench".to_owned()),
            Event::File {
                name: "bench.json".to_owned(),
                bytes: b"{}".to_vec(),
            },
            end("bench", 0),
            Event::Done,
        ] {
            results.take(event).unwrap();
        }
        // The doctor said nothing, which is no success.
        assert_eq!(results.tally.to_string(), "4 passed, 2 failed");
        let kept = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!(kept("bench.json"), "{}");
        assert!(kept("live.log").starts_with("test result"));
    }

    #[test]
    fn steps_that_never_ended_are_failures() {
        let folder = tempfile::tempdir().unwrap();
        let steps = vec![step("live", true), step("doctor", false)];
        let mut results = Results::new("6.1", folder.path(), steps);
        results.take(Event::Begin("live".to_owned())).unwrap();
        let output = b"test a ... ok\ntest b ... ".to_vec();
        results.take(Event::Output(output)).unwrap();
        results.abandon("kernel panic").unwrap();
        assert_eq!(results.tally.to_string(), "1 passed, 2 failed");
    }

    #[test]
    fn file_name_cannot_leave_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let mut results = Results::new("6.1", folder.path(), Vec::new());
        for name in ["../x", "/x", "..", ""] {
            let file = Event::File {
                name: name.to_owned(),
                bytes: Vec::new(),
            };
            assert!(results.take(file).is_err(), "{name:?}");
        }
    }

    #[test]
    fn broken_machine_is_an_error() {
        let mut results = Results::new("6.1", Path::new("/nowhere"), Vec::new());
        let error = results
            .take(Event::Broken("no kvm".to_owned()))
            .unwrap_err();
        assert_eq!(error.to_string(), "cannot prepare the machine: no kvm");
    }

    #[test]
    fn kernel_complaints_are_counted() {
        let text = "[1] WARNING: CPU: 0 PID: 1\n[2] fine\n[3] BUG: unable to handle\n";
        assert_eq!(complaints(text), 2);
    }
}
