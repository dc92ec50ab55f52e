//! Owns the tests of the layout record: written, read, replayed, and refused when tampered with.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use proptest::prelude::*;
use vm_remap::BackendKind::Fixed;
use vm_remap::Protection::{ReadOnly, ReadWrite};
use vm_remap::{DescriptorKind, Error, LayoutRecord, MappingRecord, Origin, Source};

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
            Ok(Source::descriptor(fd.as_fd(), offset))
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

/// A window with every origin that needs no pool and no device, and what it is recorded as.
fn furnished() -> (Bench, [OwnedFd; 2], LayoutRecord) {
    let bench = open(Fixed);
    let files = [memfd(8, 10), sealed(8, 20)];
    let map = |range, source: Source<'_>, protection| {
        bench.window.map(range, &source, protection).unwrap();
    };
    map(pages(0, 8), source(&files[0]).label(0), ReadWrite);
    map(pages(20, 8), source(&files[1]).label(1), ReadOnly);
    map(pages(40, 2), Source::anonymous().label(2), ReadWrite);
    bench.window.unmap(pages(2, 3)).unwrap();
    let record = bench.window.record();
    (bench, files, record)
}

/// What a resolver does that goes by the label.
fn resolve<'fd>(files: &'fd [OwnedFd; 2], mapping: &MappingRecord) -> io::Result<Source<'fd>> {
    let missing = || io::Error::from(io::ErrorKind::NotFound);
    let label = usize::try_from(mapping.label).map_err(|_| missing())?;
    match mapping.origin {
        Origin::Descriptor { offset, .. } => {
            let file = files.get(label).ok_or_else(missing)?;
            Ok(Source::descriptor(file.as_fd(), offset))
        }
        _ => Ok(Source::anonymous()),
    }
}

#[test]
fn another_file_than_the_recorded_one_is_refused() {
    let (_old, files, record) = furnished();
    let [first, second] = &files;
    let swapped = [second.try_clone().unwrap(), first.try_clone().unwrap()];
    let new = open(Fixed);
    let error = new
        .window
        .replay(&record, |mapping| resolve(&swapped, mapping))
        .unwrap_err();
    assert!(
        matches!(error, Error::RecordedSource { .. }) && error.to_string().contains("inode"),
        "{error}"
    );
    assert_eq!(new.window.mappings().len(), 0);
    // Copies of the files are taken where the caller says that they are.
    new.window
        .replay_copies(&record, |mapping| resolve(&swapped, mapping))
        .unwrap();
    assert_eq!(seen(&new)[..3], [Some(20), Some(21), None]);
}

#[test]
fn another_kind_or_offset_than_the_recorded_one_is_refused_of_copies_too() {
    let (_old, files, record) = furnished();
    let new = open(Fixed);
    let replay = |resolve: &dyn Fn(&MappingRecord) -> io::Result<Source<'static>>| {
        let error = new.window.replay_copies(&record, resolve).unwrap_err();
        assert_eq!(new.window.mappings().len(), 0);
        error
    };
    let error = replay(&|_| Ok(Source::anonymous()));
    assert!(error.to_string().contains("memory without a descriptor"));
    let file = std::fs::File::open("/proc/self/status").unwrap();
    let error = new.window.replay_copies(&record, |mapping| {
        let Origin::Descriptor { offset, .. } = mapping.origin else {
            return resolve(&files, mapping);
        };
        Ok(Source::descriptor(file.as_fd(), offset))
    });
    assert!(matches!(error, Err(Error::RecordedSource { .. })));
    let error = new.window.replay_copies(&record, |mapping| {
        let advanced = |offset| Source::descriptor(files[0].as_fd(), offset + PAGE);
        match mapping.origin {
            Origin::Descriptor { offset, .. } => Ok(advanced(offset)),
            _ => resolve(&files, mapping),
        }
    });
    assert!(matches!(error, Err(Error::RecordedSource { .. })));
    assert_eq!(new.window.mappings().len(), 0);
}

#[test]
fn a_record_with_an_unknown_field_or_a_wrong_sum_does_not_parse() {
    let (_old, _files, record) = furnished();
    let text = serde_json::to_string(&record).unwrap();
    let parse = |text: &str| serde_json::from_str::<LayoutRecord>(text);
    assert_eq!(parse(&text).unwrap(), record);
    parse(&text.replacen('{', r#"{"extra":1,"#, 1)).unwrap_err();
    let longer = text.replacen("\"label\":1", "\"label\":3", 1);
    let error = parse(&longer).unwrap_err().to_string();
    assert!(
        error.contains("was changed since it was written"),
        "{error}"
    );
    let older = text.replacen("\"version\":2", "\"version\":1", 1);
    let error = parse(&older).unwrap_err().to_string();
    assert!(error.contains("it has version 1"), "{error}");
    // A record of the first version had no sum.
    let none = r#"{"version":1,"base":0,"window":4096,"mappings":[]}"#;
    parse(none).unwrap_err();
}

/// A figure near the true one, or any.
fn figure() -> impl Strategy<Value = (bool, u64)> {
    prop_oneof![
        (0..5_u64).prop_map(|n| (true, n * PAGE)),
        (0..3_u64).prop_map(|n| (true, n)),
        any::<u64>().prop_map(|n| (false, n)),
        Just((false, u64::MAX - PAGE + 1)),
    ]
}

/// Changes one figure of a record.
fn alter(record: &mut LayoutRecord, which: usize, field: usize, (near, by): (bool, u64)) {
    let change = |figure: &mut u64| {
        *figure = if near { figure.wrapping_add(by) } else { by };
    };
    match field {
        0 => change(&mut record.base),
        1 => change(&mut record.window),
        2 => record.version = by as u32,
        3 => record.mappings.swap(0, which),
        4 => {
            let copy = record.mappings.get(which).copied();
            record.mappings.extend(copy);
        }
        5 => {
            record.mappings.remove(which);
        }
        _ => {
            let entry = record.mappings.get_mut(which).unwrap();
            alter_mapping(entry, field, by, change);
        }
    }
}

fn alter_mapping(entry: &mut MappingRecord, field: usize, by: u64, change: impl Fn(&mut u64)) {
    match (field, &mut entry.origin) {
        (6, _) => change(&mut entry.offset),
        (7, _) => change(&mut entry.len),
        (8, _) => change(&mut entry.label),
        (9, _) => {
            entry.protection = match entry.protection {
                ReadOnly => ReadWrite,
                ReadWrite => ReadOnly,
            };
        }
        (10, Origin::Descriptor { device, .. }) => change(device),
        (11, Origin::Descriptor { inode, .. }) => change(inode),
        (12, Origin::Descriptor { offset, .. }) => change(offset),
        (13, Origin::Descriptor { kind, .. }) => {
            *kind = match by % 3 {
                0 => DescriptorKind::Hugetlb { page_size: by },
                1 => DescriptorKind::DmaBuf,
                _ => DescriptorKind::RegularFile,
            };
        }
        (14, origin) => *origin = Origin::Anonymous,
        (_, origin) => {
            *origin = Origin::HostMemory {
                address: by,
                in_place: true,
            };
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn an_altered_record_is_refused_or_is_what_the_window_becomes(
        (which, field, by) in (0..4_usize, 0..16_usize, figure()),
        copies in any::<bool>(),
    ) {
        let (_old, files, honest) = furnished();
        let mut record = honest.clone();
        alter(&mut record, which, field, by);
        // Written anew, its sum is right; with the old sum it is not read.
        let text = serde_json::to_value(&record).unwrap();
        let mut forged = text.clone();
        forged["sha256"] = serde_json::to_value(&honest).unwrap()["sha256"].clone();
        if let Ok(read) = serde_json::from_value::<LayoutRecord>(forged) {
            prop_assert_eq!(&read, &honest);
            prop_assert_eq!(&record, &honest);
        }
        if let Ok(read) = serde_json::from_value::<LayoutRecord>(text) {
            prop_assert_eq!(&read, &record);
        }
        let new = open(Fixed);
        let resolve = |mapping: &MappingRecord| resolve(&files, mapping);
        let replayed = if copies {
            new.window.replay_copies(&record, resolve)
        } else {
            new.window.replay(&record, resolve)
        };
        let became = new.window.record();
        let Err(error) = replayed else {
            // Memory without a descriptor becomes what the resolver has for it.
            let identity = |mapping: &MappingRecord| {
                let origin = match mapping.origin {
                    Origin::Descriptor { kind, offset, .. } => Some((kind, offset)),
                    _ => None,
                };
                (mapping.offset, mapping.len, mapping.protection, mapping.label, origin)
            };
            let recorded: Vec<_> = record.mappings.iter().map(identity).collect();
            let became: Vec<_> = became.mappings.iter().map(identity).collect();
            prop_assert_eq!(became, recorded);
            return Ok(());
        };
        prop_assert_eq!(error.state_after(), vm_remap::StateAfter::Unchanged);
        prop_assert_eq!(became.mappings.len(), 0);
        prop_assert!(seen(&new).iter().all(Option::is_none));
    }

    #[test]
    fn an_altered_text_is_refused_or_says_the_same(at in any::<usize>(), byte in any::<u8>()) {
        let (_old, _files, record) = furnished();
        let mut text = serde_json::to_vec(&record).unwrap();
        let at = at % text.len();
        text[at] = byte;
        if let Ok(read) = serde_json::from_slice::<LayoutRecord>(&text) {
            prop_assert_eq!(read, record);
        }
    }
}
