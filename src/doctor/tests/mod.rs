//! Owns the tests of whole examinations: fake hosts, and the host the tests
//! run on.

mod fake;

use std::io::Write as _;

use serde_json::Value;
use tempfile::TempDir;
use vm_remap::host::ZapMode;

use self::fake::{FACTS_6_1, FACTS_6_12, FakeHost, SYNC, WORKER, check, found};
use super::kvm::KvmFacts;
use super::*;

#[test]
fn synchronous_host_is_usable() {
    let examination = FakeHost::new(SYNC).with(FACTS_6_12);
    check(&examination);
    assert_eq!(examination.verdict, Verdict::Usable);
    assert_eq!(examination.zap.mode, ZapMode::Synchronous);
    let not_ok: Vec<_> = examination
        .findings
        .iter()
        .filter(|finding| finding.status != Status::Ok)
        .collect();
    assert!(not_ok.is_empty(), "{not_ok:?}");
    assert_eq!(
        found(&examination, "precise-zap").value,
        "offered (quirks 0x7ff)"
    );
    assert_eq!(found(&examination, "kvm-module").value, "kvm_amd, loaded");
    assert_eq!(
        found(&examination, "hugetlb-2mib").value,
        "8 pages of 2 MiB, 3 available, may grow by 0"
    );
    assert_eq!(
        found(&examination, "map-count").value,
        "65530, 4 held: room for 32763 mappings"
    );
}

#[test]
fn worker_host_is_usable_with_warnings() {
    let examination = FakeHost::new(WORKER).with(FACTS_6_1);
    check(&examination);
    assert_eq!(examination.verdict, Verdict::Warnings);
    assert_eq!(examination.verdict.exit_code(), 1);
    let finding = found(&examination, "who-zaps");
    assert_eq!(finding.value, "a kernel worker");
    assert_eq!(finding.status, Status::Warning);
    assert!(finding.meaning.contains("tdp_mmu_zap_root_work"));
    let json: Value = serde_json::from_str(&examination.to_json().unwrap()).unwrap();
    assert_eq!(json["zap"]["mode"], "worker");
    assert_eq!(
        json["zap"]["evidence"],
        "module kvm has tdp_mmu_zap_root_work"
    );
}

#[test]
fn worker_is_seen_by_a_user_whom_kvm_refuses() {
    let examination = FakeHost::new(WORKER).refused(libc::EACCES, 0o660, 104);
    check(&examination);
    assert_eq!(found(&examination, "who-zaps").value, "a kernel worker");
    assert_eq!(examination.verdict, Verdict::Unusable);
}

#[test]
fn host_like_6_1_is_usable_and_lacks_the_quirk() {
    let examination = FakeHost::new(SYNC).with(FACTS_6_1);
    check(&examination);
    assert_eq!(examination.verdict, Verdict::Usable);
    let finding = found(&examination, "precise-zap");
    assert_eq!(finding.value, "not offered (quirks 0x7f)");
    assert_eq!(finding.status, Status::Note);
    assert_eq!(found(&examination, "pre-fault").status, Status::Note);
    assert_eq!(found(&examination, "fault-info").value, "0");
}

#[test]
fn host_without_tdp_mmu_zaps_in_the_caller_despite_the_worker() {
    let host = FakeHost::new(WORKER);
    host.put("sys/module/kvm/parameters/tdp_mmu", "N\n");
    let examination = host.with(FACTS_6_1);
    check(&examination);
    assert_eq!(examination.verdict, Verdict::Usable);
    assert_eq!(found(&examination, "who-zaps").value, "the calling task");
    assert_eq!(found(&examination, "tdp-mmu").value, "off");
}

#[test]
fn host_without_sync_mmu_is_not_usable() {
    let facts = KvmFacts {
        sync_mmu: 0,
        ..FACTS_6_12
    };
    let examination = FakeHost::new(SYNC).with(facts);
    check(&examination);
    assert_eq!(found(&examination, "sync-mmu").status, Status::Bad);
    assert_eq!(examination.verdict.exit_code(), 2);
    let table = examination.to_table(Style {
        width: 100,
        colour: false,
    });
    assert!(table.ends_with("This host is not usable: 1 in the way.\n"));
}

#[test]
fn failing_capabilities_are_bad_or_absent_never_offered() {
    let facts = KvmFacts {
        user_memory: -1,
        sync_mmu: -1,
        memslots: -1,
        quirks: -1,
        memory_fault_info: -1,
        pre_fault_memory: -1,
        ..FACTS_6_12
    };
    let examination = FakeHost::new(SYNC).with(facts);
    check(&examination);
    assert_eq!(found(&examination, "user-memory").status, Status::Bad);
    assert_eq!(found(&examination, "precise-zap").status, Status::Note);
    assert_eq!(found(&examination, "memslots").status, Status::Warning);
}

#[test]
fn missing_device_names_the_module_to_load() {
    let host = FakeHost::new("0 T startup_64\n");
    host.remove("sys/module/kvm");
    host.remove("sys/module/kvm_amd");
    let examination = host.examine();
    check(&examination);
    assert_eq!(examination.verdict.exit_code(), 2);
    let finding = found(&examination, "kvm-device");
    assert_eq!(finding.status, Status::Bad);
    assert!(finding.value.contains("No such file"), "{}", finding.value);
    assert!(finding.action.contains("modprobe kvm_amd"));
    assert!(examination.finding("sync-mmu").is_none());
    assert_eq!(found(&examination, "who-zaps").value, "unknown");
    assert_eq!(found(&examination, "kvm-module").value, "none found");
}

#[test]
fn missing_device_in_a_guest_points_to_nested_virtualization() {
    let host = FakeHost::new("");
    host.put("proc/cpuinfo", "flags : fpu hypervisor\n");
    // Part of the kernel image, and of no use to this CPU.
    host.remove("sys/module/kvm_amd");
    host.put("sys/module/kvm_intel/parameters/ept", "Y\n");
    let examination = host.examine();
    check(&examination);
    assert!(
        found(&examination, "kvm-device")
            .action
            .contains("nested virtualization")
    );
    assert_eq!(found(&examination, "kvm-module").value, "none found");
}

#[test]
fn missing_device_on_a_bare_machine_points_to_the_firmware() {
    let host = FakeHost::new("");
    host.put("proc/cpuinfo", "flags : fpu\n");
    let examination = host.examine();
    check(&examination);
    assert!(
        found(&examination, "kvm-device")
            .action
            .contains("in the firmware")
    );
}

#[test]
fn missing_file_of_a_registered_device_points_to_the_container() {
    let host = FakeHost::new(SYNC);
    host.put("sys/class/misc/kvm/dev", "10:232\n");
    let examination = host.examine();
    check(&examination);
    assert!(
        found(&examination, "kvm-device")
            .action
            .contains("--device /dev/kvm")
    );
}

#[test]
fn refused_device_says_which_permission_is_missing() {
    let host = FakeHost::new(SYNC);
    for (errno, mode, gid, words) in [
        (libc::EACCES, 0o660, 104, "User 1000 is not in group kvm"),
        (libc::EACCES, 0o600, 0, "chmod 660 /dev/kvm"),
        (libc::EACCES, 0o660, 0, "which is root's"),
        (libc::EACCES, 0o660, 27, "in the right group"),
        (libc::EACCES, 0o660, 55, "not in group with number 55"),
        (libc::EPERM, 0o666, 104, "device list"),
        (libc::ENODEV, 0o660, 104, "modprobe kvm_amd"),
        (libc::EMFILE, 0o660, 104, "ulimit -n"),
        (libc::EIO, 0o660, 104, "dmesg"),
    ] {
        let examination = host.refused(errno, mode, gid);
        check(&examination);
        let finding = found(&examination, "kvm-device");
        assert_eq!(finding.status, Status::Bad);
        assert!(finding.value.starts_with(&format!("mode {mode:04o}")));
        assert!(finding.action.contains(words), "{}", finding.action);
    }
}

#[test]
fn file_that_is_no_device_is_not_usable() {
    let host = FakeHost::new(SYNC);
    host.put("dev/kvm", "not a device");
    let examination = host.examine();
    check(&examination);
    assert!(
        found(&examination, "kvm-device")
            .value
            .starts_with("not a device")
    );
    assert_eq!(found(&examination, "kvm-api").status, Status::Bad);
    assert!(examination.finding("sync-mmu").is_none());
    assert_eq!(examination.verdict, Verdict::Unusable);
}

#[test]
fn refused_vm_is_not_usable() {
    for errno in [libc::EBUSY, libc::ENOMEM, libc::EIO] {
        let facts = KvmFacts {
            vm_error: Some(errno),
            ..FACTS_6_12
        };
        let examination = FakeHost::new(SYNC).with(facts);
        check(&examination);
        assert_eq!(found(&examination, "kvm-vm").status, Status::Bad);
    }
}

#[test]
fn empty_root_gets_a_full_examination() {
    let dir = TempDir::new().unwrap();
    let examination = examine(dir.path());
    check(&examination);
    assert_eq!(examination.verdict, Verdict::Unusable);
    assert_eq!(found(&examination, "kernel").value, "unknown");
    assert_eq!(found(&examination, "hugetlb").value, "not available");
}

#[test]
fn tight_limits_are_told() {
    let host = FakeHost::new(SYNC);
    host.put("proc/sys/vm/max_map_count", "1000\n");
    host.put(
        "proc/self/limits",
        "Max open files 64 1024 files\nMax locked memory 65536 65536 bytes\n",
    );
    host.put("proc/sys/vm/unprivileged_userfaultfd", "0\n");
    host.put("dev/vfio/vfio", "");
    host.put("sys/fs/cgroup/vm.slice/memory.max", "1073741824\n");
    host.put("sys/fs/cgroup/vm.slice/one/memory.max", "max\n");
    let examination = host.with(FACTS_6_12);
    check(&examination);
    assert_eq!(examination.verdict, Verdict::Warnings);
    assert_eq!(found(&examination, "map-count").status, Status::Warning);
    assert_eq!(found(&examination, "open-files").status, Status::Warning);
    assert_eq!(found(&examination, "open-files").value, "64 (up to 1024)");
    assert_eq!(found(&examination, "locked-memory").value, "64.00 KiB");
    assert_eq!(found(&examination, "locked-memory").status, Status::Note);
    assert_eq!(found(&examination, "userfaultfd").status, Status::Note);
    assert_eq!(found(&examination, "cgroup-memory").value, "1.00 GiB");
}

#[test]
fn memory_limit_of_version_1_groups_is_found() {
    let host = FakeHost::new(SYNC);
    let dir = "sys/fs/cgroup/memory";
    host.put("proc/self/cgroup", "5:cpu,memory:/a/b\n0::/\n");
    host.put(&format!("{dir}/a/memory.limit_in_bytes"), "4096\n");
    host.put(
        &format!("{dir}/memory.limit_in_bytes"),
        "9223372036854771712\n",
    );
    let examination = host.with(FACTS_6_12);
    assert_eq!(found(&examination, "cgroup-memory").value, "4.00 KiB");
}

#[test]
fn huge_page_switch_of_the_size_wins_over_the_general_one() {
    let host = FakeHost::new(SYNC);
    let thp = "sys/kernel/mm/transparent_hugepage/hugepages-2048kB";
    host.put(&format!("{thp}/enabled"), "always inherit madvise [never]");
    host.put(&format!("{thp}/shmem_enabled"), "always [inherit] never");
    let examination = host.with(FACTS_6_12);
    assert_eq!(found(&examination, "thp").value, "never");
    assert_eq!(found(&examination, "thp").status, Status::Note);
    assert_eq!(found(&examination, "thp-shmem").value, "advise");
}

#[test]
fn table_has_colour_only_when_asked() {
    let examination = FakeHost::new(SYNC).with(FACTS_6_1);
    let width = 100;
    let plain = examination.to_table(Style {
        width,
        colour: false,
    });
    assert!(!plain.contains('\u{1b}'));
    // The table's library honours NO_COLOR by itself, too.
    if std::env::var_os("NO_COLOR").is_none() {
        let coloured = examination.to_table(Style {
            width,
            colour: true,
        });
        assert!(coloured.contains('\u{1b}'));
    }
}

#[test]
fn this_host_is_examined() {
    let examination = examine(Path::new("/"));
    check(&examination);
    if examination.finding("sync-mmu").is_none() {
        let why = &found(&examination, "kvm-device").value;
        writeln!(std::io::stderr(), "SKIP this_host_is_examined: {why}").unwrap();
        return;
    }
    assert_eq!(found(&examination, "kvm-api").value, "12");
    assert_eq!(found(&examination, "kvm-vm").status, Status::Ok);
    assert_eq!(found(&examination, "sync-mmu").status, Status::Ok);
}
