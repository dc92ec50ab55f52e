//! Owns made-up results for the tests of how they are shown. Never measured anywhere.

use super::result::{Caller, Jitter, Operation, Phase, TaskShare, WhoZaps};
use crate::report::{Host, KvmFacts};

/// As of a host with zap workers: two of them share the work.
pub(super) fn workers() -> WhoZaps {
    let share = |name: &str, cpus: &[u64], sptes| TaskShare {
        name: name.to_owned(),
        tid: Some(9),
        cpus: cpus.to_vec(),
        sptes,
    };
    let whole = Operation {
        tasks: vec![
            share("kworker/u4:0", &[0, 1], 6150),
            share("kworker/u4:1", &[1], 7),
        ],
        sptes: Some(6157),
        roots: Some(1),
        roots_twice: Some(0),
        zap_all_fast: Some(1),
        flush_requests: Some(0),
        translations_lost: Some(6150),
        shadow_pages: Some(0),
        by_caller: Some(0.0),
        held: Some(false),
    };
    WhoZaps {
        note: None,
        memslot_delete: whole.clone(),
        remap: Operation {
            tasks: vec![share("caller-1234567", &[1], 256)],
            sptes: Some(256),
            by_caller: Some(1.0),
            held: Some(true),
            ..Operation::default()
        },
        invalidate_roots: whole,
        workers_left: Some(1),
        jitter: Some(Jitter {
            period_us: 1000,
            cpu: 0,
            priority: "SCHED_FIFO 2".to_owned(),
            idle: Phase::default(),
            memslot_delete: Phase {
                wakeups: 2000,
                missed: 49,
                worst_us: 3646,
                operations: 46,
                zap_all_fast: Some(46),
            },
            fixed: Phase::default(),
        }),
        ..untraced()
    }
}

/// As of a host without a TDP MMU.
pub(super) fn untraced() -> WhoZaps {
    WhoZaps {
        host: Host::read(KvmFacts {
            module: "kvm_amd".to_owned(),
            tdp_mmu: Some(false),
            zap: "unknown".to_owned(),
            slot_zap_all_quirk: false,
            nr_memslots: 32764,
        }),
        caller: Caller {
            name: "caller-1234567".to_owned(),
            cpu: 1,
            priority: "SCHED_FIFO 1".to_owned(),
        },
        note: Some("no TDP MMU here".to_owned()),
        window_pages: 256,
        memslot_delete: Operation::default(),
        remap: Operation::default(),
        invalidate_roots: Operation::default(),
        workers_left: None,
        jitter: None,
    }
}
