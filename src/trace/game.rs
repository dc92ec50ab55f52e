//! Owns the made-up trace of a game: blobs that come and go. Never decides where they lie.

use super::generate::{map, pause, unmap};
use super::{Kind, Offset, Step, Trace};

pub(super) const MODEL: [&str; 5] = [
    "modelled on a game whose driver keeps textures and buffers in virtio-gpu blobs:",
    "each second is a scene with 50 to 500 allocations and frees and 32 to 192 blobs to live,",
    "sizes from 64 KiB to 16 MiB (each power of two as likely), any blob as likely to be freed,",
    "at most 768 MiB at once; the blobs are files of another process, the one that renders.",
    "It is no recording of a game.",
];

const WINDOW: u64 = 2 << 30;
/// A large page each is lost to alignment at the most, so that there is always room.
const MOST_BYTES: u64 = 768 << 20;
const SCENE: u64 = 1_000_000;
const PAGE: u64 = 4096;

/// A blob that lives.
struct Blob {
    id: u64,
    len: u64,
}

pub(super) fn trace(end: u64, mut random: fastrand::Rng) -> Trace {
    let mut steps = Vec::new();
    let mut live: Vec<Blob> = Vec::new();
    let (mut bytes, mut next_id) = (0_u64, 0_u64);
    let (mut rate, mut wanted) = (0, 0);
    let (mut at, mut scene_end) = (0_u64, 0_u64);
    while at < end {
        if at >= scene_end {
            rate = random.u64(50..=500);
            wanted = random.usize(32..=192);
            scene_end = scene_end.saturating_add(SCENE);
        }
        let len = size(&mut random);
        let full = bytes.saturating_add(len) > MOST_BYTES;
        // Around the number that the scene wants, allocations and frees are as likely.
        let allocate =
            live.is_empty() || (!full && random.usize(0..wanted.saturating_mul(2)) >= live.len());
        steps.push(if allocate {
            live.push(Blob { id: next_id, len });
            bytes = bytes.saturating_add(len);
            map(at, next_id, Offset::Auto, len, Kind::Peer)
        } else {
            let blob = live.swap_remove(random.usize(0..live.len()));
            bytes = bytes.saturating_sub(blob.len);
            unmap(at, blob.id)
        });
        next_id = next_id.saturating_add(u64::from(allocate));
        at = at.saturating_add(pause(&mut random, rate));
    }
    finish(&mut steps, live, end);
    Trace {
        window: WINDOW,
        steps,
    }
}

/// 64 KiB to 16 MiB in whole pages, each power of two as likely.
fn size(random: &mut fastrand::Rng) -> u64 {
    let power = 1_u64 << random.u32(16..24);
    let size = random.u64(power..=power.saturating_mul(2));
    size.checked_next_multiple_of(PAGE).unwrap_or(power)
}

fn finish(steps: &mut Vec<Step>, live: Vec<Blob>, end: u64) {
    steps.extend(live.into_iter().map(|blob| unmap(end, blob.id)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Operation;

    #[test]
    fn blobs_and_rates_are_those_of_the_model() {
        let trace = trace(30_000_000, fastrand::Rng::with_seed(3));
        let (mut smallest, mut largest) = (u64::MAX, 0);
        for step in &trace.steps {
            if let Operation::Map { len, .. } = step.operation {
                assert!((64 << 10..=16 << 20).contains(&len));
                (smallest, largest) = (smallest.min(len), largest.max(len));
            }
        }
        assert!(smallest < 128 << 10 && largest > 8 << 20);
        for second in 0..30 {
            let of_it = |step: &&Step| step.at_us / 1_000_000 == second;
            let steps = trace.steps.iter().filter(of_it).count();
            assert!((40..=520).contains(&steps), "{steps} in second {second}");
        }
    }
}
