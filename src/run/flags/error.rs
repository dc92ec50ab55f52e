//! Owns why a command line for a guest was refused. Never reads one.

use vm_remap::spec::SpecError;

/// Why a command line was refused. Nothing has been started.
#[derive(Debug, thiserror::Error)]
pub enum FlagError {
    /// A text that cannot be read.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// Something that can be read and still not be done.
    #[error("cannot use {what}: {why}")]
    Refused {
        /// What was written.
        what: String,
        /// What is against it, and what can be written instead.
        why: String,
    },
}

pub(super) fn refused(what: impl Into<String>, why: impl Into<String>) -> FlagError {
    FlagError::Refused {
        what: what.into(),
        why: why.into(),
    }
}
