//! Owns the format of what the machine sends over its second serial port.
//! Never reads the port itself: bytes come in, events go out.

/// Something the machine told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// The kernel runs and its modules are loaded.
    Ready {
        release: String,
        tdp_mmu: String,
    },
    /// The machine cannot run any step.
    Broken(String),
    /// A step starts; output belongs to it until it ends.
    Begin(String),
    Output(Vec<u8>),
    File {
        name: String,
        bytes: Vec<u8>,
    },
    End {
        name: String,
        status: i32,
        seconds: u64,
    },
    /// Nothing more will come.
    Done,
}

/// Turns the bytes of the port into events.
#[derive(Debug)]
pub(crate) struct Channel {
    mark: Vec<u8>,
    held: Vec<u8>,
    /// A line feed that is output only if no mark follows.
    line_feed: bool,
    /// The file that is being received, and its whole length.
    file: Option<(String, usize)>,
}

impl Channel {
    /// `token` sets the machine's own lines apart from any output.
    pub(crate) fn new(token: &str) -> Self {
        Self {
            mark: format!("@{token} ").into_bytes(),
            held: Vec::new(),
            line_feed: false,
            file: None,
        }
    }

    /// Takes the next bytes and returns what they complete.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Vec<Event> {
        self.held.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some(event) = self.next() {
            events.extend(event);
        }
        events
    }

    /// What came after the last whole line, when no more will come.
    pub(crate) fn rest(&mut self) -> Event {
        let mut rest = std::mem::take(&mut self.held);
        if self.line_feed && self.file.is_none() {
            rest.insert(0, b'\n');
        }
        Event::Output(rest)
    }

    /// `None` when more bytes are needed, `Some(None)` when some were used up
    /// without an event.
    fn next(&mut self) -> Option<Option<Event>> {
        if let Some((name, length)) = self.file.take() {
            if self.held.len() < length {
                self.file = Some((name, length));
                return None;
            }
            let rest = self.held.split_off(length);
            let bytes = std::mem::replace(&mut self.held, rest);
            self.line_feed = false;
            return Some(Some(Event::File { name, bytes }));
        }
        let end = self.held.iter().position(|&byte| byte == b'\n')?;
        let rest = self.held.split_off(end.saturating_add(1));
        let mut line = std::mem::replace(&mut self.held, rest);
        line.pop();
        let Some(told) = line.strip_prefix(self.mark.as_slice()) else {
            if self.line_feed {
                line.insert(0, b'\n');
            }
            self.line_feed = true;
            return Some((!line.is_empty()).then_some(Event::Output(line)));
        };
        self.line_feed = false;
        let told = String::from_utf8_lossy(told).into_owned();
        Some(self.told(&told))
    }

    fn told(&mut self, told: &str) -> Option<Event> {
        let (verb, rest) = told.split_once(' ').unwrap_or((told, ""));
        match verb {
            "ready" => {
                let (release, tdp_mmu) = rest.split_once(' ').unwrap_or((rest, "-"));
                Some(Event::Ready {
                    release: release.to_owned(),
                    tdp_mmu: tdp_mmu.to_owned(),
                })
            }
            "broken" => Some(Event::Broken(rest.to_owned())),
            "begin" => Some(Event::Begin(rest.to_owned())),
            "file" => {
                let (length, name) = rest.split_once(' ')?;
                self.file = Some((name.to_owned(), length.parse().ok()?));
                None
            }
            "end" => {
                let mut words = rest.splitn(3, ' ');
                let status = words.next()?.parse().ok()?;
                let seconds = words.next()?.parse().ok()?;
                let name = words.next()?.to_owned();
                Some(Event::End {
                    name,
                    status,
                    seconds,
                })
            }
            "done" => Some(Event::Done),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds all of it in pieces of `size` and joins the output.
    fn feed(text: &[u8], size: usize) -> (Vec<Event>, Vec<u8>) {
        let mut channel = Channel::new("t");
        let (mut events, mut output) = (Vec::new(), Vec::new());
        for piece in text.chunks(size) {
            for event in channel.feed(piece) {
                match event {
                    Event::Output(bytes) => output.extend(bytes),
                    other => events.push(other),
                }
            }
        }
        (events, output)
    }

    #[test]
    fn step_is_understood_however_the_bytes_are_cut() {
        let text =
            b"\n@t ready 6.1.0 Y\n\n@t begin a b\none\n@x two\n\n\n@t end 3 12 a b\n\n@t done\n";
        for size in 1..text.len() {
            let (events, output) = feed(text, size);
            assert_eq!(
                events,
                [
                    Event::Ready {
                        release: "6.1.0".to_owned(),
                        tdp_mmu: "Y".to_owned()
                    },
                    Event::Begin("a b".to_owned()),
                    Event::End {
                        name: "a b".to_owned(),
                        status: 3,
                        seconds: 12
                    },
                    Event::Done
                ]
            );
            assert_eq!(output, b"one\n@x two\n\n", "in pieces of {size}");
        }
    }

    #[test]
    fn output_without_a_last_line_feed_gets_none() {
        let (_, output) = feed(b"\n@t begin a\nhalf\n@t end 0 0 a\n", 5);
        assert_eq!(output, b"half");
    }

    #[test]
    fn file_may_hold_anything() {
        let held = b"\n@t done\n\0\xff";
        let mut text = format!("\n@t file {} x.bin\n", held.len()).into_bytes();
        text.extend_from_slice(held);
        text.extend_from_slice(b"\n@t done\n");
        for size in 1..text.len() {
            let (events, output) = feed(&text, size);
            let file = Event::File {
                name: "x.bin".to_owned(),
                bytes: held.to_vec(),
            };
            assert_eq!(events, [file, Event::Done]);
            assert_eq!(output, b"", "in pieces of {size}");
        }
    }

    #[test]
    fn damaged_lines_are_dropped() {
        let (events, _) = feed(b"@t file x\n@t end a b c\n@t what\n@t file 99999 y\nz", 3);
        assert_eq!(events, []);
    }
}
