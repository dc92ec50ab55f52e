//! Owns the one message that `vhost` 0.17 cannot be refused: where a daemon answers `GET_CONFIG`
//! with fewer bytes than it was asked for, which is how it refuses, `vhost` waits for the rest for
//! ever. Never sends another message.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

const GET_CONFIG: u32 = 24;
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
/// The bits of a header's flags that are looked at: version and reply.
const KIND: u32 = 7;
/// Length of a header, and of what stands before the bytes of the configuration space.
const HEADER: usize = 12;
/// The longest message without its header.
const MOST: u32 = 0x1000;

/// Asks the daemon at the other end of `stream` for the first `len` bytes of its configuration
/// space; nothing where it refuses. Nobody else may be waiting for an answer on `stream`.
///
/// # Errors
/// The daemon is gone, or does not speak the protocol; the connection is of no use any more.
pub(super) fn get_config(stream: &UnixStream, len: u32) -> io::Result<Option<Vec<u8>>> {
    let body = len.saturating_add(12);
    if body > MOST {
        return Ok(None);
    }
    let mut message: Vec<u8> = Vec::new();
    for word in [GET_CONFIG, VERSION, body, 0, len, 0] {
        message.extend(word.to_ne_bytes());
    }
    message.resize(usize::try_from(body).unwrap_or(0).saturating_add(HEADER), 0);
    let mut stream = stream;
    stream.write_all(&message)?;
    let [request, flags, size] = read_words(stream)?;
    if request != GET_CONFIG || flags & KIND != VERSION | REPLY || !(12..=MOST).contains(&size) {
        return Err(broken());
    }
    let [offset, given, _] = read_words(stream)?;
    let mut bytes = vec![0; usize::try_from(size.saturating_sub(12)).unwrap_or(0)];
    stream.read_exact(&mut bytes)?;
    if given == 0 {
        return Ok(None);
    }
    if (offset, given, size) != (0, len, body) {
        return Err(broken());
    }
    Ok(Some(bytes))
}

fn read_words(mut stream: &UnixStream) -> io::Result<[u32; 3]> {
    let mut words = [0; 3];
    for word in &mut words {
        let mut bytes = [0; 4];
        stream.read_exact(&mut bytes)?;
        *word = u32::from_ne_bytes(bytes);
    }
    Ok(words)
}

fn broken() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the daemon's answer is none to what it was asked",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(words: &[u32], bytes: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        for word in words {
            theirs.write_all(&word.to_ne_bytes()).unwrap();
        }
        theirs.write_all(bytes).unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        let got = get_config(&ours, 2);
        let mut asked = [0; 26];
        theirs.read_exact(&mut asked).unwrap();
        assert_eq!(asked[..4], GET_CONFIG.to_ne_bytes());
        got
    }

    #[test]
    fn get_config_takes_an_answer_and_a_refusal() {
        let got = answer(&[24, 5, 14, 0, 2, 0], &[7, 8]).unwrap();
        assert_eq!(got, Some(vec![7, 8]));
        // With the bytes of the question, and without.
        assert_eq!(answer(&[24, 5, 12, 0, 0, 0], &[]).unwrap(), None);
        assert_eq!(answer(&[24, 5, 14, 0, 0, 0], &[7, 8]).unwrap(), None);
    }

    #[test]
    fn get_config_takes_nothing_else() {
        for words in [
            [25, 5, 14, 0, 2, 0],
            [24, 1, 14, 0, 2, 0],
            [24, 6, 14, 0, 2, 0],
            [24, 5, 11, 0, 2, 0],
            [24, 5, 15, 0, 2, 0],
            [24, 5, 0x1001, 0, 2, 0],
            [24, 5, 14, 1, 2, 0],
            [24, 5, 14, 0, 3, 0],
        ] {
            answer(&words, &[7, 8, 9]).unwrap_err();
        }
        answer(&[24, 5, 14, 0, 2, 0], &[7]).unwrap_err();
        answer(&[], &[]).unwrap_err();
    }

    #[test]
    fn get_config_asks_for_no_more_than_a_message_holds() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        assert_eq!(get_config(&ours, MOST).unwrap(), None);
    }
}
