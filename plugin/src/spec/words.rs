//! Owns the words for what a hole is and for what a zap drops. Never chooses.

use std::fmt;
use std::str::FromStr;

use super::error::SpecError;
use crate::window::holes::HolePolicy;
use crate::window::options::Zap;

impl HolePolicy {
    /// Every policy.
    pub const ALL: [Self; 3] = [Self::Trap, Self::Zero, Self::Stop];

    /// The word by which it is chosen.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Trap => "trap",
            Self::Zero => "zero",
            Self::Stop => "stop",
        }
    }
}

impl fmt::Display for HolePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for HolePolicy {
    type Err = SpecError;

    fn from_str(word: &str) -> Result<Self, SpecError> {
        let found = Self::ALL.into_iter().find(|policy| policy.name() == word);
        found.ok_or_else(|| none_such("hole", word, &Self::ALL.map(Self::name)))
    }
}

impl Zap {
    /// Both.
    pub const ALL: [Self; 2] = [Self::All, Self::Precise];

    /// The word by which it is chosen.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Precise => "precise",
        }
    }
}

impl fmt::Display for Zap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Zap {
    type Err = SpecError;

    fn from_str(word: &str) -> Result<Self, SpecError> {
        let found = Self::ALL.into_iter().find(|zap| zap.name() == word);
        found.ok_or_else(|| none_such("zap", word, &Self::ALL.map(Self::name)))
    }
}

fn none_such(key: &str, word: &str, words: &[&str]) -> SpecError {
    SpecError::value(key, word, format!("there are {}", words.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_and_written() {
        for policy in HolePolicy::ALL {
            assert_eq!(policy.to_string().parse::<HolePolicy>().unwrap(), policy);
        }
        for zap in Zap::ALL {
            assert_eq!(zap.to_string().parse::<Zap>().unwrap(), zap);
        }
        assert_eq!(
            "one".parse::<HolePolicy>().unwrap_err().to_string(),
            "cannot use hole=\"one\": there are trap, zero, stop"
        );
        assert_eq!(
            "some".parse::<Zap>().unwrap_err().to_string(),
            "cannot use zap=\"some\": there are all, precise"
        );
    }
}
