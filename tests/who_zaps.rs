//! Owns the proof that `--who-zaps` tells kernels apart: who does KVM's zap work, by the kernel's
//! own count. Alone in its file, because the kernel counts for all tests that run meanwhile.

#![expect(
    clippy::unwrap_used,
    reason = "clippy takes a test's helpers for production code"
)]

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use vm_remap::host::{Host, TdpMmu};
use vm_remap_cli::guest::Guest;
use vm_remap_cli::whozaps::{self, Operation, WhoZaps};

const TEST: &str = "the_zap_work_is_where_this_kernel_does_it";

fn skip(reason: &str) {
    let mut stderr = std::io::stderr();
    writeln!(stderr, "SKIP {TEST}: {reason}").unwrap();
}

/// Why it can not be measured here, if it can not.
fn obstacle() -> Option<&'static str> {
    if Guest::open(&vm_remap_cli::guest::GuestConfig::default()).is_err() {
        return Some("no KVM that a guest can be made with");
    }
    if Host::default().tdp_mmu().state != TdpMmu::On {
        return Some("no TDP MMU");
    }
    if !rustix::process::geteuid().is_root() {
        return Some("not root");
    }
    let tracefs = [
        "/sys/kernel/tracing/events",
        "/sys/kernel/debug/tracing/events",
    ];
    if !tracefs
        .iter()
        .any(|place| std::fs::exists(place).unwrap_or(false))
    {
        return Some("no tracefs");
    }
    None
}

/// The caller did all of it, on its CPU.
fn by_the_caller(result: &WhoZaps, operation: &Operation) {
    assert_eq!(operation.by_caller, Some(1.0), "{operation:?}");
    assert_eq!(operation.held, Some(true), "{operation:?}");
    let [task] = operation.tasks.as_slice() else {
        panic!("{operation:?}");
    };
    assert_eq!(task.name, result.caller.name);
    assert_eq!(task.cpus, [result.caller.cpu as u64]);
}

/// Kernel workers did all of it.
fn by_workers(operation: &Operation) {
    assert_eq!(operation.by_caller, Some(0.0), "{operation:?}");
    assert_eq!(operation.held, Some(false), "{operation:?}");
    for task in &operation.tasks {
        assert!(task.name.starts_with("kworker/"), "{operation:?}");
    }
}

#[test]
fn the_zap_work_is_where_this_kernel_does_it() {
    if let Some(reason) = obstacle() {
        return skip(reason);
    }
    let result = whozaps::run(&Arc::new(AtomicBool::new(false)))
        .unwrap()
        .unwrap();
    let remap = &result.remap;
    by_the_caller(&result, remap);
    assert_eq!(remap.sptes, Some(result.window_pages), "{remap:?}");
    assert_eq!((remap.zap_all_fast, remap.roots), (Some(0), Some(0)));
    for whole in [&result.memslot_delete, &result.invalidate_roots] {
        assert_eq!(
            (whole.zap_all_fast, whole.roots),
            (Some(1), Some(1)),
            "{whole:?}"
        );
        assert!(whole.sptes > remap.sptes, "{whole:?}");
    }
    for (name, operation) in result.operations() {
        assert_eq!(operation.roots_twice, Some(0), "{name}");
    }
    let jitter = result.jitter.as_ref().unwrap();
    assert_eq!(jitter.fixed.zap_all_fast, Some(0), "{jitter:?}");
    assert_eq!(
        jitter.memslot_delete.zap_all_fast,
        Some(jitter.memslot_delete.operations)
    );
    let kernel = std::env::var("VM_REMAP_LAB").unwrap_or_default();
    match kernel.as_str() {
        "worker" => {
            by_workers(&result.memslot_delete);
            by_workers(&result.invalidate_roots);
            assert_eq!(result.workers_left, Some(1));
        }
        "6.1" | "6.12" | "cured" => {
            by_the_caller(&result, &result.memslot_delete);
            by_the_caller(&result, &result.invalidate_roots);
            assert_eq!(result.workers_left, Some(0));
        }
        _ => {}
    }
    nothing_is_left();
}

/// The tracing that was set up is gone.
fn nothing_is_left() {
    let top = std::path::Path::new("/sys/kernel/tracing");
    let own = |name: &str| name.contains(&std::process::id().to_string());
    let probes = std::fs::read_to_string(top.join("kprobe_events")).unwrap();
    assert!(!probes.lines().any(own), "{probes}");
    for instance in std::fs::read_dir(top.join("instances")).unwrap() {
        let name = instance.unwrap().file_name().into_string().unwrap();
        assert!(!own(&name), "{name}");
    }
}
