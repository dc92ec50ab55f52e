//! Owns sizes as a command line has them. Never rounds.

use anyhow::{Result, ensure};

use crate::PAGE;

/// Reads a size in bytes, such as `64M`, which must be whole pages.
pub fn pages(text: &str) -> Result<u64> {
    let config = parse_size::Config::new().with_binary();
    let bytes = config.parse_size(text)?;
    ensure!(
        bytes > 0 && bytes.is_multiple_of(PAGE),
        "not a multiple of {PAGE} bytes"
    );
    Ok(bytes.checked_div(PAGE).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_is_whole_pages() {
        assert_eq!(pages("2M").unwrap(), 512);
        for text in ["", "0", "5000", "-1", "1E30"] {
            pages(text).unwrap_err();
        }
    }
}
