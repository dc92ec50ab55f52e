//! Owns the proof that a trace is read as it was written, and that no text does harm. Never maps
//! anything.

use proptest::prelude::*;

use super::*;
use crate::trace::{Action, place};

fn read(text: &str) -> Result<Trace, TraceError> {
    Trace::read(text.as_bytes())
}

fn complaint(text: &str) -> String {
    read(text).unwrap_err().to_string()
}

#[test]
fn a_trace_is_read_with_comments_suffixes_and_hexadecimal() {
    let trace = read(
        "# recorded somewhere\n\nvm-remap-trace 1 1G\n0 map 7 auto 64K own\n\
         # in between\n  1500   map 8 0x200000 2M peer\r\n2000 replace 7 peer\n2000 unmap 8",
    )
    .unwrap();
    assert_eq!(trace.window, 1 << 30);
    assert_eq!(trace.duration_us(), 2000);
    let map = |id, offset, len, kind| Operation::Map {
        id,
        offset,
        len,
        kind,
    };
    let found: Vec<Operation> = trace.steps.iter().map(|step| step.operation).collect();
    assert_eq!(
        found,
        [
            map(7, Offset::Auto, 64 << 10, Kind::Own),
            map(8, Offset::At(2 << 20), 2 << 20, Kind::Peer),
            Operation::Replace {
                id: 7,
                kind: Kind::Peer
            },
            Operation::Unmap { id: 8 },
        ]
    );
}

#[test]
fn what_is_wrong_is_said_with_its_line_and_figures() {
    for (lines, expected) in [
        (
            "",
            "line 1: it is empty; the first line must be `vm-remap-trace 1 SIZE`",
        ),
        ("what", "line 1: it must be `vm-remap-trace 1 SIZE`"),
        (
            "vm-remap-trace 2 1G",
            "line 1: it has version \"2\"; 1 can be read",
        ),
        (
            "vm-remap-trace 1 0",
            "line 1: 0x0 bytes must be above 0 and at most 0x1000000000",
        ),
        (
            "vm-remap-trace 1",
            "line 1: the size of the window is missing",
        ),
    ] {
        assert_eq!(
            complaint(lines),
            format!("cannot use the trace: {expected}")
        );
    }
}

#[test]
fn a_wrong_operation_is_said_with_its_line_and_figures() {
    for (line, expected) in [
        ("0 map 1 auto 64K", "the kind is missing"),
        ("0 map 1 auto 64K own x", "\"x\" is one word too many"),
        (
            "0 map 1 auto 100 own",
            "0x64 bytes are no multiple of 0x1000",
        ),
        (
            "0 map 1 auto 1G own",
            "0x40000000 bytes must be above 0 and at most 0x10000000",
        ),
        (
            "0 map 1 1M 1M own",
            "0x100000 bytes at 0x100000 do not lie in the window of 0x100000",
        ),
        (
            "0 map 1 0xfffffffffffff000 4K own",
            "0x1000 bytes at 0xfffffffffffff000 do not lie",
        ),
        ("0 map +1 auto 4K own", "\"+1\" is no number below 2^64"),
        ("-5 unmap 1", "\"-5\" is no number below 2^64"),
        ("99999999999999999999 unmap 1", "is no number below 2^64"),
        (
            "3600000001 unmap 1",
            "3600000001 µs is later than 3600000000 µs",
        ),
        (
            "0 map 1 auto 18014398509481984K own",
            "is no number below 2^64",
        ),
        ("0 unmap 9", "there is no mapping 9 to unmap"),
        ("0 replace 9 own", "there is no mapping 9 to replace"),
        (
            "0 move 9",
            "\"move\" is no operation; there are map, replace, unmap",
        ),
        (
            "0 map 1 auto 4K gpu",
            "\"gpu\" is no kind of memory; there are own, peer",
        ),
    ] {
        let said = complaint(&format!("vm-remap-trace 1 1M\n{line}\n"));
        assert!(said.starts_with("cannot use the trace: line 2: "), "{said}");
        assert!(said.contains(expected), "{line}: {said}");
    }
}

#[test]
fn time_that_goes_back_and_numbers_in_use_are_refused() {
    let said = complaint("vm-remap-trace 1 1M\n5 map 1 0 4K own\n4 unmap 1\n");
    assert!(said.contains("line 3: 4 µs lies before 5 µs"), "{said}");
    let said = complaint("vm-remap-trace 1 1M\n5 map 1 0 4K own\n5 map 1 4K 4K own\n");
    assert!(
        said.contains("line 3: the mapping 1 is still there"),
        "{said}"
    );
}

#[test]
fn too_much_is_refused_before_it_is_kept() {
    let endless = io::BufReader::new(io::repeat(b'7'));
    let said = Trace::read(endless).unwrap_err().to_string();
    assert!(
        said.contains("line 1: it is longer than 256 bytes"),
        "{said}"
    );
    let mut many = String::from("vm-remap-trace 1 1G\n");
    for id in 0..=MAX_LIVE {
        many.push_str(&format!("0 map {id} auto 4K own\n"));
    }
    let said = complaint(&many);
    assert!(
        said.contains("line 30002: there are more than 30000 mappings"),
        "{said}"
    );
}

#[test]
fn bytes_that_are_no_text_are_refused() {
    let said = Trace::read(&b"vm-remap-trace 1 1M\n\xff\n"[..]).unwrap_err();
    assert_eq!(
        said.to_string(),
        "cannot use the trace: line 2: it is no UTF-8 text"
    );
}

/// Lines that are nearly right find more than noise does.
fn nearly_a_line() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        Just("map".to_owned()),
        Just("replace".to_owned()),
        Just("unmap".to_owned()),
        Just("auto".to_owned()),
        Just("own".to_owned()),
        (0..4_u64).prop_map(|n| n.to_string()),
        (0..64_u64).prop_map(|n| format!("{}", n << 12)),
        any::<u64>().prop_map(|n| format!("{n:#x}")),
        "\\PC{0,6}",
    ];
    let right = prop_oneof![
        (0..4_u64, 0..8_u64, 1..5_u64).prop_map(|(id, at, pages)| format!(
            "0 map {id} {} {} own",
            at << 12,
            pages << 12
        )),
        (0..4_u64).prop_map(|id| format!("0 map {id} auto 8K peer")),
        (0..4_u64).prop_map(|id| format!("0 unmap {id}")),
        (0..4_u64).prop_map(|id| format!("0 replace {id} own")),
    ];
    prop_oneof![
        3 => right,
        1 => proptest::collection::vec(word, 0..8).prop_map(|words| words.join(" ")),
    ]
}

proptest! {
    #[test]
    fn any_bytes_are_a_trace_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        drop(Trace::read(bytes.as_slice()));
        let mut begun = b"vm-remap-trace 1 1M\n".to_vec();
        begun.extend(bytes);
        drop(Trace::read(begun.as_slice()));
    }

    #[test]
    fn what_is_read_is_written_and_placed_without_overlap(
        lines in proptest::collection::vec(nearly_a_line(), 0..12),
    ) {
        let text = format!("vm-remap-trace 1 32K\n{}\n", lines.join("\n"));
        let Ok(trace) = read(&text) else { return Ok(()) };
        let mut written = Vec::new();
        trace.write(&["a comment".to_owned()], &mut written).unwrap();
        prop_assert_eq!(&Trace::read(written.as_slice()).unwrap(), &trace);
        if let Ok(placed) = place(&trace, |_| 4096) {
            prop_assert_eq!(placed.len(), trace.steps.len());
            let mut live: Vec<vm_remap::PageRange> = Vec::new();
            for step in placed {
                match step.action {
                    Action::Map(_) => {
                        prop_assert!(live.iter().all(|old| old.intersection(step.range).is_none()));
                        prop_assert!(step.range.end() <= trace.window);
                        live.push(step.range);
                    }
                    Action::Replace(_) => prop_assert!(live.contains(&step.range)),
                    Action::Unmap => live.retain(|old| *old != step.range),
                }
            }
        }
    }
}
