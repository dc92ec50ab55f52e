//! Owns how output is counted. Pure: text and an exit status in, counts out.

use std::collections::BTreeSet;
use std::fmt;

/// How much passed, failed and was skipped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
    /// The names of failed tests, where they are known.
    pub(crate) failures: Vec<String>,
}

impl Tally {
    pub(crate) fn failure() -> Self {
        Self {
            failed: 1,
            ..Self::default()
        }
    }

    /// Counts `other` in.
    pub(crate) fn count(&mut self, other: Self) {
        self.passed = self.passed.saturating_add(other.passed);
        self.failed = self.failed.saturating_add(other.failed);
        self.skipped = self.skipped.saturating_add(other.skipped);
        self.failures.extend(other.failures);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(out, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

/// The signal that ended a command, of the status that a shell saw.
pub(crate) fn signal(status: i32) -> Option<i32> {
    status
        .checked_sub(128)
        .filter(|signal| (1..=64).contains(signal))
}

/// Counts one step. A test counts test by test, any other command as one; a
/// command that `wrote` nothing did not do its work.
pub(crate) fn tally(log: &str, is_test: bool, status: i32, wrote: bool) -> Tally {
    let mut tally = if is_test {
        tests_in(log)
    } else {
        Tally::default()
    };
    if !is_test && status == 0 && wrote {
        tally.passed = 1;
    }
    let counted = tally.passed.saturating_add(tally.failed);
    let failed = status != 0 && tally.failed == 0;
    if failed || (counted == 0 && !log.contains("test result: ok.")) {
        tally.failed = 1;
    }
    let skips = log.lines().filter_map(skipped).collect::<BTreeSet<_>>();
    let skips = u64::try_from(skips.len()).unwrap_or(u64::MAX);
    // libtest takes a test that returned early for a passed one.
    tally.skipped = skips.min(tally.passed);
    tally.passed = tally.passed.saturating_sub(skips);
    tally
}

/// What libtest says, or what it said before it died.
fn tests_in(log: &str) -> Tally {
    let mut tally = Tally::default();
    let mut summed = false;
    for line in log.lines() {
        let Some((_, counts)) = line.split_once("test result: ") else {
            continue;
        };
        summed = true;
        tally.passed = tally
            .passed
            .saturating_add(number_before(counts, " passed"));
        tally.failed = tally
            .failed
            .saturating_add(number_before(counts, " failed"));
    }
    if summed {
        tally.failures = failures(log);
        return tally;
    }
    for line in log.lines() {
        // What a test writes in between parts its name from its result.
        if line == "ok" || line.ends_with(" ... ok") {
            tally.passed = tally.passed.saturating_add(1);
        } else if line == "FAILED" || line.ends_with(" ... FAILED") {
            tally.failed = tally.failed.saturating_add(1);
        }
    }
    // One more did not come to its end.
    tally.failed = tally.failed.saturating_add(1);
    tally
}

fn number_before(text: &str, words: &str) -> u64 {
    text.split_once(words)
        .and_then(|(before, _)| before.rsplit(' ').next()?.parse().ok())
        .unwrap_or(0)
}

/// The names in libtest's last list of failures.
fn failures(log: &str) -> Vec<String> {
    let Some((_, list)) = log.rsplit_once("\nfailures:\n") else {
        return Vec::new();
    };
    list.lines()
        .map_while(|line| line.strip_prefix("    "))
        .map(str::to_owned)
        .collect()
}

/// The test that says in this line that it skips itself.
fn skipped(line: &str) -> Option<&str> {
    let told = line.strip_prefix("SKIP ").or_else(|| {
        // Running alone, a test starts behind its own name.
        let (_, told) = line.strip_prefix("test ")?.split_once(" ... SKIP ")?;
        Some(told)
    })?;
    Some(told.split_once(": ").map_or(told, |(name, _)| name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(log: &str, is_test: bool, status: i32) -> String {
        tally(log, is_test, status, !log.is_empty()).to_string()
    }

    #[test]
    fn libtest_summary_is_counted() {
        let log = "test a ... ok\n\ntest result: ok. 12 passed; 0 failed; 1 ignored; 0 measured\n";
        assert_eq!(counted(log, true, 0), "12 passed, 0 failed");
    }

    #[test]
    fn failed_tests_are_named() {
        let log = "failures:\n\n---- m::b stdout ----\nno\n\nfailures:\n    m::b\n    c\n\n\
                   test result: FAILED. 1 passed; 2 failed; 0 ignored\n";
        let tally = tally(log, true, 101, true);
        assert_eq!(tally.to_string(), "1 passed, 2 failed");
        assert_eq!(tally.failures, ["m::b", "c"]);
    }

    #[test]
    fn skipped_test_is_no_passed_test() {
        let log = "test m::a ... SKIP m::a: no KVM\nok\nSKIP b: no\nSKIP b: why\ntest b ... ok\n\
                   test c ... ok\ntest result: ok. 3 passed; 0 failed; 0 ignored\n";
        assert_eq!(counted(log, true, 0), "1 passed, 0 failed, 2 skipped");
    }

    #[test]
    fn binary_that_died_counts_what_it_had_done_and_one_failure() {
        let log = "running 4 tests\ntest a ... ok\ntest b ... SKIP b: no\nok\ntest c ... ";
        assert_eq!(counted(log, true, 139), "1 passed, 1 failed, 1 skipped");
    }

    #[test]
    fn missing_binary_is_one_failure() {
        assert_eq!(counted("no such file", true, 127), "0 passed, 1 failed");
        assert_eq!(counted("", true, 0), "0 passed, 1 failed");
    }

    #[test]
    fn binary_without_tests_counts_nothing() {
        let log = "running 0 tests\n\ntest result: ok. 0 passed; 0 failed; 0 ignored\n";
        assert_eq!(counted(log, true, 0), "0 passed, 0 failed");
    }

    #[test]
    fn command_is_one_step_and_must_say_something() {
        assert_eq!(counted("fine", false, 0), "1 passed, 0 failed");
        assert_eq!(counted("bad", false, 2), "0 passed, 1 failed");
        assert_eq!(counted("", false, 0), "0 passed, 1 failed");
    }

    #[test]
    fn signals_are_told_from_exit_statuses() {
        assert_eq!(signal(139), Some(11));
        assert_eq!(signal(101), None);
        assert_eq!(signal(128), None);
    }
}
