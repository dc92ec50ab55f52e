//! Owns what was found wrong: each kind once, with how often it was seen and its first case.
//! Never decides what is wrong.

use std::collections::BTreeMap;
use std::fmt;

#[derive(Debug, Default)]
pub struct Findings(BTreeMap<&'static str, (u64, String)>);

impl Findings {
    pub fn note(&mut self, what: &'static str, case: impl FnOnce() -> String) {
        let entry = self.0.entry(what).or_insert_with(|| (0, case()));
        entry.0 += 1;
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, (times, case)) in &self.0 {
            writeln!(f, "{what}, {times} times; the first:\n    {case}")?;
        }
        Ok(())
    }
}
