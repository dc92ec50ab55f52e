//! Owns the target of layout records from outside: any text, any figures. A record is refused and
//! nothing has changed, or it is mapped whole, and the window's own record says the same.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_remap::{
    BackendKind, DescriptorKind, GuestAddress, LayoutRecord, MappingRecord, Origin, PAGE_SIZE,
    PageRange, Protection, SlotNumbers, Source, StateAfter, Window, WindowOptions,
};

use crate::figures::Figure;
use crate::recorder::Recorder;

const LEN: u64 = 64 * PAGE_SIZE;
/// A longer list only takes longer.
const MOST_MAPPINGS: usize = 64;

#[derive(Arbitrary, Debug)]
struct Entry {
    offset: Figure,
    len: Figure,
    read_only: bool,
    origin: u8,
    place: Figure,
    label: u64,
}

#[derive(Arbitrary, Debug)]
struct Record {
    version: u8,
    base: Figure,
    window: Figure,
    /// Whether the mappings follow one another, so that more of them can be true.
    in_order: bool,
    mappings: Vec<Entry>,
}

/// Runs what the bytes say: a text where the first is a brace, else a record made of them.
pub fn run(data: &[u8]) {
    let record = if data.first() == Some(&b'{') {
        serde_json::from_slice(data).ok()
    } else {
        Record::arbitrary(&mut Unstructured::new(data))
            .ok()
            .map(Record::made)
    };
    let Some(record) = record else {
        return;
    };
    let text = serde_json::to_string(&record).unwrap();
    // What cannot be true is refused when it is read, and then by the window as well.
    let again = serde_json::from_str::<LayoutRecord>(&text).ok();
    let readable = again.is_some();
    assert!(again.is_none_or(|again| again == record));
    for backend in BackendKind::ALL {
        let replayed = replay(&record, backend);
        assert!(readable || !replayed, "{text}");
    }
}

impl Record {
    fn made(self) -> LayoutRecord {
        let mut end = 0_u64;
        let mappings = self.mappings.into_iter().take(MOST_MAPPINGS).map(|entry| {
            let mut made = entry.made();
            if self.in_order {
                made.offset = made.offset.wrapping_add(end);
                end = made.offset.wrapping_add(made.len);
            }
            made
        });
        LayoutRecord {
            version: u32::from(self.version % 4 / 3) + 1,
            base: self.base.bytes(),
            mappings: mappings.collect(),
            window: self.window.bytes(),
        }
    }
}

impl Entry {
    fn made(self) -> MappingRecord {
        let at = self.place.bytes();
        let origin = match self.origin % 4 {
            0 => Origin::Anonymous,
            1 => Origin::HostMemory {
                address: at,
                in_place: self.label.is_multiple_of(2),
            },
            kind => Origin::Descriptor {
                kind: match kind {
                    2 => DescriptorKind::Shmem,
                    _ => DescriptorKind::Hugetlb { page_size: at },
                },
                device: self.label,
                inode: at,
                offset: at,
            },
        };
        MappingRecord {
            offset: self.offset.bytes(),
            len: self.len.bytes(),
            protection: match self.read_only {
                true => Protection::ReadOnly,
                false => Protection::ReadWrite,
            },
            origin,
            label: self.label,
        }
    }
}

/// What can be compared of a record: everything but whose memory it is.
fn figures(record: &LayoutRecord) -> Vec<(u64, u64, Protection, u64)> {
    let figures = |one: &MappingRecord| (one.offset, one.len, one.protection, one.label);
    record.mappings.iter().map(figures).collect()
}

/// Whether the record was taken; what holds, either way.
fn replay(record: &LayoutRecord, backend: BackendKind) -> bool {
    let recorder = Arc::new(Recorder::default());
    let window = WindowOptions::new(GuestAddress(4 << 30), LEN)
        .backend(backend)
        .open(Arc::clone(&recorder) as _, SlotNumbers::new(8..80))
        .unwrap();
    let file = memfd_create("kept", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&file, LEN).unwrap();
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::SEAL).unwrap();
    let replayed = window.replay(record, |mapping| match mapping.origin {
        Origin::Anonymous => Ok(Source::anonymous()),
        Origin::Descriptor { offset, .. } => Ok(Source::descriptor(file.as_fd(), offset)),
        _ => Err(io::ErrorKind::NotFound.into()),
    });
    let taken = replayed.is_ok();
    match replayed {
        Ok(()) => {
            assert_eq!(figures(&window.record()), figures(record));
            again(&window, record);
        }
        Err(error) => {
            assert_eq!(error.state_after(), StateAfter::Unchanged, "{error}");
            assert!(window.mappings().is_empty(), "{error}");
            assert_eq!(window.counters().mapped_bytes, 0, "{error}");
        }
    }
    // It can still be used.
    window.unmap(PageRange::new(0, LEN).unwrap()).unwrap();
    let page = PageRange::new(0, PAGE_SIZE).unwrap();
    window
        .map(page, &Source::anonymous(), Protection::ReadWrite)
        .unwrap();
    window.close().unwrap();
    assert_eq!(recorder.registered(), 0, "a slot outlives its window");
    taken
}

/// A second replay is refused where there is something already.
fn again(window: &Window, record: &LayoutRecord) {
    let before = window.record();
    let second = window.replay(record, |_| Ok(Source::anonymous()));
    assert_eq!(second.is_err(), !before.mappings.is_empty());
    assert_eq!(window.record(), before);
}
