//! Owns the proof that what cannot run is refused at once, with a text that says what to do.

use std::fs;

use crate::support::{is_pvm, run, runs_guests, said, skip};

#[test]
fn a_host_that_emulates_kernel_code_is_refused_at_once() {
    if !is_pvm() {
        let name = "a_host_that_emulates_kernel_code_is_refused_at_once";
        return skip(name, "this host's KVM is not the PVM flavour");
    }
    let (code, text) = said(&run(&["--kernel", "/dev/null"], b""));
    assert_eq!(
        text,
        "vm-remap: cannot run a stock kernel on this host: its KVM is the PVM flavour (kvm_pvm), \
         which emulates guest kernel code instruction by instruction; use a host whose CPU has \
         VMX or SVM, or the lab (docs/run.md has the command)\n"
    );
    assert_eq!(code, Some(1));
}

fn refused(arguments: &[&str]) -> String {
    let (code, text) = said(&run(arguments, b""));
    assert_eq!(code, Some(1), "{text}");
    text
}

#[test]
fn files_that_make_no_guest_are_refused_by_name() {
    if !runs_guests("files_that_make_no_guest_are_refused_by_name") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text");
    fs::write(&text, "no kernel").unwrap();
    let text = text.to_str().unwrap();
    let missing = folder.path().join("missing");
    let missing = missing.to_str().unwrap();
    let folder = folder.path().to_str().unwrap();
    assert_eq!(
        refused(&["--kernel", missing]),
        format!(
            "vm-remap: cannot open the kernel {missing}: No such file or directory (os error 2)\n"
        )
    );
    assert_eq!(
        refused(&["--kernel", folder]),
        format!("vm-remap: cannot load the kernel {folder}: it is no regular file\n")
    );
    assert_eq!(
        refused(&["--kernel", text]),
        format!(
            "vm-remap: cannot use {text} as a kernel: it is neither a bzImage nor an ELF file\n"
        )
    );
}

#[test]
fn a_header_that_lies_is_refused_or_ends_the_guest_and_nothing_else() {
    if !runs_guests("a_header_that_lies_is_refused_or_ends_the_guest_and_nothing_else") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kernel");
    for seed in 0..40 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut bytes: Vec<u8> = (0..4096).map(|_| random.u8(..)).collect();
        if seed % 2 == 0 {
            bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
            // Program headers that can be read, of what they say that they are.
            bytes[32..40].copy_from_slice(&64_u64.to_le_bytes());
            bytes[54..58].copy_from_slice(&[56, 0, 4, 0]);
        } else {
            bytes[0x202..0x206].copy_from_slice(b"HdrS");
            bytes[0x206..0x208].copy_from_slice(&0x20c_u16.to_le_bytes());
        }
        fs::write(&path, bytes).unwrap();
        let (code, text) = said(&run(&["--kernel", path.to_str().unwrap()], b"\x01x"));
        assert!(matches!(code, Some(1 | 4 | 5 | 6)), "seed {seed}: {text}");
    }
}

#[test]
fn figures_that_make_no_guest_are_refused() {
    let arguments = ["--kernel", "/dev/null", "--memory", "size=8M"];
    let (code, text) = said(&run(&arguments, b""));
    assert_eq!(code, Some(2), "{text}");
    let why = "error: cannot use size=8M: it must be a multiple of 2M, from 16M to 512G\n";
    assert!(text.starts_with(why), "{text}");
}
