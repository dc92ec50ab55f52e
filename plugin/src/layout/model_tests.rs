//! Owns the proof that the layout is what a naive table, one entry a page, says it is.
//! Never maps anything.

use proptest::prelude::*;

use super::*;
use crate::range::PAGE_SIZE;

const PAGES: u64 = 32;

/// What the model keeps of a page: label and file offset of that very page.
type Page = Option<(u64, u64)>;

#[derive(Clone, Debug)]
struct Step {
    start: u64,
    pages: u64,
    mapping: Option<u64>,
    take_back: bool,
}

fn step() -> impl Strategy<Value = Step> {
    (
        0..PAGES,
        1..=PAGES,
        proptest::option::of(1..100_u64),
        any::<bool>(),
    )
        .prop_map(|(start, pages, mapping, take_back)| Step {
            start,
            pages: pages.min(PAGES - start),
            mapping,
            take_back,
        })
}

fn mapping(range: PageRange, label: u64) -> Mapping {
    let origin = if label.is_multiple_of(2) {
        Origin::HostMemory {
            address: label << 32,
            in_place: label.is_multiple_of(4),
        }
    } else {
        let kind = DescriptorKind::Shmem;
        Origin::Descriptor {
            kind,
            device: 1,
            inode: label,
            offset: label << 32,
        }
    };
    Mapping {
        range,
        protection: Protection::ReadWrite,
        origin,
        label,
        huge: false,
        keep: None,
        stable: false,
    }
}

fn position(origin: Origin) -> u64 {
    match origin {
        Origin::Descriptor { offset, .. } => offset,
        Origin::HostMemory { address, .. } => address,
        Origin::Anonymous => 0,
    }
}

fn agree(layout: &Layout, model: &[Page]) {
    for (page, expected) in model.iter().enumerate() {
        let offset = page as u64 * PAGE_SIZE;
        let found = layout.at(offset).map(|found| {
            let page = PageRange::new(offset, PAGE_SIZE).unwrap();
            let clipped = found.clipped(page).unwrap();
            (clipped.label, position(clipped.origin))
        });
        assert_eq!(found, *expected, "page {page}");
    }
    let mapped = model.iter().flatten().count() as u64 * PAGE_SIZE;
    assert_eq!(layout.mapped(), mapped);
    assert_eq!(
        layout
            .iter()
            .map(|mapping| mapping.range.len())
            .sum::<u64>(),
        mapped
    );
    assert!(
        layout
            .iter()
            .is_sorted_by(|a, b| a.range.end() <= b.range.start())
    );
    assert_eq!(
        layout.any_in_place(),
        layout.iter().any(|m| m.in_place().is_some())
    );
    assert_eq!(layout.iter().count(), layout.len());
}

proptest! {
    #[test]
    fn layout_agrees_with_the_per_page_model(steps in proptest::collection::vec(step(), 1..40)) {
        let mut layout = Layout::default();
        let mut model: Vec<Page> = vec![None; PAGES as usize];
        for step in steps {
            let range = PageRange::new(step.start * PAGE_SIZE, step.pages * PAGE_SIZE).unwrap();
            let overlapped: Vec<_> = layout.overlapping(range).map(|m| m.range).collect();
            let expected = layout.iter().filter(|m| m.range.intersection(range).is_some());
            prop_assert_eq!(overlapped, expected.map(|m| m.range).collect::<Vec<_>>());
            let undo = layout.set(range, step.mapping.map(|label| mapping(range, label)));
            prop_assert_eq!(undo.range(), range);
            if step.take_back {
                layout.restore(undo);
            } else {
                for page in 0..step.pages {
                    model[(step.start + page) as usize] =
                        step.mapping.map(|label| (label, (label << 32) + page * PAGE_SIZE));
                }
            }
            agree(&layout, &model);
        }
    }

    #[test]
    fn several_sets_are_taken_back_in_the_opposite_order(
        kept in proptest::collection::vec(step(), 1..10),
        taken_back in proptest::collection::vec(step(), 1..10),
    ) {
        let mut layout = Layout::default();
        let apply = |layout: &mut Layout, step: &Step| {
            let range = PageRange::new(step.start * PAGE_SIZE, step.pages * PAGE_SIZE).unwrap();
            layout.set(range, step.mapping.map(|label| mapping(range, label)))
        };
        for step in &kept {
            apply(&mut layout, step);
        }
        let picture = |layout: &Layout| -> Vec<_> {
            layout.iter().map(|m| (m.range, m.label, position(m.origin))).collect()
        };
        let before = picture(&layout);
        let mut undos: Vec<Undo> = taken_back.iter().map(|step| apply(&mut layout, step)).collect();
        while let Some(undo) = undos.pop() {
            layout.restore(undo);
        }
        prop_assert_eq!(picture(&layout), before);
    }
}
