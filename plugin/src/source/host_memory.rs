//! Owns the question whether host memory without a descriptor can be duplicated: it must lie in
//! one shared mapping of this process. Never touches that memory.

use std::fs::File;
use std::io::{self, BufRead, BufReader};

/// Why host memory cannot be duplicated; `None` where nothing speaks against it so far.
///
/// `mremap` with an old size of 0 takes the length on trust: asked for more than the mapping has,
/// it maps more of the file behind it (Linux: `mm/mremap.c`). So the length is checked here.
pub(crate) fn obstacle(start: u64, len: u64) -> io::Result<Option<&'static str>> {
    obstacle_in(BufReader::new(File::open("/proc/self/maps")?), start, len)
}

fn obstacle_in(maps: impl BufRead, start: u64, len: u64) -> io::Result<Option<&'static str>> {
    let Some(end) = start.checked_add(len) else {
        return Ok(Some("it wraps around the address space"));
    };
    // Names at the end of a line are arbitrary bytes, chosen by whoever made the file.
    for line in maps.split(b'\n') {
        let Some((from, to, shared)) = area(&line?) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "unexpected line in the maps",
            ));
        };
        if from <= start && start < to {
            return Ok(match (end <= to, shared) {
                (false, _) => Some("it is not in one mapping"),
                (true, false) => Some("it is private memory"),
                (true, true) => None,
            });
        }
    }
    Ok(Some("it is not mapped"))
}

/// First and last address of an area, and whether it is shared, from a line of `/proc/PID/maps`.
fn area(line: &[u8]) -> Option<(u64, u64, bool)> {
    let mut words = line.split(|byte| *byte == b' ');
    let (from, to) = std::str::from_utf8(words.next()?).ok()?.split_once('-')?;
    let shared = words.next()?.ends_with(b"s");
    let hex = |digits| u64::from_str_radix(digits, 16).ok();
    Some((hex(from)?, hex(to)?, shared))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
10000-20000 rw-s 00000000 00:01 7 /memfd:a (deleted)
20000-21000 rw-s 00010000 00:01 7 /memfd:a (deleted)
30000-40000 rw-p 00000000 00:00 0 [heap]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]
";

    #[test]
    fn obstacle_names_what_is_in_the_way() {
        let ask = |start, len| obstacle_in(MAPS.as_bytes(), start, len).unwrap();
        assert_eq!(ask(0x10000, 0x10000), None);
        assert_eq!(ask(0x11000, 0x1000), None);
        assert_eq!(ask(0x1f000, 0x2000), Some("it is not in one mapping"));
        assert_eq!(ask(0x30000, 0x1000), Some("it is private memory"));
        assert_eq!(ask(0x22000, 0x1000), Some("it is not mapped"));
        assert_eq!(
            ask(u64::MAX - 0xfff, 0x2000),
            Some("it wraps around the address space")
        );
    }

    #[test]
    fn obstacle_is_not_stopped_by_a_name_that_is_no_text() {
        let maps = b"1000-2000 rw-s 0 00:01 7 /memfd:\xff\xfe\n10000-20000 rw-s 0 00:01 8 /x\n";
        assert_eq!(obstacle_in(maps.as_slice(), 0x10000, 0x1000).unwrap(), None);
    }

    #[test]
    fn obstacle_refuses_a_listing_it_cannot_read() {
        obstacle_in("nonsense\n".as_bytes(), 0, 4096).unwrap_err();
    }
}
