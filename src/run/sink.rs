//! Owns the way of the guest's output out of the process: standard output, which may be a pipe or a
//! terminal that nobody reads for a while. Never decides what is written.
//!
//! A guest waits for whoever reads its output. Who wants to end it does not: the thread that waits
//! has the serial port's lock, and the main loop needs it.

use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::power::Ending;

/// How often whoever waits looks whether the guest has ended.
const LOOK: Duration = Duration::from_millis(50);
/// How long what the guest wrote last waits for a reader, once the guest has ended.
const LAST: Duration = Duration::from_secs(1);

/// A writer that waits for a reader for as long as the guest runs.
pub(super) struct Sink {
    to: OwnedFd,
    /// Readable once somebody asks the process to end.
    leave: UnixStream,
    ending: Arc<Ending>,
    /// Nobody is waited for after this.
    deadline: Option<Instant>,
}

impl Sink {
    /// Writes to `to`. A byte in `leave` asks the process to end; it is left there.
    pub(super) fn new(to: impl AsFd, leave: UnixStream, ending: Arc<Ending>) -> Result<Self> {
        let to = without_waiting(to.as_fd()).context("cannot copy standard output")?;
        Ok(Self {
            to,
            leave,
            ending,
            deadline: None,
        })
    }

    fn wait_for_room(&mut self) -> io::Result<()> {
        loop {
            let late = self.deadline.is_some_and(|end| Instant::now() >= end);
            let look = if late { Duration::ZERO } else { LOOK };
            let look = Timespec::try_from(look).map_err(io::Error::other)?;
            let mut room = [PollFd::new(&self.to, PollFlags::OUT)];
            match poll(&mut room, Some(&look)) {
                Ok(0) if late => return Err(io::ErrorKind::TimedOut.into()),
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            if self.deadline.is_none() && self.ends()? {
                self.deadline = Instant::now().checked_add(LAST);
            }
        }
    }

    /// Whether the guest has ended, or somebody asks for it.
    fn ends(&self) -> io::Result<bool> {
        let mut leave = [PollFd::new(&self.leave, PollFlags::IN)];
        let asked = poll(&mut leave, Some(&Timespec::default()))? > 0;
        Ok(asked || self.ending.ended().is_some())
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            self.wait_for_room()?;
            match rustix::io::write(&self.to, bytes) {
                // A terminal has room for less than it needs for one character.
                Err(Errno::AGAIN) => std::thread::sleep(Duration::from_millis(1)),
                Err(Errno::INTR) => {}
                written => return Ok(written?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The same pipe or terminal, opened once more so that a write never waits: the flag of `fd` itself
/// belongs to other processes, too. Else the same descriptor.
fn without_waiting(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let kind = FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode);
    if kind == FileType::Fifo || rustix::termios::isatty(fd) {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        if let Ok(again) = rustix::fs::open(path, flags, Mode::empty()) {
            return Ok(again);
        }
    }
    rustix::io::fcntl_dupfd_cloexec(fd, 0)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::sync::mpsc::channel;

    use super::super::power::GuestEnd;
    use super::*;

    /// A pipe that has room for nothing more, what ends the guest, and a thread that prints.
    fn printing_into_a_full_pipe(end: impl FnOnce(&Ending, &UnixStream)) -> io::Result<usize> {
        let (reader, writer) = io::pipe().unwrap();
        let (theirs, leave) = UnixStream::pair().unwrap();
        let ending = Arc::new(Ending::new().unwrap());
        let mut sink = Sink::new(&writer, leave, Arc::clone(&ending)).unwrap();
        while let Ok(1..) = rustix::io::write(&sink.to, &[b'.'; 4096]) {}
        let (begins, begun) = channel();
        let printer = std::thread::spawn(move || {
            begins.send(()).unwrap();
            sink.write(b"one line more\n")
        });
        begun.recv().unwrap();
        end(&ending, &theirs);
        let printed = printer.join().unwrap();
        drop(reader);
        printed
    }

    #[test]
    fn a_reader_that_does_not_read_keeps_no_guest_that_has_ended() {
        let printed = printing_into_a_full_pipe(|ending, _| ending.end(GuestEnd::Left));
        assert_eq!(printed.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_reader_that_does_not_read_keeps_no_vmm_that_is_asked_to_end() {
        let printed = printing_into_a_full_pipe(|_, mut theirs| theirs.write_all(b"x").unwrap());
        assert_eq!(printed.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_reader_that_is_late_gets_everything() {
        let (mut reader, writer) = io::pipe().unwrap();
        let (_theirs, leave) = UnixStream::pair().unwrap();
        let ending = Arc::new(Ending::new().unwrap());
        let mut sink = Sink::new(&writer, leave, ending).unwrap();
        drop(writer);
        let text: Vec<u8> = (0..u8::MAX).cycle().take(300_000).collect();
        let all = text.clone();
        let printer = std::thread::spawn(move || sink.write_all(&all));
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        printer.join().unwrap().unwrap();
        assert_eq!(read, text);
    }

    #[test]
    fn a_file_is_written_where_it_stands() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"before ").unwrap();
        let (_theirs, leave) = UnixStream::pair().unwrap();
        let ending = Arc::new(Ending::new().unwrap());
        let mut sink = Sink::new(&file, leave, ending).unwrap();
        sink.write_all(b"after").unwrap();
        let mut text = String::new();
        io::Seek::rewind(&mut file).unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "before after");
    }
}
