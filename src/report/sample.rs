//! Owns made-up reports for tests. Never measured anywhere.

use super::{Backends, Fixed, Host, Latencies, Quantiles, Report, Rival, Settings};

fn quantiles(p50: f64, p99: f64) -> Option<Quantiles> {
    Some(Quantiles {
        p50,
        p99,
        max: p99 * 3.0,
        n: 4200,
    })
}

fn latencies(map: (f64, f64), replace: (f64, f64), unmap: (f64, f64)) -> Latencies {
    Latencies {
        map_us: quantiles(map.0, map.1),
        replace_us: quantiles(replace.0, replace.1),
        unmap_us: quantiles(unmap.0, unmap.1),
    }
}

fn rival(latencies: Latencies, work: f64, faults: f64, exits: u64, calls: f64) -> Rival {
    Rival {
        latencies,
        work_kept: Some(work),
        collateral_faults_per_op: Some(faults),
        gap_exits: Some(exits),
        gap_replaces: Some(2000),
        gap_stale_reads: Some(0),
        slot_calls_per_op: Some(calls),
    }
}

/// A whole run with every rival.
pub(super) fn report() -> Report {
    let backends = Backends {
        memslot: Some(rival(
            latencies((43.1, 88.4), (262.0, 1410.7), (214.3, 540.2)),
            0.012,
            4186.3,
            1967,
            1.0,
        )),
        memslot_precise: Some(rival(
            latencies((45.2, 71.0), (109.9, 320.5), (63.4, 148.9)),
            0.941,
            0.0,
            1411,
            1.0,
        )),
        plain: rival(
            latencies((18.6, 31.2), (21.9, 40.3), (8.1, 15.5)),
            0.984,
            0.0,
            0,
            0.0,
        ),
        fixed: Fixed {
            rival: rival(
                latencies((18.4, 30.9), (19.7, 37.7), (7.8, 14.2)),
                0.987,
                0.0,
                0,
                0.0,
            ),
            peer: latencies((45.3, 71.0), (28.8, 51.4), (7.9, 14.6)),
        },
        bare: latencies((13.9, 22.7), (15.2, 25.0), (6.2, 9.9)),
    };
    Report {
        host: host(),
        settings: settings(),
        backends,
        complete: true,
    }
}

/// A run that ended while the first rival was still being measured.
pub(super) fn interrupted() -> Report {
    Report {
        host: host(),
        settings: settings(),
        backends: Backends {
            memslot: Some(Rival {
                latencies: Latencies {
                    map_us: quantiles(43.1, 88.4),
                    ..Latencies::default()
                },
                ..Rival::default()
            }),
            ..Backends::default()
        },
        complete: false,
    }
}

fn host() -> Host {
    Host {
        machine: "Example CPU <9000> & Co".into(),
        cpus: 8,
        memory_bytes: 32 << 30,
        kernel: "6.18.0-example".into(),
        kvm_module: "kvm_example".into(),
        tdp_mmu: Some(false),
        page_sizes: vec![4 << 10, 2 << 20, 1 << 30],
        zap: "the task that deletes the memslot".into(),
        slot_zap_all_quirk: true,
        nr_memslots: 32764,
    }
}

fn settings() -> Settings {
    Settings {
        blob_bytes: 2 << 20,
        rate_per_s: 700,
        working_set_bytes: 64 << 20,
        vcpus: 1,
        duration_s: 6.0,
        rounds: 6,
        quick: false,
    }
}
