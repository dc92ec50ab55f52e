//! Owns the result of `--who-zaps` as text for a terminal of 100 columns. Never measures.

use comfy_table::{ContentArrangement, Table, presets};

use super::result::{Jitter, Operation, WhoZaps};
use crate::report::lines::{line, lines};

const COLUMNS: u16 = 100;
const ABSENT: &str = "-";
const HEADER: [&str; 10] = [
    "\noperation",
    "\nzapped by",
    "\nCPUs",
    "\nSPTEs",
    "by\ncaller",
    "CPU\nheld",
    "roots/\ntwice",
    "whole\nVM",
    "flush\nrequests",
    "transl.\nlost",
];

pub(super) fn text(result: &WhoZaps) -> String {
    let mut text = String::new();
    let caller = &result.caller;
    line(&mut text, &format!("kernel  {}", result.host.kernel));
    let priority = &caller.priority;
    line(
        &mut text,
        &format!(
            "caller  {}, pinned to CPU {}, {priority}",
            caller.name, caller.cpu
        ),
    );
    if let Some(note) = &result.note {
        line(&mut text, &format!("note    {note}"));
    }
    text.push('\n');
    text.push_str(&operations(result));
    let pages = result.window_pages;
    line(
        &mut text,
        &format!("pages that the guest had touched in each window: {pages}"),
    );
    let workers = count(result.workers_left);
    line(
        &mut text,
        &format!("worker threads that KVM keeps for the VM: {workers}"),
    );
    if let Some(jitter) = &result.jitter {
        text.push('\n');
        text.push_str(&timer(jitter));
    }
    text
}

fn operations(result: &WhoZaps) -> String {
    let mut table = table();
    table.set_header(HEADER);
    for (name, operation) in result.operations() {
        table.add_row(cells(&name.replace('_', " "), operation));
        // More tasks stand below the first.
        for share in operation.tasks.iter().skip(1) {
            let cpus = list(&share.cpus);
            table.add_row(["", &share.name, &cpus, &share.sptes.to_string()]);
        }
    }
    lines(&mut table, |index| index < 3)
}

fn cells(name: &str, operation: &Operation) -> Vec<String> {
    let absent = || ABSENT.to_owned();
    let first = operation.tasks.first();
    let roots = operation.roots.zip(operation.roots_twice);
    // With more than one task each has its own figure.
    let sptes = match first {
        Some(first) => Some(first.sptes),
        None => operation.sptes,
    };
    vec![
        name.to_owned(),
        first.map_or_else(absent, |task| task.name.clone()),
        first.map_or_else(absent, |task| list(&task.cpus)),
        count(sptes),
        operation
            .by_caller
            .map_or_else(absent, |share| format!("{:.0} %", share * 100.0)),
        match operation.held {
            Some(true) => "yes".to_owned(),
            Some(false) => "no".to_owned(),
            None => absent(),
        },
        roots.map_or_else(absent, |(roots, twice)| format!("{roots}/{twice}")),
        count(operation.zap_all_fast),
        count(operation.flush_requests),
        count(operation.translations_lost),
    ]
}

fn timer(jitter: &Jitter) -> String {
    let mut table = table();
    table.set_header([
        format!("timer on CPU {}, {}", jitter.cpu, jitter.priority),
        "wake-ups".to_owned(),
        "late".to_owned(),
        "worst µs".to_owned(),
        "operations".to_owned(),
        "whole VM".to_owned(),
    ]);
    for (name, phase) in [
        ("idle", jitter.idle),
        ("memslot delete", jitter.memslot_delete),
        ("fixed", jitter.fixed),
    ] {
        table.add_row([
            name.to_owned(),
            phase.wakeups.to_string(),
            phase.missed.to_string(),
            phase.worst_us.to_string(),
            phase.operations.to_string(),
            count(phase.zap_all_fast),
        ]);
    }
    let mut text = lines(&mut table, |index| index < 1);
    let period = jitter.period_us;
    line(
        &mut text,
        &format!(
            "late: by more than {period} µs; for information only, under emulation it means little"
        ),
    );
    text
}

fn table() -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(COLUMNS);
    table
}

fn count(figure: Option<u64>) -> String {
    figure.map_or_else(|| ABSENT.to_owned(), |figure| figure.to_string())
}

fn list(cpus: &[u64]) -> String {
    let cpus: Vec<String> = cpus.iter().map(u64::to_string).collect();
    cpus.join(",")
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn text_fits_100_columns() {
        for result in [sample::workers(), sample::untraced()] {
            for line in text(&result).lines() {
                assert!(line.chars().count() <= 100, "{line}");
                assert_eq!(line, line.trim_end());
            }
        }
    }

    #[test]
    fn text_names_each_task_with_its_own_figure() {
        let text = text(&sample::workers());
        let line = |start: &str| {
            let mut lines = text
                .lines()
                .map(|line| line.split_whitespace().collect::<Vec<_>>());
            lines
                .find(|words| words.join(" ").starts_with(start))
                .unwrap()
        };
        let delete = [
            "memslot",
            "delete",
            "kworker/u4:0",
            "0,1",
            "6150",
            "0",
            "%",
            "no",
        ];
        assert_eq!(line("memslot delete")[..8], delete);
        assert_eq!(line("kworker/u4:1"), ["kworker/u4:1", "1", "7"]);
        assert_eq!(
            line("remap")[1..6],
            ["caller-1234567", "1", "256", "100", "%"]
        );
        assert_eq!(line("worker threads").last(), Some(&"1"));
    }

    #[test]
    fn text_of_an_untraced_host_says_why() {
        let text = text(&sample::untraced());
        assert!(text.contains("note    no TDP MMU here"), "{text}");
        assert!(text.contains("for the VM: -"), "{text}");
        assert!(!text.contains("timer on CPU"), "{text}");
    }
}
