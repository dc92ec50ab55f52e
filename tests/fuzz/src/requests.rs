//! Owns the target of a hostile peer: any figures, any descriptor, files that change under the
//! window. Every answer is an error that has changed nothing, or a mapping that is as asked for.

use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use vm_remap::{
    BackendKind, Batch, DescriptorPolicy, Error, GuestAddress, PAGE_SIZE, PageRange, Prefault,
    Protection, SlotNumbers, Source, StateAfter, Window, WindowOptions,
};

use crate::eyes::{is_mapped, peek};
use crate::figures::Figure;
use crate::files::{Files, Kind};
use crate::recorder::Recorder;

const PAGES: u64 = 32;
const LEN: u64 = PAGES * PAGE_SIZE;
const BASE: GuestAddress = GuestAddress(4 << 30);
const MOST_REQUESTS: usize = 40;

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Verb {
    Map,
    Replace,
    Unmap,
}

/// One message, as it comes off a wire.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Request {
    verb: Verb,
    offset: Figure,
    len: Figure,
    kind: Kind,
    fd_offset: Figure,
    read_only: bool,
    prefault: u8,
    /// Whether the strict policy judges the descriptor.
    strict: bool,
    collapse: bool,
}

#[derive(Arbitrary, Clone, Debug)]
enum Act {
    One(Request),
    Batch(Vec<Request>),
    /// The peer changes the size of a file that may be mapped.
    Resize(Kind, u8),
    /// The guest moves the window.
    Relocate(Figure),
}

/// A window that nobody would ask for.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Odd {
    base: Figure,
    len: Figure,
    segment: Figure,
    scratch: Option<Figure>,
}

/// What can be seen of a window.
#[derive(Debug, PartialEq, Eq)]
struct Sight {
    books: Vec<(PageRange, u64)>,
    words: Vec<Option<u64>>,
    base: GuestAddress,
}

/// Runs what the bytes say.
pub fn run(data: &[u8]) {
    let mut data = Unstructured::new(data);
    let (Ok(memslot), Ok(odd)) = (bool::arbitrary(&mut data), Odd::arbitrary(&mut data)) else {
        return;
    };
    let backend = BackendKind::ALL[usize::from(memslot)];
    open_oddly(backend, odd);
    let recorder = Arc::new(Recorder::default());
    let window = WindowOptions::new(BASE, LEN)
        .segment_size(LEN / 4)
        .backend(backend)
        .open(Arc::clone(&recorder) as _, SlotNumbers::new(8..24))
        .unwrap();
    let arena = arena(&window);
    let files = Files::new();
    let mut count = 0;
    while let Ok(act) = Act::arbitrary(&mut data)
        && !data.is_empty()
        && count < MOST_REQUESTS
    {
        count += 1;
        step(&window, &files, arena, &act);
        let live = recorder.live();
        let base = window.base().0;
        let inside = |address: u64, len: u64| address >= base && address + len <= base + LEN;
        assert!(
            live.iter()
                .all(|slot| inside(slot.guest_address().0, slot.len())),
            "{act:?}"
        );
    }
    window.close().unwrap();
    assert_eq!(recorder.registered(), 0, "a slot outlives its window");
}

fn open_oddly(backend: BackendKind, odd: Odd) {
    let mut options = WindowOptions::new(GuestAddress(odd.base.bytes()), odd.len.bytes())
        .segment_size(odd.segment.bytes())
        .backend(backend);
    if let Some(page) = odd.scratch {
        options = options.scratch_page(GuestAddress(page.bytes()));
    }
    let recorder = Arc::new(Recorder::default());
    let Ok(window) = options.open(recorder, SlotNumbers::new(8..12)) else {
        return;
    };
    let end = window.len() - PAGE_SIZE;
    for offset in [0, end] {
        let page = PageRange::new(offset, PAGE_SIZE).unwrap();
        let mapped = window.map(page, &Source::anonymous(), Protection::ReadOnly);
        assert!(mapped.is_ok() || window.len() == PAGE_SIZE, "{mapped:?}");
    }
    window.close().unwrap();
}

fn arena(window: &Window) -> u64 {
    let probe = PageRange::new(0, PAGE_SIZE).unwrap();
    window
        .map(probe, &Source::anonymous(), Protection::ReadOnly)
        .unwrap();
    let arena = window.lookup(BASE).unwrap().host_address;
    window.unmap(probe).unwrap();
    arena
}

fn sight(window: &Window, arena: u64) -> Sight {
    let mappings = window.mappings();
    let books = mappings.iter().map(|one| (one.range(), one.label()));
    Sight {
        books: books.collect(),
        words: (0..PAGES)
            .map(|page| peek(arena + page * PAGE_SIZE))
            .collect(),
        base: window.base(),
    }
}

/// One act, and that it has done what it says or nothing.
fn step(window: &Window, files: &Files, arena: u64, act: &Act) {
    let before = sight(window, arena);
    let result = match act {
        Act::One(request) => one(window, files, request),
        Act::Batch(requests) => batch(window, files, requests),
        Act::Resize(kind, pages) => {
            files.resize(*kind, u64::from(*pages) * PAGE_SIZE);
            return;
        }
        Act::Relocate(to) => window.relocate(GuestAddress(to.bytes())),
    };
    let after = sight(window, arena);
    if let Err(error) = &result {
        assert!(is_mapped(arena, LEN), "{act:?}: a gap");
        assert_eq!(
            error.state_after(),
            StateAfter::Unchanged,
            "{act:?}: {error}"
        );
        assert!(error.errno() > 0, "{act:?}: {error}");
        assert_eq!(after, before, "{act:?}: {error}");
    }
    let total: u64 = after.books.iter().map(|(range, _)| range.len()).sum();
    assert_eq!(window.counters().mapped_bytes, total, "{act:?}");
    let sorted = after
        .books
        .windows(2)
        .all(|pair| pair[0].0.end() <= pair[1].0.start());
    let inside = after.books.iter().all(|(range, _)| range.end() <= LEN);
    assert!(sorted && inside, "{act:?}: {:?}", after.books);
    let mapped = |page: u64| {
        after
            .books
            .iter()
            .any(|(range, _)| range.contains(page * PAGE_SIZE))
    };
    for (page, word) in (0..).zip(&after.words) {
        assert!(
            word.is_none() || mapped(page),
            "{act:?}: memory in the hole {page}"
        );
    }
    match (&result, act) {
        (Ok(()), Act::One(request)) => as_asked(window, request),
        (Ok(()), Act::Batch(requests)) => {
            let let_in = requests.iter().find(|one| one.is_let_in_too_far());
            assert!(let_in.is_none(), "a policy lets {let_in:?} in");
        }
        _ => {}
    }
}

/// What was answered with success is there.
fn as_asked(window: &Window, request: &Request) {
    assert!(!request.is_let_in_too_far(), "a policy lets {request:?} in");
    let (offset, len) = (request.offset.bytes(), request.len.bytes());
    let found = window.lookup(GuestAddress(window.base().0 + offset));
    if matches!(request.verb, Verb::Unmap) {
        assert!(found.is_none(), "{request:?}");
        return;
    }
    let found = found.unwrap().mapping;
    assert_eq!(found.range(), PageRange::new(offset, len).unwrap());
    assert_eq!(found.label(), request.kind as u64);
    assert_eq!(found.protection().is_writable(), !request.read_only);
}

impl Request {
    fn source<'fd>(&self, files: &'fd Files) -> Source<'fd> {
        let prefault = match self.prefault % 4 {
            0 => Prefault::HostRead,
            1 => Prefault::HostWrite,
            2 => Prefault::Guest,
            _ => Prefault::None,
        };
        let policy = match self.strict {
            true => DescriptorPolicy::peer(),
            false => DescriptorPolicy::own(),
        };
        let source = Source::descriptor(files.descriptor(self.kind), self.fd_offset.bytes());
        let source = source.label(self.kind as u64).prefault(prefault);
        source.policy(policy).collapse(self.collapse)
    }

    /// Whether the strict policy must have refused it.
    fn is_let_in_too_far(&self) -> bool {
        let sealed = matches!(self.kind, Kind::SealedAgainstShrinking);
        self.strict && !sealed && !matches!(self.verb, Verb::Unmap)
    }

    fn protection(&self) -> Protection {
        match self.read_only {
            true => Protection::ReadOnly,
            false => Protection::ReadWrite,
        }
    }
}

fn one(window: &Window, files: &Files, request: &Request) -> Result<(), Error> {
    let range = PageRange::new(request.offset.bytes(), request.len.bytes())?;
    let source = request.source(files);
    match request.verb {
        Verb::Map => window.map(range, &source, request.protection()),
        Verb::Replace => window.replace(range, &source, request.protection()),
        Verb::Unmap => window.unmap(range),
    }
}

fn batch(window: &Window, files: &Files, requests: &[Request]) -> Result<(), Error> {
    let mut batch = Batch::new();
    for request in requests {
        let range = PageRange::new(request.offset.bytes(), request.len.bytes())?;
        let source = request.source(files);
        batch = match request.verb {
            Verb::Map => batch.map(range, &source, request.protection()),
            Verb::Replace => batch.replace(range, &source, request.protection()),
            Verb::Unmap => batch.unmap(range),
        };
    }
    window.commit(&batch)
}
