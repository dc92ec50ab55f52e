//! Owns the proof that doctor's verdict on who zaps is right where it is known: in the lab.

use std::io::Write as _;
use std::path::Path;

use vm_remap::host::ZapMode;
use vm_remap_cli::doctor::{Verdict, examine};

#[test]
fn doctor_knows_who_zaps_on_each_kernel_of_the_lab() {
    let expected = match std::env::var("VM_REMAP_LAB").as_deref() {
        Ok("worker") => ZapMode::Worker,
        Ok("6.1" | "6.12" | "cured") => ZapMode::Synchronous,
        Ok(_) | Err(_) => {
            let name = "doctor_knows_who_zaps_on_each_kernel_of_the_lab";
            let mut stderr = std::io::stderr();
            return writeln!(stderr, "SKIP {name}: this is no kernel of the lab").unwrap();
        }
    };
    let examination = examine(Path::new("/"));
    assert_eq!(
        examination.zap.mode, expected,
        "{}",
        examination.zap.evidence
    );
    let verdict = match expected {
        ZapMode::Worker => Verdict::Warnings,
        _ => Verdict::Usable,
    };
    assert_eq!(examination.verdict, verdict, "{:?}", examination.findings);
}
