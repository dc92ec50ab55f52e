//! Owns the measurement of the three operations, each on a populated guest whose vCPU stands
//! still, so that counts are exact. Never sets up tracing or scheduling by itself.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, ensure};
use vm_remap::host::{Host as Survey, TdpMmu};

use super::jitter;
use super::result::{Caller, Operation, TaskShare, WhoZaps};
use super::stage::{Stage, TOUCHED_PAGES};
use super::tracefs::{Seen, Trace};
use crate::bench;
use crate::realtime::scheduling::{allowed_cpus, go_first, pin};

const CALLER_PRIORITY: i32 = 1;
/// How often an operation is done in a row, to see whether a root is walked again.
const IN_A_ROW: usize = 3;
const NO_TDP_MMU: &str = "no TDP MMU here: shadow pages are zapped by the caller; only counts \
                          from KVM's statistics";

/// Measures on the calling thread, which has to be called `name` and is of no other use after.
pub(super) fn measure(name: &str, stop: &AtomicBool) -> anyhow::Result<Option<WhoZaps>> {
    let cpus = allowed_cpus()?;
    let (first, last) = cpus
        .first()
        .zip(cpus.last())
        .context("cannot find a CPU to use")?;
    // Before the guest is made: its vCPU is to leave the other CPU alone as well.
    pin(*last)?;
    let workers_of_others = workers();
    let stage = Stage::new()?;
    let untraced = Survey::default().tdp_mmu().state == TdpMmu::Off;
    let trace = if untraced { None } else { Some(Trace::open()?) };
    let caller = Caller {
        name: name.to_owned(),
        cpu: *last,
        priority: go_first(CALLER_PRIORITY),
    };
    let ground = Ground {
        stage: &stage,
        trace: trace.as_ref(),
        caller: &caller,
        stop,
    };
    let (Some(memslot_delete), Some(remap), Some(invalidate_roots)) = (
        ground.operation(Stage::delete_memslot, Stage::create_memslot)?,
        ground.operation(Stage::remap, |_| Ok(()))?,
        ground.operation(Stage::invalidate_roots, |_| Ok(()))?,
    ) else {
        return Ok(None);
    };
    let Some(jitter) = jitter::measure(&stage, trace.as_ref(), *first, stop)? else {
        return Ok(None);
    };
    let workers_left = workers()
        .zip(workers_of_others)
        .map(|(all, others)| all.saturating_sub(others));
    Ok(Some(WhoZaps {
        host: bench::describe(&stage.guest),
        caller,
        note: untraced.then(|| NO_TDP_MMU.to_owned()),
        window_pages: TOUCHED_PAGES,
        memslot_delete,
        remap,
        invalidate_roots,
        workers_left,
        jitter: Some(jitter),
    }))
}

type Step = fn(&Stage) -> anyhow::Result<()>;

/// What the operations are measured with.
struct Ground<'a> {
    stage: &'a Stage,
    trace: Option<&'a Trace>,
    caller: &'a Caller,
    stop: &'a AtomicBool,
}

/// KVM's own figures at one moment.
#[derive(Clone, Copy, Debug, Default)]
struct Figures {
    flush_requests: Option<u64>,
    translations: Option<u64>,
    shadow_pages: Option<u64>,
}

impl Ground<'_> {
    /// Does `step` on a populated guest and counts; then `again` and `step` some more, without the
    /// guest, for the roots. `None` if the run was stopped before.
    fn operation(&self, step: Step, again: Step) -> anyhow::Result<Option<Operation>> {
        if self.stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        self.stage.populate()?;
        let (before, seen_before) = (self.figures()?, self.seen()?);
        step(self.stage)?;
        let (seen, after) = (self.seen()?, self.figures()?);
        for _ in 1..IN_A_ROW {
            again(self.stage)?;
            step(self.stage)?;
        }
        let seen_in_a_row = self.seen()?;
        again(self.stage)?;
        let fewer = |before: Option<u64>, after: Option<u64>| {
            before
                .zip(after)
                .map(|(before, after)| before.saturating_sub(after))
        };
        let mut operation = Operation {
            flush_requests: fewer(after.flush_requests, before.flush_requests),
            translations_lost: fewer(before.translations, after.translations),
            shadow_pages: fewer(after.shadow_pages, before.shadow_pages),
            ..Operation::default()
        };
        if let (Some(before), Some(after), Some(row)) = (seen_before, seen, seen_in_a_row) {
            self.fill_in(&mut operation, &after.since(&before));
            operation.roots_twice = row.since(&before).roots().map(|(_, twice)| twice);
        }
        Ok(Some(operation))
    }

    /// What the trace says about one operation.
    fn fill_in(&self, operation: &mut Operation, seen: &Seen) {
        operation.zap_all_fast = Some(seen.whole_vm.total());
        operation.roots = seen.roots().map(|(roots, _)| roots);
        operation.tasks = tasks(seen);
        let all = seen.entries.total();
        operation.sptes = Some(all);
        let by_caller = operation
            .tasks
            .iter()
            .filter(|task| task.name == self.caller.name);
        let (mut own, mut at_home) = (0_u64, true);
        for task in by_caller {
            own = own.saturating_add(task.sptes);
            at_home &= task.cpus.iter().all(|cpu| *cpu == self.caller.cpu as u64);
        }
        if all > 0 {
            operation.by_caller = Some(own as f64 / all as f64);
            operation.held = Some(own == all && at_home);
        }
    }

    fn seen(&self) -> anyhow::Result<Option<Seen>> {
        let seen = self.trace.map(Trace::seen).transpose()?;
        let dropped = seen.as_ref().map_or(0, Seen::dropped);
        ensure!(
            dropped == 0,
            "cannot count who zaps: the kernel had no room for {dropped} events; stop other \
             virtual machines meanwhile"
        );
        Ok(seen)
    }

    fn figures(&self) -> anyhow::Result<Figures> {
        let Some(stats) = self.stage.guest.vm_stats() else {
            return Ok(Figures::default());
        };
        let all = stats.snapshot().context("cannot read KVM's statistics")?;
        let sizes = ["pages_4k", "pages_2m", "pages_1g"].map(|name| all.get(name));
        let translations = sizes.into_iter().flatten();
        Ok(Figures {
            flush_requests: all.get("remote_tlb_flush_requests"),
            translations: all
                .get("pages_4k")
                .map(|_| translations.fold(0, u64::saturating_add)),
            shadow_pages: all.get("mmu_shadow_zapped"),
        })
    }
}

/// Who took entries away: one line for each task.
fn tasks(seen: &Seen) -> Vec<TaskShare> {
    let mut shares = BTreeMap::new();
    for (key, hits) in seen.entries.rows() {
        let Some(task) = &key.task else { continue };
        let share = shares.entry(task).or_insert_with(|| TaskShare {
            name: task.name.clone(),
            tid: Some(task.tid),
            cpus: Vec::new(),
            sptes: 0,
        });
        share.sptes = share.sptes.saturating_add(hits);
        share.cpus.extend(key.value("common_cpu"));
    }
    let mut shares: Vec<_> = shares.into_values().collect();
    for share in &mut shares {
        share.cpus.sort_unstable();
        share.cpus.dedup();
    }
    shares.sort_by_key(|share| std::cmp::Reverse(share.sptes));
    shares
}

/// Kernel threads that a KVM with zap workers keeps for each VM: its workqueue's rescuer. `None`
/// where the host's threads are hidden from us.
fn workers() -> Option<u64> {
    const NAMES: [&str; 2] = ["kvm", "kworker/R-kvm"];
    // The host's own second process is the parent of all kernel threads.
    if fs::read_to_string("/proc/2/comm").ok()?.trim() != "kthreadd" {
        return None;
    }
    let threads = fs::read_dir("/proc").ok()?.flatten().filter(|entry| {
        let of_kernel = || fs::read(entry.path().join("cmdline")).is_ok_and(|line| line.is_empty());
        fs::read_to_string(entry.path().join("comm"))
            .is_ok_and(|name| NAMES.contains(&name.trim()) && of_kernel())
    });
    Some(threads.count() as u64)
}
