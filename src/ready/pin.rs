//! Owns keeping a run on one CPU: the caller and the vCPUs take turns anyway, and whether a vCPU
//! wakes up here or elsewhere makes more of a difference than most rivals. Never outlives the run.

use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

/// The calling thread, and every thread that it starts, on the CPU where it is now.
#[derive(Debug)]
pub(crate) struct Pinned(Option<CpuSet>);

impl Pinned {
    /// A host that does not allow it is measured all the same.
    pub(crate) fn here() -> Self {
        let pinned = sched_getaffinity(None).and_then(|before| {
            let mut here = CpuSet::new();
            here.set(sched_getcpu());
            sched_setaffinity(None, &here)?;
            Ok(before)
        });
        Self(
            pinned
                .inspect_err(|error| log::info!("cannot stay on one CPU: {error}"))
                .ok(),
        )
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(before) = &self.0
            && let Err(error) = sched_setaffinity(None, before)
        {
            log::warn!("cannot leave the one CPU of the run: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_on_one_cpu_and_its_caller_is_set_free_again() {
        let before = sched_getaffinity(None).unwrap();
        let pinned = Pinned::here();
        assert_eq!(sched_getaffinity(None).unwrap().count(), 1);
        drop(pinned);
        assert_eq!(sched_getaffinity(None).unwrap(), before);
    }
}
