//! Owns the judgement what keeps threads from adding up, from what they do on grounds that share
//! less and less. Never measures.

use std::collections::BTreeMap;

use super::THREADS;
use super::report::Throughput;
use super::threads::Ground;

/// A ground that gains less than this share of what the ground below it gains is a limit of its own.
const HELD_BACK: f64 = 0.9;

/// Compares each ground with the one that shares less. Only with as many threads as there are CPUs:
/// with more of them, the CPUs are what is short.
pub(super) fn limits(
    threads: &BTreeMap<&'static str, BTreeMap<usize, Throughput>>,
    cpus: usize,
) -> Vec<String> {
    let most = THREADS.into_iter().rfind(|n| *n > 1 && *n <= cpus);
    let Some(n) = most else {
        return vec!["the CPU: there is one".to_owned()];
    };
    let gain = |ground: Ground| threads.get(ground.name())?.get(&n)?.gain;
    let compare = |upper: Ground, lower: Ground, limit: &str| {
        let (upper_gain, lower_gain) = (gain(upper)?, gain(lower)?);
        (upper_gain < lower_gain * HELD_BACK).then(|| {
            format!(
                "{limit}: {n} threads do {upper_gain:.2} times the calls of one on {}, and \
                 {lower_gain:.2} times on {}",
                upper.name(),
                lower.name()
            )
        })
    };
    [
        compare(Ground::Bare, Ground::NoLock, "mmap_lock"),
        compare(
            Ground::OwnWindows,
            Ground::Bare,
            "the VM's and the library's shared state",
        ),
        compare(
            Ground::OneWindow,
            Ground::OwnWindows,
            "the window's own lock",
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn limits_name_what_costs_a_tenth_and_more() {
        let limits = limits(&report().threads, 2);
        assert_eq!(limits.len(), 2, "{limits:?}");
        assert!(
            limits[0].starts_with("mmap_lock: 2 threads do 1.00"),
            "{limits:?}"
        );
        assert!(limits[1].starts_with("the window's own lock"), "{limits:?}");
    }

    #[test]
    fn one_cpu_is_a_limit_by_itself() {
        assert_eq!(limits(&report().threads, 1), ["the CPU: there is one"]);
    }
}
