//! Owns the reading of tracefs histograms: what `hist` files of triggers say. Never opens one.
//!
//! A line of one is `{ common_pid: kworker/u4:0     [      9], common_cpu:          1, level:  1 }
//! hitcount:       4100`. A task can have any name, brackets and commas included, so its key has
//! to be the first one, and the key after it is `common_cpu`.

use std::collections::BTreeMap;

/// What lies between a task and the next key.
const AFTER_TASK: &str = ", common_cpu:";

/// A task, as the kernel names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Task {
    pub(super) name: String,
    pub(super) tid: u64,
}

/// What hits are counted by.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) task: Option<Task>,
    values: BTreeMap<String, u64>,
}

impl Key {
    pub(super) fn value(&self, name: &str) -> Option<u64> {
        self.values.get(name).copied()
    }

    fn parse(text: &str) -> Option<Self> {
        let (task, rest) = match text.strip_prefix("common_pid:") {
            None => (None, text),
            Some(text) => {
                let (task, rest) = text.split_at_checked(text.rfind(AFTER_TASK)?)?;
                let (name, tid) = task.trim().strip_suffix(']')?.rsplit_once('[')?;
                let task = Task {
                    name: name.trim().replace(char::is_control, " "),
                    tid: tid.trim().parse().ok()?,
                };
                (Some(task), rest.strip_prefix(", ")?)
            }
        };
        let values = rest.split(',').map(|pair| {
            let (name, value) = pair.split_once(':')?;
            Some((name.trim().to_owned(), number(value.trim())?))
        });
        Some(Self {
            task,
            values: values.collect::<Option<_>>()?,
        })
    }
}

/// Some kernels add what a number means, as in `4 [x]`; it is not wanted.
fn number(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

/// The hits of one histogram.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Hist {
    rows: BTreeMap<Key, u64>,
    /// Events that the kernel had no room for.
    pub(super) dropped: u64,
}

impl Hist {
    /// Reads a `hist` file. Lines of any other form are passed over.
    pub(super) fn parse(text: &str) -> Self {
        let mut hist = Self::default();
        for line in text.lines().map(str::trim) {
            if let Some(dropped) = line.strip_prefix("Dropped:") {
                hist.dropped = number(dropped).unwrap_or(0);
            } else if let Some((key, hits)) = row(line) {
                let sum = hist.rows.entry(key).or_default();
                *sum = sum.saturating_add(hits);
            }
        }
        hist
    }

    /// What came since `before`.
    pub(super) fn since(&self, before: &Self) -> Self {
        let rows = self.rows.iter().filter_map(|(key, hits)| {
            let new = hits.saturating_sub(before.rows.get(key).copied().unwrap_or(0));
            (new > 0).then(|| (key.clone(), new))
        });
        Self {
            rows: rows.collect(),
            dropped: self.dropped.saturating_sub(before.dropped),
        }
    }

    pub(super) fn rows(&self) -> impl Iterator<Item = (&Key, u64)> {
        self.rows.iter().map(|(key, hits)| (key, *hits))
    }

    /// All hits.
    pub(super) fn total(&self) -> u64 {
        self.rows
            .values()
            .fold(0, |sum, hits| sum.saturating_add(*hits))
    }
}

fn row(line: &str) -> Option<(Key, u64)> {
    let (key, hits) = line.strip_prefix('{')?.rsplit_once("} hitcount:")?;
    Some((Key::parse(key.trim())?, number(hits)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKER: &str = "\
# event histogram
#
# trigger info: hist:keys=common_pid.execname,common_cpu,level:vals=hitcount:sort=hitcount:size=2048 [active]
#

{ common_pid: deleter          [       100], common_cpu:          1, level:          1 } hitcount:        417
{ common_pid: kworker/u4:0     [         9], common_cpu:          0, level:          1 } hitcount:       2050
{ common_pid: kworker/u4:0     [         9], common_cpu:          1, level:          1 } hitcount:       4100

Totals:
    Hits: 6567
    Entries: 3
    Dropped: 2
";

    fn read(hist: &Hist) -> Vec<(&str, u64, u64, u64, u64)> {
        let row = |(key, hits): (&'_ Key, u64)| {
            let task = key.task.as_ref().unwrap();
            let value = |name| key.value(name).unwrap();
            (task.tid, value("common_cpu"), value("level"), hits)
        };
        hist.rows
            .keys()
            .map(|key| key.task.as_ref().unwrap().name.as_str())
            .zip(hist.rows().map(row))
            .map(|(name, (tid, cpu, level, hits))| (name, tid, cpu, level, hits))
            .collect()
    }

    #[test]
    fn tasks_cpus_levels_and_what_was_dropped() {
        let hist = Hist::parse(WORKER);
        assert_eq!(
            read(&hist),
            [
                ("deleter", 100, 1, 1, 417),
                ("kworker/u4:0", 9, 0, 1, 2050),
                ("kworker/u4:0", 9, 1, 1, 4100),
            ]
        );
        assert_eq!((hist.total(), hist.dropped), (6567, 2));
    }

    #[test]
    fn a_task_can_have_any_name() {
        for name in [
            "a, b: [7] }",
            "x], common_cpu:",
            "[kvm]",
            "} hitcount: 1",
            "",
        ] {
            let line =
                format!("{{ common_pid: {name:<16} [ 42], common_cpu: 3, level: 2 }} hitcount: 5");
            assert_eq!(read(&Hist::parse(&line)), [(name, 42, 3, 2, 5)], "{line}");
        }
    }

    #[test]
    fn keys_without_a_task() {
        let hist =
            Hist::parse("{ root: 18446623279853379696, level:          4 } hitcount:          1\n");
        let (key, hits) = hist.rows().next().unwrap();
        assert_eq!(key.value("root"), Some(18_446_623_279_853_379_696));
        assert_eq!(
            (key.value("level"), key.value("none"), hits),
            (Some(4), None, 1)
        );
    }

    #[test]
    fn junk_is_passed_over() {
        let junk = "{ } hitcount: 1\n{ common_pid: x [1] } hitcount: 1\n{ level: x } hitcount: 1\n\
                    { level: 1 } hitcount: x\n{ level: 1\n} hitcount: 1\n\u{0}\u{ff}\nDropped: x\n\
                    { common_pid: x [y], common_cpu: 1 } hitcount: 1\n\
                    { level: 99999999999999999999999 } hitcount: 1\n";
        assert_eq!(Hist::parse(junk), Hist::default());
    }

    #[test]
    fn since_leaves_what_is_new() {
        let before = Hist::parse(WORKER);
        let after = WORKER
            .replace("2050", "2060")
            .replace("Dropped: 2", "Dropped: 3");
        let new = Hist::parse(&after).since(&before);
        assert_eq!(read(&new), [("kworker/u4:0", 9, 0, 1, 10)]);
        assert_eq!(new.dropped, 1);
        assert_eq!(before.since(&before), Hist::default());
    }
}
