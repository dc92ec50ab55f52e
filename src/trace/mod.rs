//! Owns traces: what a client of a window asked for, and when, as a text that can be recorded,
//! generated and replayed. Never maps anything. The format is described in `docs/trace-format.md`.

mod dax;
mod format;
mod game;
mod generate;
mod place;
mod video;

pub use self::format::TraceError;
pub use self::generate::{Client, Recipe};
pub use self::place::{Action, Placed, place};

/// The most a window of a trace has, in bytes.
pub const MAX_WINDOW: u64 = 64 << 30;
/// The most one mapping has, in bytes.
pub const MAX_MAPPING: u64 = 256 << 20;
/// The most steps that a trace has.
pub const MAX_STEPS: usize = 1_000_000;
/// The most mappings that live at the same time.
pub const MAX_LIVE: usize = 30_000;
/// The latest time of a step, in microseconds: an hour.
pub const MAX_TIME: u64 = 3_600_000_000;

/// What a client asked for, in the order of time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// Length of the window, in bytes.
    pub window: u64,
    /// What happened; times never go back.
    pub steps: Vec<Step>,
}

/// One operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// When, in microseconds from the start.
    pub at_us: u64,
    /// What.
    pub operation: Operation,
}

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A hole becomes a mapping, which gets a number that no living one has.
    Map {
        /// The number.
        id: u64,
        /// Where in the window.
        offset: Offset,
        /// Its length, in bytes.
        len: u64,
        /// What is mapped.
        kind: Kind,
    },
    /// Other memory comes behind a living mapping.
    Replace {
        /// The mapping's number.
        id: u64,
        /// What is mapped now.
        kind: Kind,
    },
    /// A living mapping becomes a hole.
    Unmap {
        /// The mapping's number.
        id: u64,
    },
}

/// Where a mapping lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offset {
    /// Wherever there is room, for whoever replays the trace to choose.
    Auto,
    /// That many bytes from the start of the window.
    At(u64),
}

/// Whose memory is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A file in memory that the VMM made itself, with final seals.
    Own,
    /// A file in memory that came from a peer, who can change it at any time.
    Peer,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 2] = [Self::Own, Self::Peer];

    /// Its name in a trace.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Peer => "peer",
        }
    }
}

impl Trace {
    /// When the last step happens, in microseconds.
    #[must_use]
    pub fn duration_us(&self) -> u64 {
        self.steps.last().map_or(0, |step| step.at_us)
    }
}
