//! Owns the tests of the layout record: written, read, replayed, and refused when tampered with.

use std::io;

use vm_remap::BackendKind::Fixed;
use vm_remap::Protection::{ReadOnly, ReadWrite};
use vm_remap::{Error, LayoutRecord, Origin, Source};

use crate::support::*;

#[test]
fn a_record_replays_into_a_new_window() {
    let (a, b) = (memfd(8, 10), sealed(8, 20));
    let old = open(Fixed);
    old.window
        .map(pages(0, 8), &source(&a).label(1), ReadWrite)
        .unwrap();
    old.window
        .map(pages(20, 8), &source(&b).label(2), ReadOnly)
        .unwrap();
    old.window.unmap(pages(2, 3)).unwrap();
    let text = serde_json::to_string(&old.window.record()).unwrap();

    let record: LayoutRecord = serde_json::from_str(&text).unwrap();
    let new = open(Fixed);
    new.window
        .replay(&record, |mapping| {
            let Origin::Descriptor { offset, .. } = mapping.origin else {
                return Err(io::ErrorKind::Unsupported.into());
            };
            let fd = if mapping.label == 1 { &a } else { &b };
            Ok(Source::descriptor(std::os::fd::AsFd::as_fd(fd), offset))
        })
        .unwrap();
    assert_eq!(seen(&new), seen(&old));
    assert_eq!(new.window.record(), old.window.record());
}

#[test]
fn a_record_goes_into_an_empty_window_only() {
    let bench = open(Fixed);
    bench
        .window
        .map(pages(0, 1), &Source::anonymous(), ReadWrite)
        .unwrap();
    let error = bench
        .window
        .replay(&bench.window.record(), |_| Ok(Source::anonymous()))
        .unwrap_err();
    assert!(matches!(error, Error::NotEmpty { mappings: 1 }), "{error}");
}

#[test]
fn a_resolver_that_fails_leaves_the_window_empty() {
    let old = open(Fixed);
    old.window
        .map(pages(0, 1), &Source::anonymous(), ReadWrite)
        .unwrap();
    old.window
        .map(pages(4, 1), &Source::anonymous(), ReadWrite)
        .unwrap();
    let new = open(Fixed);
    let error = new
        .window
        .replay(&old.window.record(), |mapping| match mapping.offset {
            0 => Ok(Source::anonymous()),
            _ => Err(io::Error::from_raw_os_error(2)),
        })
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot replay the record: no source for the mapping at 0x4000..0x5000"
    );
    assert_eq!(error.errno(), 2);
    assert_eq!(new.window.counters().mappings, 0);
}

#[test]
fn a_record_with_an_unknown_field_does_not_parse() {
    let text = r#"{"version":1,"base":0,"window":4096,"mappings":[],"extra":1}"#;
    serde_json::from_str::<LayoutRecord>(text).unwrap_err();
}
