//! Owns what the guest prints until it is written: one system call for a line, not for a byte.
//! Never holds a byte back for longer than a moment.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use anyhow::{Context as _, Result};
use vmm_sys_util::timerfd::TimerFd;

/// How long the start of a line waits for the rest.
const PATIENCE: Duration = Duration::from_millis(5);
/// A line that is longer does not wait.
const LONGEST: usize = 512;

/// A buffer in front of `to`.
///
/// A line goes out at its end; what has no end yet goes out when the timer fires, of which
/// [`fired`](Self::fired) has to be told.
pub(super) struct Output<W> {
    to: W,
    held: Vec<u8>,
    timer: TimerFd,
    armed: bool,
    failed: bool,
}

impl<W: Write> Output<W> {
    pub(super) fn new(to: W) -> Result<Self> {
        Ok(Self {
            to,
            held: Vec::with_capacity(LONGEST),
            timer: TimerFd::new()
                .map_err(io::Error::from)
                .context("cannot create a timer")?,
            armed: false,
            failed: false,
        })
    }

    /// The descriptor that becomes readable when the timer fires.
    pub(super) fn timer(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    /// The timer has fired.
    pub(super) fn fired(&mut self) {
        // It stays armed until it is waited for, so this never waits.
        if self.armed && self.timer.wait().is_err() {
            log::debug!("the timer of the serial port was not armed");
        }
        self.armed = false;
        self.write_held();
    }

    /// The writer behind it; what is held is lost.
    #[cfg(test)]
    pub(super) fn into_inner(self) -> W {
        self.to
    }

    /// Writes what is held. Output that nobody takes is dropped: the guest goes on.
    pub(super) fn write_held(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let written = self.to.write_all(&self.held).and_then(|()| self.to.flush());
        self.held.clear();
        if let Err(error) = written
            && !self.failed
        {
            self.failed = true;
            log::warn!("cannot write what the guest prints: {error}; it is dropped");
        }
    }
}

impl<W: Write> Write for Output<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.held.extend_from_slice(bytes);
        if bytes.contains(&b'\n') || self.held.len() >= LONGEST {
            self.write_held();
        } else if !self.armed {
            match self.timer.reset(PATIENCE, None) {
                Ok(()) => self.armed = true,
                Err(_) => self.write_held(),
            }
        }
        Ok(bytes.len())
    }

    /// The serial port flushes after each byte: that is what this is here to avoid.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts the writes that reach it.
    #[derive(Default)]
    struct Counted(Vec<Vec<u8>>);

    impl Write for Counted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.push(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn print(output: &mut Output<Counted>, text: &[u8]) {
        for byte in text {
            output.write_all(&[*byte]).unwrap();
            output.flush().unwrap();
        }
    }

    #[test]
    fn a_line_is_one_write() {
        let mut output = Output::new(Counted::default()).unwrap();
        print(&mut output, b"one\r\ntwo\r\n");
        assert_eq!(output.to.0, [b"one\r\n", b"two\r\n"]);
    }

    #[test]
    fn a_prompt_goes_out_when_the_timer_fires() {
        let mut output = Output::new(Counted::default()).unwrap();
        print(&mut output, b"login: ");
        assert_eq!(output.to.0.len(), 0);
        assert!(output.armed);
        output.fired();
        assert_eq!(output.to.0, [b"login: "]);
        assert!(!output.armed);
    }

    #[test]
    fn a_line_without_an_end_is_cut() {
        let mut output = Output::new(Counted::default()).unwrap();
        print(&mut output, &[b'.'; LONGEST + 1]);
        assert_eq!(output.to.0.len(), 1);
        assert_eq!(output.held.len(), 1);
    }

    #[test]
    fn output_that_nobody_takes_is_no_error_of_the_guest() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut output = Output::new(Closed).unwrap();
        assert_eq!(output.write(b"lost\n").unwrap(), 5);
        assert!(output.failed && output.held.is_empty());
    }
}
