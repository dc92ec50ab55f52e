//! Owns the made-up trace of a video pipeline. Never decides what its buffers show.

use super::generate::{map, replace, unmap};
use super::{Kind, Offset, Trace};

pub(super) const MODEL: [&str; 4] = [
    "modelled on a video pipeline: 60 times a second the next of the same few 8 MiB buffers (an",
    "RGBA frame of 1920 by 1080) comes behind the place that is decoded into, and a little later",
    "behind the place that is shown; each is up to 0.3 ms late; the VMM owns the buffers.",
    "It is no recording of a pipeline.",
];

const BUFFER: u64 = 8 << 20;
/// Where the guest decodes to, and what it shows.
const DECODED: u64 = 0;
const SHOWN: u64 = 1;
const PER_SECOND: u64 = 60;
/// From the one swap of a frame to the other, in microseconds.
const LATER: u64 = 2_000;
const LATE: u64 = 300;

pub(super) fn trace(end: u64, mut random: fastrand::Rng) -> Trace {
    let place = |id: u64| {
        map(
            0,
            id,
            Offset::At(id.saturating_mul(BUFFER)),
            BUFFER,
            Kind::Own,
        )
    };
    let mut steps = vec![place(DECODED), place(SHOWN)];
    for frame in 1.. {
        let at = u64::saturating_mul(frame, 1_000_000) / PER_SECOND;
        if at.saturating_add(LATER).saturating_add(LATE) > end {
            break;
        }
        let late = random.u64(0..=LATE);
        steps.push(replace(at.saturating_add(late), DECODED, Kind::Own));
        let late = random.u64(0..=LATE).saturating_add(LATER);
        steps.push(replace(at.saturating_add(late), SHOWN, Kind::Own));
    }
    steps.extend([unmap(end, DECODED), unmap(end, SHOWN)]);
    Trace {
        window: 4 * BUFFER,
        steps,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Operation;

    #[test]
    fn both_places_are_swapped_sixty_times_a_second() {
        let trace = trace(10_000_000, fastrand::Rng::with_seed(1));
        let swaps = |place: u64| {
            let of_it = |operation: Operation| matches!(operation, Operation::Replace { id, .. } if id == place);
            trace
                .steps
                .iter()
                .filter(|step| of_it(step.operation))
                .count()
        };
        assert_eq!((swaps(DECODED), swaps(SHOWN)), (599, 599));
        assert_eq!(trace.steps.len(), 599 * 2 + 4);
    }
}
