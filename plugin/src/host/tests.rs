//! Owns the tests of `host`: symbol tables and trees of fake hosts.

use super::*;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

const SYNC: &str = "\
0000000000000000 T startup_64
0000000000000000 t tdp_mmu_zap_root\t[kvm]
0000000000000000 T kvm_tdp_mmu_zap_invalidated_roots\t[kvm]
0000000000000000 T kvm_tdp_mmu_zap_all\t[kvm]
";

fn symbols(text: &str) -> ZapReport {
    ZapReport::from_symbols(text.as_bytes())
}

fn put(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn host_with(files: &[(&str, &str)]) -> (TempDir, Host) {
    let dir = TempDir::new().unwrap();
    for (path, text) in files {
        put(dir.path(), path, text);
    }
    let host = Host::below(dir.path());
    (dir, host)
}

#[test]
fn symbols_with_the_worker_mean_worker() {
    let text = format!("{SYNC}0000000000000000 t tdp_mmu_zap_root_work\t[kvm]\n");
    let report = symbols(&text);
    assert_eq!(report.mode, ZapMode::Worker);
    assert_eq!(report.evidence, "module kvm has tdp_mmu_zap_root_work");
}

#[test]
fn symbols_without_the_worker_mean_synchronous() {
    let report = symbols(SYNC);
    assert_eq!(report.mode, ZapMode::Synchronous);
    assert_eq!(
        report.evidence,
        "module kvm has kvm_tdp_mmu_zap_invalidated_roots and no tdp_mmu_zap_root_work"
    );
}

#[test]
fn symbols_of_a_built_in_kvm_name_the_kernel_image() {
    let report = symbols("ffffffff81000000 T kvm_tdp_mmu_zap_invalidated_roots\n");
    assert!(report.evidence.starts_with("the kernel image has"));
}

#[test]
fn symbols_with_a_compiler_suffix_are_recognised() {
    let report = symbols("0 t tdp_mmu_zap_root_work.llvm.123456 [kvm]\n");
    assert_eq!(report.mode, ZapMode::Worker);
}

#[test]
fn symbols_that_only_resemble_the_worker_are_not_it() {
    let text =
        format!("{SYNC}0 t __pfx_tdp_mmu_zap_root_work [kvm]\n0 t tdp_mmu_zap_root_worker\n");
    assert_eq!(symbols(&text).mode, ZapMode::Synchronous);
}

#[test]
fn symbols_of_a_kernel_without_kvm_mean_unknown() {
    let report = symbols("0 T startup_64\nrubbish\n\n0 T\n");
    assert_eq!(report.mode, ZapMode::Unknown);
    assert!(report.evidence.contains("KVM may not be loaded"));
}

#[test]
fn symbols_of_an_early_tdp_mmu_mean_unknown() {
    let report = symbols("0 T kvm_tdp_mmu_zap_all [kvm]\n");
    assert_eq!(report.mode, ZapMode::Unknown);
    assert!(report.evidence.contains("but neither"));
}

#[test]
fn symbols_that_are_not_utf8_do_no_harm() {
    let mut text = b"0 t \xff\xfe_tdp_mmu\n".to_vec();
    text.extend_from_slice(SYNC.as_bytes());
    let report = ZapReport::from_symbols(text.as_slice());
    assert_eq!(report.mode, ZapMode::Synchronous);
}

#[test]
fn symbols_that_cannot_be_read_mean_unknown() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("worn out"))
        }
    }
    let report = ZapReport::from_symbols(BufReader::new(Broken));
    assert_eq!(report.mode, ZapMode::Unknown);
    assert_eq!(
        report.evidence,
        "cannot read the kernel's symbols: worn out"
    );
}

#[test]
fn host_without_tdp_mmu_is_synchronous_even_with_the_worker() {
    let (_dir, host) = host_with(&[
        ("sys/module/kvm/parameters/tdp_mmu", "N\n"),
        ("proc/kallsyms", "0 t tdp_mmu_zap_root_work [kvm]\n"),
    ]);
    let report = host.zap_report();
    assert_eq!(report.mode, ZapMode::Synchronous);
    assert_eq!(
        report.evidence,
        "parameter tdp_mmu of kvm is off: no TDP roots, the caller zaps shadow pages itself"
    );
}

#[test]
fn host_with_nested_paging_off_has_no_tdp_mmu() {
    let (_dir, host) = host_with(&[
        ("sys/module/kvm/parameters/tdp_mmu", "Y\n"),
        ("sys/module/kvm_amd/parameters/npt", "0\n"),
    ]);
    assert_eq!(host.tdp_mmu().state, TdpMmu::Off);
    assert_eq!(host.tdp_mmu().evidence, "parameter npt of kvm_amd is off");
}

#[test]
fn host_without_the_parameter_is_judged_by_its_symbols() {
    let (_dir, host) = host_with(&[("proc/kallsyms", SYNC)]);
    assert_eq!(host.tdp_mmu().state, TdpMmu::Unknown);
    assert_eq!(host.zap_report().mode, ZapMode::Synchronous);
}

#[test]
fn host_without_symbols_is_unknown() {
    let (_dir, host) = host_with(&[("sys/module/kvm/parameters/tdp_mmu", "Y\n")]);
    let report = host.zap_report();
    assert_eq!(report.mode, ZapMode::Unknown);
    assert!(
        report
            .evidence
            .starts_with("cannot open /proc/kallsyms: No such file")
    );
}

#[test]
fn map_count_that_is_no_number_is_an_error() {
    let (_dir, host) = host_with(&[("proc/sys/vm/max_map_count", "many\n")]);
    let err = host.max_map_count().unwrap_err();
    assert_eq!(err.kind(), io::ErrorKind::InvalidData);
    assert!(err.to_string().contains("which says \"many\""));
}

#[test]
fn this_host_answers() {
    assert!(max_map_count().unwrap() > mapped_areas().unwrap());
    assert!(mapped_areas().unwrap() > 4);
    assert_eq!(ZapReport::of_this_host(), &ZapMode::detect());
    assert!(!ZapReport::of_this_host().evidence.is_empty());
}
