//! Owns the text of a trace: reading it, believing none of it, and writing it. Never holds more of
//! it than the steps that it may have.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, BufRead, Read as _, Write};
use std::str::SplitAsciiWhitespace;

use super::{
    Kind, MAX_LIVE, MAX_MAPPING, MAX_STEPS, MAX_TIME, MAX_WINDOW, Offset, Operation, Step, Trace,
};
use crate::guest::PAGE;

/// What the first line begins with, and the version that is read and written.
const MAGIC: &str = "vm-remap-trace";
const VERSION: &str = "1";
/// The longest line, in bytes.
const MAX_LINE: u64 = 256;

/// What is wrong with a trace, and where.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the trace: {place} {number}: {reason}")]
pub struct TraceError {
    place: &'static str,
    number: usize,
    reason: String,
}

impl TraceError {
    fn new(line: usize, reason: String) -> Self {
        Self {
            place: "line",
            number: line,
            reason,
        }
    }

    /// Of an operation, counted from 1: comments and empty lines are not known any more.
    pub(super) fn of_operation(number: usize, reason: String) -> Self {
        Self {
            place: "operation",
            number,
            reason,
        }
    }
}

impl Trace {
    /// Reads a trace. It can come from anybody.
    ///
    /// # Errors
    /// [`TraceError`] names the line and what is wrong with it.
    pub fn read(from: impl BufRead) -> Result<Self, TraceError> {
        let mut lines = Lines { from, number: 0 };
        let Some(first) = lines.next()? else {
            return Err(TraceError::new(
                lines.number,
                format!("it is empty; the first line must be `{MAGIC} {VERSION} SIZE`"),
            ));
        };
        let window = header(&first).map_err(|reason| TraceError::new(lines.number, reason))?;
        let mut trace = Self {
            window,
            steps: Vec::new(),
        };
        let mut live = BTreeSet::new();
        while let Some(line) = lines.next()? {
            let wrong = |reason| TraceError::new(lines.number, reason);
            let step = step(&line).map_err(wrong)?;
            trace.admit(&step, &mut live).map_err(wrong)?;
            trace.steps.push(step);
        }
        Ok(trace)
    }

    /// Whether the step can follow the ones before.
    fn admit(&self, step: &Step, live: &mut BTreeSet<u64>) -> Result<(), String> {
        let before = self.duration_us();
        if step.at_us < before {
            return Err(format!(
                "{} µs lies before {before} µs, the line before",
                step.at_us
            ));
        }
        if self.steps.len() >= MAX_STEPS {
            return Err(format!("there are more than {MAX_STEPS} operations"));
        }
        match step.operation {
            Operation::Map {
                id, offset, len, ..
            } => {
                if let Offset::At(offset) = offset
                    && offset.checked_add(len).is_none_or(|end| end > self.window)
                {
                    return Err(format!(
                        "{len:#x} bytes at {offset:#x} do not lie in the window of {:#x}",
                        self.window
                    ));
                }
                if !live.insert(id) {
                    return Err(format!("the mapping {id} is still there"));
                }
                if live.len() > MAX_LIVE {
                    return Err(format!("there are more than {MAX_LIVE} mappings at once"));
                }
            }
            Operation::Replace { id, .. } if !live.contains(&id) => {
                return Err(format!("there is no mapping {id} to replace"));
            }
            Operation::Unmap { id } if !live.remove(&id) => {
                return Err(format!("there is no mapping {id} to unmap"));
            }
            Operation::Replace { .. } | Operation::Unmap { .. } => {}
        }
        Ok(())
    }

    /// Writes the trace, with `about` as comments below the first line.
    ///
    /// # Errors
    /// What `to` returns.
    pub fn write(&self, about: &[String], mut to: impl Write) -> io::Result<()> {
        writeln!(to, "{MAGIC} {VERSION} {}", self.window)?;
        for line in about {
            writeln!(to, "# {line}")?;
        }
        for step in &self.steps {
            writeln!(to, "{step}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.at_us)?;
        match self.operation {
            Operation::Map {
                id,
                offset,
                len,
                kind,
            } => {
                let kind = kind.name();
                match offset {
                    Offset::Auto => write!(f, "map {id} auto {len} {kind}"),
                    Offset::At(offset) => write!(f, "map {id} {offset} {len} {kind}"),
                }
            }
            Operation::Replace { id, kind } => write!(f, "replace {id} {}", kind.name()),
            Operation::Unmap { id } => write!(f, "unmap {id}"),
        }
    }
}

/// The lines that are neither empty nor comments, one at a time.
struct Lines<R> {
    from: R,
    number: usize,
}

impl<R: BufRead> Lines<R> {
    fn next(&mut self) -> Result<Option<String>, TraceError> {
        loop {
            self.number = self.number.saturating_add(1);
            let wrong = |reason: String| Err(TraceError::new(self.number, reason));
            let mut line = Vec::new();
            let most = MAX_LINE.saturating_add(1);
            match self.from.by_ref().take(most).read_until(b'\n', &mut line) {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(error) => return wrong(format!("it cannot be read: {error}")),
            }
            if line.len() as u64 > MAX_LINE {
                return wrong(format!("it is longer than {MAX_LINE} bytes"));
            }
            let Ok(line) = String::from_utf8(line) else {
                return wrong("it is no UTF-8 text".to_owned());
            };
            let line = line.trim_ascii();
            if !line.is_empty() && !line.starts_with('#') {
                return Ok(Some(line.to_owned()));
            }
        }
    }
}

fn header(line: &str) -> Result<u64, String> {
    let mut words = line.split_ascii_whitespace();
    if words.next() != Some(MAGIC) {
        return Err(format!("it must be `{MAGIC} {VERSION} SIZE`"));
    }
    let version = word(&mut words, "version")?;
    if version != VERSION {
        return Err(format!("it has version {version:?}; {VERSION} can be read"));
    }
    let window = size(word(&mut words, "size of the window")?, MAX_WINDOW)?;
    end(&mut words)?;
    Ok(window)
}

fn step(line: &str) -> Result<Step, String> {
    let mut words = line.split_ascii_whitespace();
    let at_us = number(word(&mut words, "time")?)?;
    if at_us > MAX_TIME {
        return Err(format!("{at_us} µs is later than {MAX_TIME} µs"));
    }
    let name = word(&mut words, "operation")?;
    let id = |words: &mut SplitAsciiWhitespace<'_>| number(word(words, "number of the mapping")?);
    let operation = match name {
        "map" => Operation::Map {
            id: id(&mut words)?,
            offset: offset(word(&mut words, "offset")?)?,
            len: size(word(&mut words, "size")?, MAX_MAPPING)?,
            kind: kind(word(&mut words, "kind")?)?,
        },
        "replace" => Operation::Replace {
            id: id(&mut words)?,
            kind: kind(word(&mut words, "kind")?)?,
        },
        "unmap" => Operation::Unmap {
            id: id(&mut words)?,
        },
        other => {
            return Err(format!(
                "{other:?} is no operation; there are map, replace, unmap"
            ));
        }
    };
    end(&mut words)?;
    Ok(Step { at_us, operation })
}

fn word<'a>(words: &mut SplitAsciiWhitespace<'a>, what: &str) -> Result<&'a str, String> {
    words.next().ok_or_else(|| format!("the {what} is missing"))
}

fn end(words: &mut SplitAsciiWhitespace<'_>) -> Result<(), String> {
    words
        .next()
        .map_or(Ok(()), |word| Err(format!("{word:?} is one word too many")))
}

/// Digits, or 0x and hexadecimal digits.
fn number(word: &str) -> Result<u64, String> {
    let (digits, radix) = match word.strip_prefix("0x") {
        Some(digits) => (digits, 16),
        None => (word, 10),
    };
    // `from_str_radix` takes a sign as well.
    let sign = digits.starts_with('+');
    match u64::from_str_radix(digits, radix) {
        Ok(number) if !sign => Ok(number),
        _ => Err(format!("{word:?} is no number below 2^64")),
    }
}

/// A number of bytes in whole pages, perhaps with a binary suffix.
fn bytes(word: &str) -> Result<u64, String> {
    let (digits, shift) = match word.split_at_checked(word.len().saturating_sub(1)) {
        Some((digits, "K")) => (digits, 10),
        Some((digits, "M")) => (digits, 20),
        Some((digits, "G")) => (digits, 30),
        _ => (word, 0),
    };
    let bytes = number(digits)?.checked_mul(1 << shift);
    let bytes = bytes.ok_or_else(|| format!("{word:?} is no number below 2^64"))?;
    if !bytes.is_multiple_of(PAGE) {
        return Err(format!("{bytes:#x} bytes are no multiple of {PAGE:#x}"));
    }
    Ok(bytes)
}

fn size(word: &str, most: u64) -> Result<u64, String> {
    let bytes = bytes(word)?;
    if bytes == 0 || bytes > most {
        return Err(format!(
            "{bytes:#x} bytes must be above 0 and at most {most:#x}"
        ));
    }
    Ok(bytes)
}

fn offset(word: &str) -> Result<Offset, String> {
    if word == "auto" {
        return Ok(Offset::Auto);
    }
    bytes(word).map(Offset::At)
}

fn kind(word: &str) -> Result<Kind, String> {
    let found = Kind::ALL.into_iter().find(|kind| kind.name() == word);
    found.ok_or_else(|| format!("{word:?} is no kind of memory; there are own, peer"))
}

#[cfg(test)]
#[path = "format_tests.rs"]
mod tests;
