//! Owns how a table without borders, a host and aims become lines of text, the same for every
//! command. Never measures.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use super::{Aim, Host, units};

/// Adds a line without spaces at its end. Writing to a `String` cannot fail.
pub(crate) fn line(text: &mut String, line: &str) {
    writeln!(text, "{}", line.trim_end()).unwrap_or_default();
}

/// A table without borders that is as wide as what stands in it.
pub(crate) fn table() -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table
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

/// The host in two lines.
pub(crate) fn host(host: &Host) -> String {
    let mmu = match host.tdp_mmu {
        Some(true) => "TDP MMU on",
        Some(false) => "TDP MMU off",
        None => "TDP MMU unknown",
    };
    let (machine, cpus, kernel, module) =
        (&host.machine, host.cpus, &host.kernel, &host.kvm_module);
    format!("{machine}, {cpus} CPUs\nkernel {kernel}, {module}, {mmu}\n")
}

/// Two lines for each aim.
pub(crate) fn aims(aims: &[Aim]) -> String {
    let mut text = String::new();
    for aim in aims {
        let (measured, bound) = (units::measured(aim), units::bound(aim.aim));
        line(&mut text, &format!("{}:", aim.name));
        line(
            &mut text,
            &format!("    {measured}, aim {bound}: {}", aim.verdict()),
        );
    }
    text
}
