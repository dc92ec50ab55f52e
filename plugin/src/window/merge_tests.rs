//! Owns the proof that what is joined is what a naive table, one entry a page, says it is. Never maps
//! anything.

use proptest::prelude::*;

use super::*;
use crate::range::PAGE_SIZE;
use crate::source::Protection;

const PAGES: u64 = 32;

fn pages(start: u64, count: u64) -> PageRange {
    PageRange::new(start * PAGE_SIZE, count * PAGE_SIZE).unwrap()
}

/// A change of some pages, with the file that it takes them from: 0 for an unmap. The file offset of
/// a page is the page's own, or a page further on.
#[derive(Clone, Copy, Debug)]
struct Change {
    range: PageRange,
    file: u64,
    skew: u64,
}

fn change() -> impl Strategy<Value = Change> {
    (0..PAGES, 1..=8_u64, 0..3_u64, 0..2_u64).prop_map(|(start, count, file, skew)| Change {
        range: pages(start, count.min(PAGES - start)),
        file,
        skew,
    })
}

/// What a change puts on a page.
fn content(change: Change, page: u64) -> (u64, u64) {
    match change.file {
        0 => (0, 0),
        file => (file, page + change.skew),
    }
}

fn joins(changes: &[Change], a: Part, b: Part) -> bool {
    let (first, second) = (changes[a.change], changes[b.change]);
    first.file == second.file && (first.file == 0 || first.skew == second.skew)
}

proptest! {
    #[test]
    fn joined_changes_leave_each_page_what_the_last_one_put_there(
        changes in proptest::collection::vec(change(), 1..24),
    ) {
        let mut model = vec![None; PAGES as usize];
        for change in &changes {
            for page in change.range.start() / PAGE_SIZE..change.range.end() / PAGE_SIZE {
                model[page as usize] = Some(content(*change, page));
            }
        }
        let parts = left_over(changes.iter().map(|change| change.range));
        let runs = join(parts, |a, b| joins(&changes, a, b));
        let mut made = vec![None; PAGES as usize];
        for run in &runs {
            // One mapping of the first part's file, from its offset on.
            let first = changes[run.parts[0].change];
            let mut end = run.range.start();
            for part in &run.parts {
                prop_assert_eq!(part.range.start(), end);
                prop_assert!(changes[part.change].range.covers(part.range));
                end = part.range.end();
            }
            prop_assert_eq!(end, run.range.end());
            for page in run.range.start() / PAGE_SIZE..run.range.end() / PAGE_SIZE {
                prop_assert_eq!(made[page as usize], None, "no run lies over another");
                made[page as usize] = Some(content(first, page));
            }
        }
        prop_assert_eq!(made, model);
        // As few as can be: neighbours that could be one are one.
        for pair in runs.windows(2) {
            let touch = pair[0].range.end() == pair[1].range.start();
            let (a, b) = (*pair[0].parts.last().unwrap(), pair[1].parts[0]);
            prop_assert!(!(touch && joins(&changes, a, b)));
        }
    }

    #[test]
    fn ranges_without_seams_have_the_same_pages(
        changes in proptest::collection::vec(change(), 0..24),
    ) {
        let ranges: Vec<PageRange> = changes.iter().map(|change| change.range).collect();
        let joined = without_seams(ranges.clone());
        for page in 0..PAGES {
            let has = |ranges: &[PageRange]| ranges.iter().any(|r| r.contains(page * PAGE_SIZE));
            prop_assert_eq!(has(&joined), has(&ranges));
        }
        prop_assert!(joined.windows(2).all(|pair| pair[0].end() < pair[1].start()));
    }
}

fn mapping(start: u64, inode: u64, offset: u64) -> Mapping {
    Mapping {
        range: pages(start, 2),
        protection: Protection::ReadWrite,
        origin: Origin::Descriptor {
            kind: DescriptorKind::Shmem,
            device: 1,
            inode,
            offset: offset * PAGE_SIZE,
        },
        label: start,
        huge: false,
        keep: None,
        stable: false,
    }
}

#[test]
fn mappings_continue_in_one_file_at_the_next_offset_only() {
    let first = mapping(4, 7, 10);
    assert!(
        continues(&first, &mapping(6, 7, 12)),
        "labels do not matter"
    );
    assert!(!continues(&first, &mapping(7, 7, 12)), "a hole between");
    assert!(!continues(&first, &mapping(6, 8, 12)), "another file");
    assert!(!continues(&first, &mapping(6, 7, 11)), "another offset");
    let read_only = Mapping {
        protection: Protection::ReadOnly,
        ..mapping(6, 7, 12)
    };
    assert!(!continues(&first, &read_only));
    let of_kind = |mut mapping: Mapping, wanted: DescriptorKind| {
        if let Origin::Descriptor { kind, .. } = &mut mapping.origin {
            *kind = wanted;
        }
        mapping
    };
    let regular = |mapping| of_kind(mapping, DescriptorKind::RegularFile);
    assert!(!continues(&regular(first), &regular(mapping(6, 7, 12))));
}
