//! Owns the values that many keys share: sizes and switches, read and written. Never knows which
//! key has them.

use super::error::SpecError;
use crate::range::PAGE_SIZE;

const SUFFIXES: [(char, u32); 3] = [('G', 30), ('M', 20), ('K', 10)];

/// The size in bytes that `value` gives: a number, with `K`, `M` or `G` behind it for binary
/// multiples.
///
/// # Errors
/// [`SpecError::Value`], naming `key`, for anything else and for more than 64 bits hold.
pub fn parse_size(key: &str, value: &str) -> Result<u64, SpecError> {
    let refused = |expected| SpecError::value(key, value, expected);
    let text = value.trim();
    let suffix = SUFFIXES
        .into_iter()
        .find_map(|(letter, shift)| Some((text.strip_suffix(letter)?, shift)));
    let (digits, shift) = suffix.unwrap_or((text, 0));
    let number: u64 = digits.parse().map_err(|_| {
        refused("write a number of bytes below 2^64, or one with K, M or G (binary) behind it")
    })?;
    let bytes = number.checked_mul(1_u64.wrapping_shl(shift));
    bytes.ok_or_else(|| refused("it must be below 2^64 bytes"))
}

/// The size as [`parse_size`] reads it, with the largest suffix that keeps it exact.
#[must_use]
pub fn size_text(bytes: u64) -> String {
    let exact = |shift: u32| bytes != 0 && bytes.trailing_zeros() >= shift;
    let suffix = SUFFIXES.into_iter().find(|(_, shift)| exact(*shift));
    suffix.map_or_else(
        || bytes.to_string(),
        |(letter, shift)| format!("{}{letter}", bytes.wrapping_shr(shift)),
    )
}

/// The switch that `value` sets: `on` or `true`, `off` or `false`, in any case.
///
/// # Errors
/// [`SpecError::Value`], naming `key`, for anything else.
pub fn parse_toggle(key: &str, value: &str) -> Result<bool, SpecError> {
    let is = |words: [&str; 2]| words.iter().any(|word| value.eq_ignore_ascii_case(word));
    match (is(["on", "true"]), is(["off", "false"])) {
        (true, _) => Ok(true),
        (_, true) => Ok(false),
        _ => Err(SpecError::value(key, value, "write on or off")),
    }
}

pub(super) fn toggle_text(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// `bytes`, if they are whole pages and at least one.
pub(super) fn whole_pages(key: &'static str, bytes: u64) -> Result<u64, SpecError> {
    if bytes == 0 || !bytes.is_multiple_of(PAGE_SIZE) {
        return Err(SpecError::NotPages { key, bytes });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary_and_checked() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("64K", 64 << 10),
            (" 2M ", 2 << 20),
            ("17179869183G", u64::MAX << 30),
        ] {
            assert_eq!(parse_size("size", text).unwrap(), bytes);
        }
        assert_eq!(
            parse_size("size", "17179869184G").unwrap_err().to_string(),
            "cannot use size=\"17179869184G\": it must be below 2^64 bytes"
        );
        for wrong in ["", "G", "-1", "1.5G", "1T", "1GG", "1g", "0x1000"] {
            assert_eq!(
                parse_size("size", wrong).unwrap_err().to_string(),
                format!(
                    "cannot use size={wrong:?}: write a number of bytes below 2^64, or one with K, \
                     M or G (binary) behind it"
                )
            );
        }
    }

    #[test]
    fn sizes_are_written_with_the_largest_suffix() {
        assert_eq!(size_text(0), "0");
        assert_eq!(size_text(4097), "4097");
        assert_eq!(size_text(4096), "4K");
        assert_eq!(size_text(1536 << 20), "1536M");
        assert_eq!(size_text(4 << 30), "4G");
    }

    #[test]
    fn switches_have_two_words_each() {
        for (text, on) in [
            ("on", true),
            ("TRUE", true),
            ("Off", false),
            ("false", false),
        ] {
            assert_eq!(parse_toggle("thp", text).unwrap(), on);
        }
        assert_eq!(
            parse_toggle("thp", "yes").unwrap_err().to_string(),
            "cannot use thp=\"yes\": write on or off"
        );
    }

    #[test]
    fn pages_are_whole_and_some() {
        assert_eq!(whole_pages("window", 8192).unwrap(), 8192);
        assert_eq!(
            whole_pages("window", 0x1234).unwrap_err().to_string(),
            "cannot use window=4660: it must be a multiple of 4K, above 0"
        );
        whole_pages("window", 0).unwrap_err();
    }
}
