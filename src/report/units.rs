//! Owns how figures are written for people. Never used for JSON, which keeps
//! every digit.

use super::{Aim, Bound, Rival};

/// What stands where nothing was measured.
pub(crate) const ABSENT: &str = "–";

/// `2 MiB`, `1.5 GiB`, `4 KiB`, `100 B`.
pub(crate) fn bytes(bytes: u64) -> String {
    let units = [(30_u32, "GiB"), (20, "MiB"), (10, "KiB")];
    for (shift, unit) in units {
        let size = (1_u64 << shift) as f64;
        let value = bytes as f64 / size;
        if value >= 1.0 {
            let text = format!("{value:.1}");
            return format!("{} {unit}", text.strip_suffix(".0").unwrap_or(&text));
        }
    }
    format!("{bytes} B")
}

/// Microseconds with one digit after the point: a column of them lines up.
pub(crate) fn micros(us: f64) -> String {
    format!("{us:.1}")
}

/// Microseconds with about three digits, for labels that stand alone.
pub(super) fn micros_short(us: f64) -> String {
    match us {
        us if us >= 99.95 => format!("{us:.0}"),
        us if us >= 9.995 => format!("{us:.1}"),
        us => format!("{us:.2}"),
    }
}

/// A share as per cent: `98.4 %`.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// A count per operation; only a true zero is written as `0`.
pub(super) fn per_op(count: f64) -> String {
    match count {
        0.0 => "0".to_owned(),
        count if count >= 99.95 => format!("{count:.0}"),
        count if count >= 1.0 => {
            let text = format!("{count:.1}");
            text.strip_suffix(".0").unwrap_or(&text).to_owned()
        }
        count if count >= 0.001 => format!("{count:.3}"),
        _ => "<0.001".to_owned(),
    }
}

/// Exits and stale reads of the gap phase: `0/0`.
pub(super) fn gap(rival: &Rival) -> String {
    match (rival.gap_exits, rival.gap_stale_reads) {
        (None, None) => ABSENT.to_owned(),
        (exits, stale) => [exits, stale]
            .map(|count| count.map_or_else(|| ABSENT.to_owned(), |count| count.to_string()))
            .join("/"),
    }
}

/// The aim in words: `at most 1.5`.
pub(crate) fn bound(bound: Bound) -> String {
    match bound {
        Bound::AtLeast(figure) => format!("at least {figure}"),
        Bound::AtMost(0.0) => "0".to_owned(),
        Bound::AtMost(figure) => format!("at most {figure}"),
    }
}

/// The figure behind an aim, with a digit more than its bound has, so that
/// a narrow miss does not look like a hit.
pub(crate) fn measured(aim: &Aim) -> String {
    match (aim.measured, aim.aim) {
        (None, _) => ABSENT.to_owned(),
        (Some(figure), Bound::AtMost(0.0)) => per_op(figure),
        (Some(figure), _) => format!("{figure:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_in_the_largest_unit_that_fits() {
        assert_eq!(bytes(100), "100 B");
        assert_eq!(bytes(4096), "4 KiB");
        assert_eq!(bytes(2 << 20), "2 MiB");
        assert_eq!(bytes(3 << 29), "1.5 GiB");
    }

    #[test]
    fn per_op_never_rounds_something_to_zero() {
        assert_eq!(per_op(0.0), "0");
        assert_eq!(per_op(0.0001), "<0.001");
        assert_eq!(per_op(0.25), "0.250");
        assert_eq!(per_op(2.0), "2");
        assert_eq!(per_op(4123.4), "4123");
    }

    #[test]
    fn micros_short_keeps_about_three_digits() {
        assert_eq!(micros_short(7.714), "7.71");
        assert_eq!(micros_short(43.06), "43.1");
        assert_eq!(micros_short(1234.5), "1234");
    }
}
