//! Owns how an examination looks to people. Never decides anything about a
//! host, never writes to a terminal.

use std::env;
use std::io::{self, IsTerminal};

use comfy_table::{
    Cell, Color, ColumnConstraint, ContentArrangement, Table, Width, presets::UTF8_HORIZONTAL_ONLY,
};

use super::findings::{Finding, Status};
use super::{Examination, Verdict};

/// Below this many columns, value and meaning share a column.
const WIDE: u16 = 120;
/// Lines longer than this are hard to follow.
const WIDEST: u16 = 200;
/// Narrower than this no word fits.
const NARROWEST: u16 = 60;
/// Where the width is not known.
const USUAL: u16 = 100;

/// How a table is to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Columns of the terminal; taken as 60 to 200.
    pub width: u16,
    /// Whether the status is coloured.
    pub colour: bool,
}

impl Style {
    /// What suits the standard output: its width, and colour where it is a
    /// terminal and `NO_COLOR` is not set.
    #[must_use]
    pub fn for_stdout() -> Self {
        let set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = env::var_os("TERM").is_some_and(|value| value == "dumb");
        Self {
            width: Table::new().width().unwrap_or(USUAL),
            colour: io::stdout().is_terminal() && !set("NO_COLOR") && !dumb,
        }
    }
}

pub(super) fn table(examination: &Examination, style: Style) -> String {
    let width = style.width.clamp(NARROWEST, WIDEST);
    let wide = width >= WIDE;
    let mut table = Table::new();
    table
        .load_style(UTF8_HORIZONTAL_ONLY)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(width);
    if style.colour {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    if wide {
        table.set_header(["status", "check", "found", "meaning and what to do"]);
        table.set_constraints([
            ColumnConstraint::ContentWidth,
            ColumnConstraint::ContentWidth,
            ColumnConstraint::UpperBoundary(Width::Percentage(25)),
        ]);
    } else {
        table.set_header(["status", "check", "found, meaning and what to do"]);
        table.set_constraints([
            ColumnConstraint::ContentWidth,
            ColumnConstraint::ContentWidth,
        ]);
    }
    for finding in &examination.findings {
        table.add_row(row(finding, wide));
    }
    format!("{}\n{}\n", table.trim_fmt(), verdict(examination))
}

fn row(finding: &Finding, wide: bool) -> Vec<Cell> {
    let status = Cell::new(finding.status.word()).fg(colour(finding.status));
    let mut cells = vec![status, Cell::new(&finding.id)];
    let mut text = finding.meaning.clone();
    if !finding.action.is_empty() {
        text = format!("{text}\n-> {}", finding.action);
    }
    if wide {
        cells.push(Cell::new(&finding.value));
        cells.push(Cell::new(text));
    } else {
        cells.push(Cell::new(format!("{}\n{text}", finding.value)));
    }
    cells
}

fn colour(status: Status) -> Color {
    match status {
        Status::Ok => Color::Green,
        Status::Note => Color::Cyan,
        Status::Warning => Color::Yellow,
        Status::Bad => Color::Red,
    }
}

fn verdict(examination: &Examination) -> String {
    let count = |status: Status| {
        examination
            .findings
            .iter()
            .filter(|finding| finding.status == status)
            .count()
    };
    let why = match examination.verdict {
        Verdict::Usable => String::new(),
        Verdict::Warnings => format!(": {} to mend", count(Status::Warning)),
        Verdict::Unusable => format!(": {} in the way", count(Status::Bad)),
    };
    format!("This host is {}{why}.", examination.verdict.words())
}
