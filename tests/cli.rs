//! Owns the tests of the command as a user meets it: exit codes, what is written where, Ctrl-C.
//! Never measures for the figures' sake.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests compute with small figures and fail where they cannot go on"
)]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

/// A bench that is over in about a second on a fast host.
const SHORT: [&str; 9] = [
    "bench",
    "--duration",
    "1",
    "--rounds",
    "1",
    "--working-set",
    "4M",
    "--blob",
    "64K",
];

fn vm_remap(arguments: &[&str]) -> Command {
    // The lab has it on the path, and not where it was built.
    let built = Path::new(env!("CARGO_BIN_EXE_vm-remap"));
    let mut command = Command::new(if built.exists() {
        built
    } else {
        Path::new("vm-remap")
    });
    command.args(arguments).stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    vm_remap(arguments).output().unwrap()
}

fn has_kvm(test: &str) -> bool {
    let opened = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm");
    if let Err(error) = &opened {
        let mut stderr = std::io::stderr();
        writeln!(stderr, "SKIP {test}: cannot open /dev/kvm: {error}").unwrap();
    }
    opened.is_ok()
}

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    keys.sort_unstable();
    keys
}

#[test]
fn wrong_options_end_with_2_and_say_what_is_wrong() {
    for (arguments, text) in [
        (&["bench", "--blob", "100"][..], "must be a multiple of 4K"),
        (&["bench", "--rate", "0"], "0 is not in 1..=100000"),
        (
            &["bench", "--vcpus", "1000"],
            "it must be a number from 1 to 64",
        ),
        (
            &["bench", "--ready", "--html", "x"],
            "the argument '--ready' cannot be used with '--html <FILE>'",
        ),
        (
            &["bench", "--scale", "--blob", "2M"],
            "the argument '--scale' cannot be used with '--blob <SIZE>'",
        ),
        (
            &["bench", "--trace", "x", "--jitter"],
            "the argument '--trace <FILE>' cannot be used with '--jitter'",
        ),
        (
            &["trace", "game", "--seconds", "1801"],
            "1801 is not in 1..=1800",
        ),
        (&["trace", "nobody"], "[possible values: game, dax, video]"),
        (&["bench", "--nonsense"], "unexpected argument '--nonsense'"),
        (&["doctor", "--jsn"], "a similar argument exists: '--json'"),
        (
            &["run", "--kernel", "x", "--memory", "backend=nonsense"],
            "backend",
        ),
        (&["run", "x", "--gpu"], "--gpu"),
        (
            &["run"],
            "the following required arguments were not provided",
        ),
        (&["nonsense"], "unrecognized subcommand 'nonsense'"),
    ] {
        let output = run(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(text), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn doctor_says_as_json_what_its_exit_code_says() {
    let output = run(&["doctor", "--json"]);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let expected = match found["verdict"].as_str().unwrap() {
        "usable" => 0,
        "warnings" => 1,
        "unusable" => 2,
        other => panic!("unknown verdict {other}"),
    };
    assert_eq!(output.status.code(), Some(expected));
    assert!(found["findings"].as_array().unwrap().len() > 5);
}

#[test]
fn completions_and_manual_page_are_written() {
    for arguments in [
        &["completions", "bash"][..],
        &["completions", "zsh"],
        &["man"],
    ] {
        let output = run(arguments);
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).contains("vm-remap"));
    }
}

#[test]
fn bench_writes_json_page_and_picture() {
    if !has_kvm("bench_writes_json_page_and_picture") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (json, html, svg) = (file("b.json"), file("b.html"), file("b.svg"));
    let mut arguments = SHORT.to_vec();
    arguments.extend(["--json", &json, "--html", &html, "--svg", &svg]);
    let output = run(&arguments);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(String::from_utf8_lossy(&output.stdout).contains("memslot-precise"));
    contract(&serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap());
    for page in [html, svg] {
        assert!(std::fs::metadata(Path::new(&page)).unwrap().len() > 1000);
    }
}

/// The promises of the JSON that hold on every host, whatever it measures.
fn contract(report: &Value) {
    assert_eq!(report["complete"], true);
    assert_eq!(
        keys(&report["backends"]),
        ["bare", "fixed", "memslot", "memslot-precise", "plain"]
    );
    for name in ["memslot", "plain", "fixed", "bare"] {
        for operation in ["map_us", "replace_us", "unmap_us"] {
            let quantiles = &report["backends"][name][operation];
            assert_eq!(
                keys(quantiles),
                ["max", "n", "p50", "p99"],
                "{name} {operation}"
            );
            assert!(quantiles["p50"].as_f64().unwrap() > 0.0);
            assert!(quantiles["n"].as_u64().unwrap() > 0);
        }
    }
    for name in ["plain", "fixed"] {
        let rival = &report["backends"][name];
        assert_eq!(rival["slot_calls_per_op"].as_f64(), Some(0.0));
        assert_eq!(rival["gap_exits"].as_u64(), Some(0), "{name}");
        assert_eq!(rival["gap_stale_reads"].as_u64(), Some(0), "{name}");
        assert!(rival["gap_replaces"].as_u64().unwrap() > 0);
        assert!(rival["work_kept"].as_f64().unwrap() > 0.0);
    }
    let memslot = &report["backends"]["memslot"];
    assert_eq!(memslot["slot_calls_per_op"].as_f64(), Some(1.0));
    assert_eq!(memslot["gap_stale_reads"].as_u64(), Some(0));
}

/// What one quick round of `bench` in that mode says, as JSON.
fn quick_report(mode: &str) -> Value {
    let arguments = [mode, "--quick", "--rounds", "1", "--json", "-"];
    let output = vm_remap(&["bench"]).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn ready_measures_every_rival_that_the_host_offers() {
    if !has_kvm("ready_measures_every_rival_that_the_host_offers") {
        return;
    }
    let report = quick_report("--ready");
    assert_eq!(
        keys(&report),
        ["aims", "backends", "complete", "host", "settings"]
    );
    assert_eq!(report["complete"], true);
    let backends = &report["backends"];
    let with_guest = [
        "fixed",
        "fixed-guest",
        "fixed-host-read",
        "fixed-host-write",
        "memslot",
        "plain",
    ];
    assert_eq!(keys(backends), with_guest);
    for name in with_guest.into_iter().filter(|name| *name != "fixed-guest") {
        for kind in ["memfd-warm", "memfd-cold"] {
            for len in ["65536", "2097152"] {
                for touch in ["read", "write"] {
                    let cell = &backends[name][kind][len][touch];
                    assert_eq!(keys(cell), ["faults", "ready_us", "warm_us"]);
                    assert_eq!(keys(&cell["ready_us"]), ["max", "n", "p50", "p99"]);
                    assert!(cell["ready_us"]["p50"].as_f64().unwrap() > 0.0);
                }
            }
        }
        assert!(backends[name]["memfd-warm"]["33554432"].is_null());
    }
}

#[test]
fn bench_that_is_interrupted_shows_what_it_has() {
    if !has_kvm("bench_that_is_interrupted_shows_what_it_has") {
        return;
    }
    let mut arguments = vec![
        "bench",
        "--duration",
        "600",
        "--rounds",
        "1000",
        "--json",
        "-",
    ];
    arguments.extend(["--working-set", "4M"]);
    let child = vm_remap(&arguments).stdout(Stdio::piped()).spawn().unwrap();
    // Long enough for the command to have set its signal handler; the run takes an hour.
    std::thread::sleep(Duration::from_secs(3));
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["complete"], false);
}

#[test]
fn bench_that_cannot_write_its_file_says_so() {
    if !has_kvm("bench_that_cannot_write_its_file_says_so") {
        return;
    }
    let mut arguments = SHORT.to_vec();
    arguments.extend(["--html", "/nonexistent/b.html"]);
    let output = run(&arguments);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("vm-remap: cannot write /nonexistent/b.html"),
        "{said}"
    );
}

#[test]
fn scale_measures_calls_memory_and_threads() {
    if !has_kvm("scale_measures_calls_memory_and_threads") {
        return;
    }
    let report = quick_report("--scale");
    assert_eq!(
        keys(&report),
        [
            "aims", "backends", "complete", "host", "limits", "refused", "settings", "threads"
        ]
    );
    assert_eq!(report["complete"], true);
    assert_eq!(keys(&report["backends"]), ["fixed", "memslot", "plain"]);
    for (name, backend) in report["backends"].as_object().unwrap() {
        for count in ["10", "1000"] {
            let calls = &backend["calls"][count];
            assert_eq!(keys(calls), ["lookup_us", "map_us", "unmap_us"], "{name}");
            assert_eq!(keys(&calls["map_us"]), ["max", "n", "p50", "p99"]);
            assert!(calls["unmap_us"]["p50"].as_f64().unwrap() > 0.0);
            assert_eq!(calls["lookup_us"].is_null(), name == "plain");
        }
    }
    for ground in ["one-window", "own-windows", "bare", "no-lock"] {
        let threads = &report["threads"][ground];
        assert_eq!(keys(threads), ["1", "2", "4"], "{ground}");
        assert_eq!(keys(&threads["4"]), ["calls_per_s", "gain", "n"]);
        assert!(threads["4"]["calls_per_s"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn traces_are_made_up_and_the_same_again() {
    for client in ["game", "dax", "video"] {
        let arguments = ["trace", client, "--seconds", "1", "--seed", "7"];
        let (once, again) = (run(&arguments), run(&arguments));
        assert!(once.status.success());
        assert_eq!(once.stdout, again.stdout, "{client}");
        let text = String::from_utf8(once.stdout).unwrap();
        assert!(text.starts_with("vm-remap-trace 1 "), "{text}");
        let words = format!("# made up by `vm-remap trace {client} --seconds 1 --seed 7`");
        assert!(text.contains(&words), "{text}");
    }
}

#[test]
fn a_trace_is_replayed_by_every_rival() {
    if !has_kvm("a_trace_is_replayed_by_every_rival") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.trace");
    let steps = "0 map 1 auto 64K own\n1000 map 2 2M 4K peer\n2000 replace 2 own\n3000 unmap 1\n";
    std::fs::write(&file, format!("vm-remap-trace 1 16M\n{steps}")).unwrap();
    let output = vm_remap(&["bench", "--quick", "--working-set", "4M", "--json", "-"])
        .arg("--trace")
        .arg(&file)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        keys(&report),
        ["aims", "backends", "complete", "host", "settings"]
    );
    assert_eq!(report["settings"]["operations"], 4);
    let names = ["fixed", "memslot", "memslot-precise", "plain"];
    assert_eq!(keys(&report["backends"]), names);
    for name in ["fixed", "memslot", "plain"] {
        let backend = &report["backends"][name];
        let figures = ["late_us", "map_us", "replace_us", "unmap_us", "work_kept"];
        assert_eq!(keys(backend), figures);
        let counts = ["map_us", "replace_us", "unmap_us", "late_us"]
            .map(|figure| backend[figure]["n"].as_u64().unwrap());
        assert_eq!(counts, [2, 1, 1, 4], "{name}");
        assert!(backend["work_kept"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn a_trace_that_cannot_be_used_is_refused_before_anything_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.trace");
    std::fs::write(&file, "vm-remap-trace 1 16M\n# nothing yet\n0 unmap 9\n").unwrap();
    let output = vm_remap(&["bench", "--trace"]).arg(&file).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let expected = "cannot use the trace: line 3: there is no mapping 9 to unmap";
    assert!(said.contains(expected), "{said}");
}

#[test]
fn jitter_is_measured_beside_every_rival_and_drawn() {
    let test = "jitter_is_measured_beside_every_rival_and_drawn";
    if !has_kvm(test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (html, svg) = (folder.path().join("j.html"), folder.path().join("j.svg"));
    let mut command = vm_remap(&["bench", "--jitter", "--quick", "--duration", "1"]);
    command.args(["--rounds", "1", "--working-set", "4M", "--json", "-"]);
    command.arg("--html").arg(&html).arg("--svg").arg(&svg);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if said.contains("cannot give a timer the real-time priority") {
        assert!(said.contains("CAP_SYS_NICE"), "{said}");
        let mut stderr = std::io::stderr();
        writeln!(stderr, "SKIP {test}: no right to real-time priorities").unwrap();
        return;
    }
    assert!(output.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let parts = ["aims", "backends", "complete", "host", "idle", "settings"];
    assert_eq!(keys(&report), parts);
    let names = ["fixed", "memslot", "memslot-precise", "plain"];
    assert_eq!(keys(&report["backends"]), names);
    assert_eq!(report["settings"]["priority"], "SCHED_FIFO 2");
    let figures = ["max_us", "missed", "n", "p50_us", "p999_us", "times_idle"];
    for name in ["fixed", "memslot", "plain"] {
        let wakeups = &report["backends"][name];
        assert_eq!(keys(wakeups), figures, "{name}");
        assert!(wakeups["n"].as_u64().unwrap() > 0);
        assert_eq!(keys(&wakeups["times_idle"]), ["max", "p50", "p999"]);
    }
    assert_eq!(keys(&report["idle"]), figures);
    for file in [html, svg] {
        assert!(std::fs::read_to_string(file).unwrap().contains("</svg>"));
    }
}

#[test]
fn batch_counts_the_flushes_of_both_ways() {
    if !has_kvm("batch_counts_the_flushes_of_both_ways") {
        return;
    }
    let report = quick_report("--batch");
    assert_eq!(
        keys(&report),
        ["aims", "complete", "files", "host", "settings"]
    );
    let files = ["many-files", "many-files-peer", "one-file", "one-file-peer"];
    assert_eq!(keys(&report["files"]), files);
    for files in files {
        for count in ["1", "16", "256"] {
            let all = &report["files"][files][count];
            assert_eq!(keys(all), ["map", "replace", "unmap"]);
            for cell in [&all["map"], &all["replace"], &all["unmap"]] {
                for way in [&cell["single"], &cell["batch"]] {
                    assert!(way["all_us"]["p50"].as_f64().unwrap() > 0.0);
                    assert!(way["cpu_us"]["p50"].as_f64().unwrap() > 0.0);
                }
                assert!(cell["share"].as_f64().unwrap() > 0.0);
            }
        }
    }
}
