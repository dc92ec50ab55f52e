//! Owns the lines that tell people how the run goes, on standard error.
//! Never writes results: those go to standard output.

use std::io::{Write, stderr};

/// Writes one line. A closed standard error stops nothing.
pub(crate) fn line(text: &str) {
    // Tests tell people nothing.
    if cfg!(test) {
        return;
    }
    writeln!(stderr().lock(), "lab: {text}").ok();
}
