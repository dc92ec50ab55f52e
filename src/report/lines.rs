//! Owns how a table without borders becomes lines of text, the same for every command. Never knows
//! what stands in it.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table};

/// Adds a line without spaces at its end. Writing to a `String` cannot fail.
pub(crate) fn line(text: &mut String, line: &str) {
    writeln!(text, "{}", line.trim_end()).unwrap_or_default();
}

/// The table as lines: columns of words, by their index, to the left and figures to the right.
pub(crate) fn lines(table: &mut Table, is_words: impl Fn(usize) -> bool) -> String {
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding(if index == 0 { (0, 0) } else { (2, 0) });
        column.set_cell_alignment(if is_words(index) {
            CellAlignment::Left
        } else {
            CellAlignment::Right
        });
    }
    let mut text = String::new();
    for row in table.lines() {
        line(&mut text, &row);
    }
    text
}
