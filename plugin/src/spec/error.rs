//! Owns what can be wrong with a specification, and how that is said. Never reads one.

use super::values::size_text;
use crate::error::Error;
use crate::range::PAGE_SIZE;

/// Why a specification was refused. What it was to be read into is as it was before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// A text that cannot be taken apart.
    #[error("cannot read {text:?}: {problem}")]
    Syntax {
        /// All of the text, or the part of it that is wrong.
        text: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A key that there is none of.
    #[error("cannot use the key {key:?}: {}{}", nearest_text(.nearest.as_deref()), known_text(.known))]
    UnknownKey {
        /// The key that was written.
        key: String,
        /// The key that looks most like it, if one does.
        nearest: Option<String>,
        /// The keys there are.
        known: String,
    },
    /// A key that comes twice.
    #[error("cannot use the key {key:?} twice: leave one of them out")]
    Twice {
        /// The key.
        key: String,
    },
    /// A value that the key does not have.
    #[error("cannot use {key}={value:?}: {expected}")]
    Value {
        /// The key.
        key: String,
        /// The value that was written.
        value: String,
        /// What can be written instead.
        expected: String,
    },
    /// A size that is no whole number of pages.
    #[error("cannot use {key}={}: it must be a multiple of {}, above 0", size_text(*.bytes), size_text(PAGE_SIZE))]
    NotPages {
        /// The key.
        key: &'static str,
        /// The size that was written, in bytes.
        bytes: u64,
    },
    /// A backend that there is none of.
    #[error(transparent)]
    Backend(#[from] Error),
}

impl SpecError {
    pub(super) fn value(key: &str, value: &str, expected: impl Into<String>) -> Self {
        Self::Value {
            key: key.to_owned(),
            value: value.to_owned(),
            expected: expected.into(),
        }
    }
}

fn known_text(known: &str) -> String {
    let are = if known.contains(", ") {
        "are"
    } else {
        "is only"
    };
    format!("there {are} {known}")
}

fn nearest_text(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |nearest| format!("did you mean {nearest}? "))
}
