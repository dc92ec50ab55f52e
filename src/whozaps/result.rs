//! Owns the result of `--who-zaps` and its JSON, whose keys are a public contract. Never measures.

use anyhow::Context as _;
use serde::Serialize;

use super::table;
use crate::report::Host;

/// Who did KVM's zap work. A figure that could not be had is `None`, in JSON `null`; never 0.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WhoZaps {
    /// Where it was measured.
    pub host: Host,
    /// The thread that made the calls.
    pub caller: Caller,
    /// Why figures are missing, for people.
    pub note: Option<String>,
    /// Pages of each window that the guest had touched before an operation.
    pub window_pages: u64,
    /// A memslot is deleted.
    pub memslot_delete: Operation,
    /// What lies behind a window is replaced, its memslot stays.
    pub remap: Operation,
    /// `Window::invalidate_roots`.
    pub invalidate_roots: Operation,
    /// Kernel threads of KVM's own that stand by for this VM alone, while it lives.
    pub workers_left: Option<u64>,
    /// What a real-time task on another CPU notices of it.
    pub jitter: Option<Jitter>,
}

/// The thread that made the calls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Caller {
    /// Its name in the trace.
    pub name: String,
    /// The one CPU that it was pinned to.
    pub cpu: usize,
    /// What raised its priority.
    pub priority: String,
}

/// What one operation made KVM do.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Operation {
    /// Who took page-table entries away, most of them first.
    pub tasks: Vec<TaskShare>,
    /// Page-table entries that were taken away, by all tasks; those for whole tables included.
    pub sptes: Option<u64>,
    /// Roots that were walked to the end.
    pub roots: Option<u64>,
    /// Walks of a root that had been walked before, in a row of operations without a running vCPU.
    pub roots_twice: Option<u64>,
    /// How often KVM declared all roots of a VM invalid.
    pub zap_all_fast: Option<u64>,
    /// Requests to flush the TLBs of all vCPUs.
    pub flush_requests: Option<u64>,
    /// By how many entries the VM's translations of pages became fewer.
    pub translations_lost: Option<u64>,
    /// Shadow pages that were zapped, on hosts without a TDP MMU.
    pub shadow_pages: Option<u64>,
    /// The caller's share in `sptes`, 0 to 1.
    pub by_caller: Option<f64>,
    /// Whether the caller did all of it, on the CPU that it was pinned to.
    pub held: Option<bool>,
}

/// One task's part of the work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TaskShare {
    /// The task's name.
    pub name: String,
    /// Its thread number.
    pub tid: Option<u64>,
    /// The CPUs that it ran on meanwhile, ascending.
    pub cpus: Vec<u64>,
    /// How many entries it took away.
    pub sptes: u64,
}

/// Wake-ups of a real-time task on another CPU than the caller's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Jitter {
    /// How often it wants to be woken, in microseconds.
    pub period_us: u64,
    /// Its CPU.
    pub cpu: usize,
    /// What raised its priority.
    pub priority: String,
    /// The guest touches its memory in a loop and nothing else happens.
    pub idle: Phase,
    /// The same, and a memslot is deleted and created each time.
    pub memslot_delete: Phase,
    /// The same, and a window of the backend `fixed` is remapped each time.
    pub fixed: Phase,
}

/// One of the phases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Phase {
    /// Wake-ups in it.
    pub wakeups: u64,
    /// Those that came later than one period.
    pub missed: u64,
    /// The latest of all, in microseconds.
    pub worst_us: u64,
    /// Operations of the loop.
    pub operations: u64,
    /// How often KVM declared all roots of a VM invalid.
    pub zap_all_fast: Option<u64>,
}

/// The key that says what a file holds.
#[derive(Serialize)]
struct Document<'a> {
    who_zaps: &'a WhoZaps,
}

impl WhoZaps {
    /// The three operations with their JSON names, in the order of the table.
    #[must_use]
    pub fn operations(&self) -> [(&'static str, &Operation); 3] {
        [
            ("memslot_delete", &self.memslot_delete),
            ("remap", &self.remap),
            ("invalidate_roots", &self.invalidate_roots),
        ]
    }

    /// The result as indented JSON, for programs.
    ///
    /// # Errors
    /// When the serializer refuses a value, which no value of these types should cause.
    pub fn json(&self) -> anyhow::Result<String> {
        let document = Document { who_zaps: self };
        serde_json::to_string_pretty(&document).context("cannot write the result as JSON")
    }

    /// The result as text for a terminal of 100 columns.
    #[must_use]
    pub fn text(&self) -> String {
        table::text(self)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::sample;
    use super::*;

    fn json(result: &WhoZaps) -> Value {
        serde_json::from_str(&result.json().unwrap()).unwrap()
    }

    fn keys(value: &Value) -> Vec<&str> {
        let keys = value.as_object().unwrap().keys();
        let mut keys: Vec<_> = keys.map(String::as_str).collect();
        keys.sort_unstable();
        keys
    }

    #[test]
    fn json_has_the_contract_keys_measured_or_not() {
        for result in [sample::workers(), sample::untraced()] {
            let value = json(&result);
            assert_eq!(keys(&value), ["who_zaps"]);
            let all = [
                "caller",
                "host",
                "invalidate_roots",
                "jitter",
                "memslot_delete",
                "note",
                "remap",
                "window_pages",
                "workers_left",
            ];
            assert_eq!(keys(&value["who_zaps"]), all);
            let operation = [
                "by_caller",
                "flush_requests",
                "held",
                "roots",
                "roots_twice",
                "shadow_pages",
                "sptes",
                "tasks",
                "translations_lost",
                "zap_all_fast",
            ];
            for (name, _) in result.operations() {
                assert_eq!(keys(&value["who_zaps"][name]), operation, "{name}");
            }
        }
    }

    #[test]
    fn json_of_what_was_not_measured_is_null_and_never_0() {
        let value = json(&sample::untraced());
        let delete = &value["who_zaps"]["memslot_delete"];
        assert!(
            delete["sptes"].is_null() && delete["held"].is_null(),
            "{delete}"
        );
        assert_eq!(delete["tasks"], Value::Array(Vec::new()));
        assert!(value["who_zaps"]["jitter"].is_null());
    }

    #[test]
    fn json_names_tasks_phases_and_shares() {
        let value = json(&sample::workers());
        let value = &value["who_zaps"];
        let task = &value["memslot_delete"]["tasks"][0];
        assert_eq!(keys(task), ["cpus", "name", "sptes", "tid"]);
        assert_eq!(task["cpus"], serde_json::json!([0, 1]));
        assert_eq!(value["memslot_delete"]["by_caller"], 0.0);
        assert_eq!(value["remap"]["held"], true);
        let phase = &value["jitter"]["memslot_delete"];
        assert_eq!(
            keys(phase),
            [
                "missed",
                "operations",
                "wakeups",
                "worst_us",
                "zap_all_fast"
            ]
        );
    }
}
