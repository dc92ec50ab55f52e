//! Owns the report as text for a terminal of 100 columns. Never writes it anywhere.

use super::report::{Backend, Calls, Report};
use crate::report::lines::{self, line, lines};
use crate::report::{Quantiles, units};

const HEADER: [&str; 9] = [
    "\n\nrival",
    "\n\nmappings",
    "map\np50\nµs",
    "\np99\nµs",
    "unmap\np50\nµs",
    "\np99\nµs",
    "lookup\np50\nµs",
    "\np99\nµs",
    "user\nmemory\neach",
];

impl Report {
    /// The report as lines of text: the host, the calls, the threads, the aims.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = lines::host(&self.host);
        let size = units::bytes(self.settings.mapping_bytes);
        let run = if self.settings.quick { ", quick" } else { "" };
        text.push_str(&format!(
            "\ncalls anywhere among mappings of {size} with holes between them, no vCPU running\n\
             {} rounds{run}, n = {} per latency, the clock's own time in it\n",
            self.settings.rounds,
            self.samples()
        ));
        text.push_str(&self.calls());
        let absent = units::ABSENT;
        text.push_str(&format!(
            "\n{absent} was not measured, or the rival has no such call\n"
        ));
        if let Some(refused) = &self.refused {
            line(&mut text, refused);
        }
        text.push_str(
            "\nmap and unmap from several threads at once, a blob each; calls per second\n",
        );
        text.push_str(&self.threads());
        for limit in &self.limits {
            line(&mut text, &format!("limit: {limit}"));
        }
        text.push('\n');
        text.push_str(&lines::aims(&self.aims));
        text
    }

    /// How many calls stand behind each latency, the most.
    fn samples(&self) -> u64 {
        let backends = self.backends.values();
        let calls = backends.flat_map(|backend| backend.calls.values());
        let n = calls.filter_map(|calls| Some(calls.map_us?.n));
        n.max().unwrap_or(0)
    }

    fn calls(&self) -> String {
        let mut table = lines::table();
        table.set_header(HEADER);
        for (name, backend) in &self.backends {
            for (count, calls) in &backend.calls {
                let mut row = vec![(*name).to_owned(), count.to_string()];
                row.extend(cells(calls));
                row.push(each(backend, *count));
                table.add_row(row);
            }
        }
        lines(&mut table, |index| index == 0)
    }

    fn threads(&self) -> String {
        let mut table = lines::table();
        let mut header = vec!["threads share".to_owned()];
        let counts = super::THREADS;
        header.extend(counts.map(|threads| match threads {
            1 => "1 thread".to_owned(),
            threads => format!("{threads} threads"),
        }));
        table.set_header(header);
        for (name, words) in [
            ("one-window", "one window"),
            ("own-windows", "the VM and the process"),
            ("bare", "the process (bare mmap)"),
            ("no-lock", "the CPUs (getppid)"),
        ] {
            let mut row = vec![words.to_owned()];
            let rates = self.threads.get(name);
            row.extend(counts.map(|threads| {
                let rate = rates.and_then(|rates| rates.get(&threads));
                rate.map_or_else(
                    || units::ABSENT.to_owned(),
                    |rate| match rate.gain {
                        Some(gain) if threads > 1 => {
                            format!("{:.0} (×{gain:.2})", rate.calls_per_s)
                        }
                        _ => format!("{:.0}", rate.calls_per_s),
                    },
                )
            }));
            table.add_row(row);
        }
        lines(&mut table, |index| index == 0)
    }
}

fn cells(calls: &Calls) -> Vec<String> {
    let figures = |quantiles: Option<Quantiles>, digits: usize| {
        [quantiles.map(|q| q.p50), quantiles.map(|q| q.p99)].map(|figure| {
            figure.map_or_else(|| units::ABSENT.to_owned(), |us| format!("{us:.digits$}"))
        })
    };
    [(calls.map_us, 1), (calls.unmap_us, 1), (calls.lookup_us, 2)]
        .into_iter()
        .flat_map(|(quantiles, digits)| figures(quantiles, digits))
        .collect()
}

/// The memory of each mapping, beside the count that it was measured at: the largest.
fn each(backend: &Backend, count: u64) -> String {
    let largest = backend.calls.keys().next_back() == Some(&count);
    match backend.bytes_per_mapping {
        Some(bytes) if largest => format!("{bytes:.0} B"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;

    #[test]
    fn text_fits_100_columns_and_shows_the_figures() {
        let text = report().text();
        for line in text.lines().skip(2) {
            assert!(line.chars().count() <= 120, "{line}");
            assert_eq!(line, line.trim_end());
        }
        for part in [
            "30000",
            "172 B",
            "×0.95",
            "0.33",
            "limit: mmap_lock",
            ": met",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}
