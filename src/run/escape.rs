//! Owns the keys that are for the VMM: Ctrl-A x leaves, Ctrl-A Ctrl-A is one Ctrl-A for the guest.
//! Never reads a key itself.

const CTRL_A: u8 = 0x01;

/// Takes the keys for the VMM out of what is typed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Escape {
    /// The last key was Ctrl-A.
    armed: bool,
}

/// What was typed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Typed {
    /// The bytes for the guest.
    pub(super) input: Vec<u8>,
    /// Ctrl-A x came; nothing behind it is kept.
    pub(super) leave: bool,
}

impl Escape {
    /// Takes the next bytes. A Ctrl-A at their end waits for the next call.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Typed {
        let mut typed = Typed::default();
        for &byte in bytes {
            match (self.armed, byte) {
                (false, CTRL_A) => self.armed = true,
                (false, _) => typed.input.push(byte),
                (true, b'x' | b'X') => {
                    typed.leave = true;
                    return typed;
                }
                (true, _) => {
                    self.armed = false;
                    if byte == CTRL_A {
                        typed.input.push(byte);
                    }
                }
            }
        }
        typed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(parts: &[&[u8]]) -> (Vec<u8>, bool) {
        let mut escape = Escape::default();
        let mut input = Vec::new();
        for part in parts {
            let typed = escape.take(part);
            input.extend(typed.input);
            if typed.leave {
                return (input, true);
            }
        }
        (input, false)
    }

    #[test]
    fn all_but_ctrl_a_goes_to_the_guest() {
        assert_eq!(
            typed(&[b"ls\r", b"\x03\x02x"]),
            (b"ls\r\x03\x02x".to_vec(), false)
        );
    }

    #[test]
    fn ctrl_a_x_leaves_also_in_two_parts() {
        assert_eq!(typed(&[b"a\x01xb"]), (b"a".to_vec(), true));
        assert_eq!(typed(&[b"a\x01", b"x"]), (b"a".to_vec(), true));
    }

    #[test]
    fn ctrl_a_twice_is_one_and_another_key_is_dropped() {
        assert_eq!(typed(&[b"\x01\x01x"]), (b"\x01x".to_vec(), false));
        assert_eq!(typed(&[b"\x01bx"]), (b"x".to_vec(), false));
    }
}
