//! Owns the micro-benchmarks of the layout: inserting, cutting and looking up among 10 to 30 000
//! mappings. Never makes a system call: what they take is the bookkeeping alone.
//!
//! `cargo bench -p vm-remap` runs them, `cargo bench -p vm-remap -- lookup` some.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    reason = "a benchmark computes with small figures, and ends where it cannot go on"
)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion};

use layout::{Layout, Mapping, Origin, Undo};
use range::{PAGE_SIZE, PageRange};

// The layout is the library's own affair: its files are compiled into the benchmark, with what
// they need of the library beside them.
#[path = "../src/layout/mod.rs"]
#[expect(dead_code, unreachable_pub, reason = "only a part of it is timed")]
mod layout;
#[path = "../src/range.rs"]
#[expect(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "the layout needs only a part, and its tests run elsewhere"
)]
#[expect(
    clippy::allow_attributes,
    reason = "that an expectation is not met cannot be expected"
)]
#[allow(
    unfulfilled_lint_expectations,
    reason = "what is public in the library is not public here, and clippy asks less of it"
)]
mod range;

mod error {
    pub(crate) use vm_remap::Error;
}

mod source {
    pub(crate) use vm_remap::Protection;

    pub(crate) mod descriptor {
        pub(crate) use vm_remap::DescriptorKind;
    }
}

const COUNTS: [u64; 5] = [10, 100, 1_000, 10_000, 30_000];
/// A mapping of three pages, and a hole of as many, again and again.
const STRIDE: u64 = 6;
const MAPPED: u64 = 3;
/// Changes that are timed together, before all of them are taken back.
const TOGETHER: usize = 64;
const SEED: u64 = 5;

fn pages(start: u64, count: u64) -> PageRange {
    PageRange::new(start * PAGE_SIZE, count * PAGE_SIZE).expect("whole pages")
}

fn mapping(range: PageRange) -> Mapping {
    Mapping {
        range,
        protection: source::Protection::ReadWrite,
        origin: Origin::Descriptor {
            kind: source::descriptor::DescriptorKind::Shmem,
            device: 1,
            inode: 2,
            offset: range.start(),
        },
        label: 0,
        huge: false,
        keep: None,
        stable: false,
    }
}

fn filled(count: u64) -> Layout {
    let mut layout = Layout::default();
    for index in 0..count {
        let range = pages(index * STRIDE, MAPPED);
        layout.set(range, Some(mapping(range)));
    }
    layout
}

/// Times `change` at places anywhere among the mappings, each place once before all is taken back.
fn change(count: u64, times: u64, mut change: impl FnMut(&mut Layout, u64) -> Undo) -> Duration {
    let mut layout = filled(count);
    let mut random = fastrand::Rng::with_seed(SEED);
    let mut places: Vec<u64> = (0..count).collect();
    let (mut spent, mut left) = (Duration::ZERO, times);
    while left > 0 {
        random.shuffle(&mut places);
        for some in places.chunks(TOGETHER) {
            let most = usize::try_from(left).unwrap_or(TOGETHER);
            let some = some.get(..most).unwrap_or(some);
            let mut undos = Vec::with_capacity(some.len());
            let begun = Instant::now();
            undos.extend(some.iter().map(|place| change(&mut layout, *place)));
            spent += begun.elapsed();
            while let Some(undo) = undos.pop() {
                layout.restore(undo);
            }
            left -= some.len() as u64;
        }
    }
    spent
}

fn inserts(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("insert");
    for count in COUNTS {
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter_custom(|times| {
                change(count, times, |layout, place| {
                    let range = pages(place * STRIDE + MAPPED + 1, 1);
                    layout.set(range, Some(mapping(range)))
                })
            });
        });
    }
    group.finish();
}

fn cuts(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("cut");
    for count in COUNTS {
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter_custom(|times| {
                change(count, times, |layout, place| {
                    layout.set(pages(place * STRIDE + 1, 1), None)
                })
            });
        });
    }
    group.finish();
}

fn lookups(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("lookup");
    for count in COUNTS {
        let layout = filled(count);
        let mut random = fastrand::Rng::with_seed(SEED);
        let offsets: Vec<u64> = (0..4096)
            .map(|_| (random.u64(0..count) * STRIDE + 1) * PAGE_SIZE)
            .collect();
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            let mut next = offsets.iter().cycle();
            bencher.iter(|| {
                next.next()
                    .map(|offset| layout.at(black_box(*offset)).is_some())
            });
        });
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default()
        .configure_from_args()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    inserts(&mut criterion);
    cuts(&mut criterion);
    lookups(&mut criterion);
    criterion.final_summary();
}
