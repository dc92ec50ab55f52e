//! Owns a guest at work: every vCPU walks the guest's memory, and what that got done. Never maps
//! anything.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::guest::{Guest, Program, Ran};

/// Passes over its memory after which a guest has faulted it in.
const WARM_PASSES: u64 = 2;
/// How long a guest may take for them, on the slowest host.
const WARM_LIMIT: Duration = Duration::from_secs(60);

/// A guest that walks its working set.
#[derive(Debug)]
pub(crate) struct Walk {
    guest: Arc<Guest>,
    program: Program,
}

impl Walk {
    /// A guest that is to walk `len` bytes.
    pub(crate) fn new(guest: Arc<Guest>, len: u64) -> Self {
        let base = guest.layout().working_set().base;
        Self {
            guest,
            program: Program::Walk { base, len },
        }
    }

    pub(crate) fn guest(&self) -> &Guest {
        &self.guest
    }

    /// Lets the guest fault its memory in; false where the run was stopped meanwhile.
    pub(crate) fn warm(&self, stop: &AtomicBool) -> anyhow::Result<bool> {
        self.start()?;
        let begun = Instant::now();
        let all_warm = || -> anyhow::Result<bool> {
            for vcpu in 0..self.guest.vcpu_count() {
                if self.guest.passes(vcpu)? < WARM_PASSES {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        let mut warm = all_warm()?;
        while !warm && !stop.load(Ordering::Relaxed) {
            ensure!(
                begun.elapsed() < WARM_LIMIT,
                "cannot warm the guest up: it made no {WARM_PASSES} passes over its memory in \
                 {WARM_LIMIT:?}; pass a smaller --working-set"
            );
            std::thread::sleep(Duration::from_millis(1));
            warm = all_warm()?;
        }
        self.stop()?;
        Ok(warm)
    }

    /// Starts the walk on every vCPU.
    pub(crate) fn start(&self) -> anyhow::Result<()> {
        for vcpu in 0..self.guest.vcpu_count() {
            self.guest.start(vcpu, self.program)?;
        }
        Ok(())
    }

    /// Stops it and returns what each vCPU did.
    pub(crate) fn stop(&self) -> anyhow::Result<Vec<Ran>> {
        (0..self.guest.vcpu_count())
            .map(|vcpu| Ok(self.guest.stop(vcpu)?))
            .collect()
    }

    /// Guest page faults so far, of all vCPUs; `None` where the kernel does not count them.
    pub(crate) fn faults(&self) -> Option<u64> {
        (0..self.guest.vcpu_count()).try_fold(0_u64, |sum, vcpu| {
            let stats = self.guest.vcpu_stats(vcpu)?;
            Some(sum.saturating_add(stats.read("pf_taken").ok()??))
        })
    }
}

/// Guest accesses per second of vCPU-thread CPU time.
pub(crate) fn work(ran: &[Ran]) -> Option<f64> {
    let accesses: u64 = ran.iter().map(|ran| ran.accesses).sum();
    let cpu: f64 = ran.iter().map(|ran| ran.cpu.as_secs_f64()).sum();
    (accesses > 0 && cpu > 0.0).then(|| accesses as f64 / cpu)
}
