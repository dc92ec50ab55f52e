//! Owns what the texts of several flags have in common: numbers, the sizes of queues, a first word
//! without a key. Never knows a flag.

use std::borrow::Cow;
use std::path::PathBuf;

use vm_remap::spec::SpecError;

use super::error::{FlagError, refused};

/// The most entries that a queue can have.
pub(super) const MAX_QUEUE: u16 = 1 << 15;

/// `text`, with `key=` before it where its first part has no key: crosvm lets the first be left out.
pub(super) fn keyed<'a>(key: &str, text: &'a str) -> Cow<'a, str> {
    let first = text.split(',').next().unwrap_or_default();
    if text.is_empty() || first.contains('=') {
        return text.into();
    }
    format!("{key}={text}").into()
}

/// A number, as crosvm reads one: `0x`, `0o` and `0b` before it give its base.
pub(super) fn number(key: &str, value: &str) -> Result<u64, FlagError> {
    let bases = [("0x", 16), ("0o", 8), ("0b", 2)];
    let with_base = bases
        .into_iter()
        .find_map(|(prefix, base)| Some((value.strip_prefix(prefix)?, base)));
    let (digits, base) = with_base.unwrap_or((value, 10));
    u64::from_str_radix(digits, base).map_err(|_| {
        let expected = "write a number from 0 to 2^64 - 1".to_owned();
        let (key, value) = (key.to_owned(), value.to_owned());
        SpecError::Value {
            key,
            value,
            expected,
        }
        .into()
    })
}

/// The entries of a queue.
pub(super) fn queue_size(key: &str, value: &str) -> Result<u16, FlagError> {
    let size = u16::try_from(number(key, value)?).unwrap_or(0);
    if size > MAX_QUEUE || !size.is_power_of_two() {
        let why = format!("a queue has a power of two of entries, from 1 to {MAX_QUEUE}");
        return Err(refused(format!("{key}={value}"), why));
    }
    Ok(size)
}

/// A path. Crosvm's single quotes are not taken for a part of it.
pub(super) fn path(key: &str, value: &str) -> Result<PathBuf, FlagError> {
    if value.starts_with('\'') {
        let why = "write double quotes, or none where the path has no comma and no bracket";
        return Err(refused(format!("{key}={value}"), why));
    }
    if value.is_empty() {
        return Err(refused(format!("{key}="), "it needs a path"));
    }
    Ok(PathBuf::from(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_key_can_be_left_out() {
        assert_eq!(keyed("size", "1024"), "size=1024");
        assert_eq!(keyed("size", "size=1024"), "size=1024");
        assert_eq!(keyed("type", "gpu,socket=/s"), "type=gpu,socket=/s");
        assert_eq!(keyed("type", ""), "");
    }

    #[test]
    fn numbers_have_a_base() {
        for (text, value) in [("10", 10), ("0x10", 16), ("0o10", 8), ("0b10", 2)] {
            assert_eq!(number("size", text).unwrap(), value);
        }
        for wrong in ["", "0x", "-1", "1K", "18446744073709551616"] {
            assert_eq!(
                number("size", wrong).unwrap_err().to_string(),
                format!("cannot use size={wrong:?}: write a number from 0 to 2^64 - 1")
            );
        }
    }

    #[test]
    fn queues_have_a_power_of_two_of_entries() {
        assert_eq!(queue_size("queue_size", "32768").unwrap(), 32768);
        for wrong in ["0", "3", "65536", "4294967296"] {
            assert_eq!(
                queue_size("queue_size", wrong).unwrap_err().to_string(),
                format!(
                    "cannot use queue_size={wrong}: a queue has a power of two of entries, from 1 \
                     to 32768"
                )
            );
        }
    }
}
