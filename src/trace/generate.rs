//! Owns the choice of a client whose trace is made up, and what all of them share. The same recipe
//! always gives the same trace. Never reads a clock.

use super::{Offset, Operation, Step, Trace, dax, game, video};

/// A client of a window, known well enough to make its trace up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Client {
    /// Blobs of 64 KiB to 16 MiB that come and go, 50 to 500 times a second.
    Game,
    /// A virtio-fs DAX window: 2 MiB ranges, and the reclaim of those unused longest.
    Dax,
    /// A video pipeline that swaps the same 8 MiB buffers 60 times a second.
    Video,
}

/// What to make up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// Whose trace.
    pub client: Client,
    /// How long it is, in seconds.
    pub seconds: u32,
    /// Another one gives another trace of the same kind.
    pub seed: u64,
}

impl Recipe {
    /// The longest trace, in seconds: its steps fit into [`super::MAX_STEPS`].
    pub const MAX_SECONDS: u32 = 1800;

    /// The trace.
    #[must_use]
    pub fn trace(&self) -> Trace {
        let end = u64::from(self.seconds.min(Self::MAX_SECONDS)).saturating_mul(1_000_000);
        let random = fastrand::Rng::with_seed(self.seed);
        match self.client {
            Client::Game => game::trace(end, random),
            Client::Dax => dax::trace(end, random),
            Client::Video => video::trace(end, random),
        }
    }

    /// What the trace is modelled on, and how to make it again.
    #[must_use]
    pub fn about(&self) -> Vec<String> {
        let (name, model): (_, &[&str]) = match self.client {
            Client::Game => ("game", &game::MODEL),
            Client::Dax => ("dax", &dax::MODEL),
            Client::Video => ("video", &video::MODEL),
        };
        let again = format!(
            "made up by `vm-remap trace {name} --seconds {} --seed {}`",
            self.seconds, self.seed
        );
        let model = model.iter().map(|line| (*line).to_owned());
        std::iter::once(again).chain(model).collect()
    }
}

/// A time between two events that come `per_second` times a second: half to one and a half times
/// the even one, in whole microseconds, so that no host rounds differently.
pub(super) fn pause(random: &mut fastrand::Rng, per_second: u64) -> u64 {
    let even = 1_000_000_u64.checked_div(per_second).unwrap_or(0);
    random.u64(even / 2..=even.saturating_mul(3) / 2)
}

pub(super) fn map(at_us: u64, id: u64, offset: Offset, len: u64, kind: super::Kind) -> Step {
    let operation = Operation::Map {
        id,
        offset,
        len,
        kind,
    };
    Step { at_us, operation }
}

pub(super) fn unmap(at_us: u64, id: u64) -> Step {
    let operation = Operation::Unmap { id };
    Step { at_us, operation }
}

pub(super) fn replace(at_us: u64, id: u64, kind: super::Kind) -> Step {
    let operation = Operation::Replace { id, kind };
    Step { at_us, operation }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::place;

    const ALL: [Client; 3] = [Client::Game, Client::Dax, Client::Video];

    fn recipe(client: Client, seconds: u32, seed: u64) -> Recipe {
        Recipe {
            client,
            seconds,
            seed,
        }
    }

    fn text(recipe: Recipe) -> String {
        let mut text = Vec::new();
        recipe.trace().write(&recipe.about(), &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn a_recipe_gives_the_same_trace_again_and_another_seed_another() {
        for client in ALL {
            assert_eq!(text(recipe(client, 3, 1)), text(recipe(client, 3, 1)));
            assert_ne!(text(recipe(client, 3, 1)), text(recipe(client, 3, 2)));
        }
    }

    /// A newer random-number generator would change every trace that is known by its recipe.
    #[test]
    fn the_random_numbers_are_those_they_have_always_been() {
        let mut random = fastrand::Rng::with_seed(1);
        let found = [0; 3].map(|_| random.u64(0..1000));
        assert_eq!(found, [657, 534, 239]);
    }

    #[test]
    fn every_trace_can_be_read_and_finds_room() {
        for client in ALL {
            for seed in 0..5 {
                let text = text(recipe(client, 20, seed));
                let trace = Trace::read(text.as_bytes()).unwrap();
                assert_eq!(trace, recipe(client, 20, seed).trace());
                assert!(trace.duration_us() > 19_000_000, "{client:?}");
                let placed = place(&trace, |len| if len >= 2 << 20 { 2 << 20 } else { 4096 });
                assert_eq!(placed.unwrap().len(), trace.steps.len());
            }
        }
    }

    #[test]
    fn the_longest_trace_has_no_more_steps_than_can_be_read() {
        for client in ALL {
            let steps = recipe(client, Recipe::MAX_SECONDS, 1).trace().steps.len();
            assert!(steps <= crate::trace::MAX_STEPS, "{steps} steps");
        }
    }

    #[test]
    fn the_header_says_what_it_is_modelled_on() {
        for (client, word) in ALL.into_iter().zip(["virtio-gpu", "virtio-fs", "video"]) {
            let about = recipe(client, 9, 4).about().join("\n");
            assert!(about.contains("--seconds 9 --seed 4"), "{about}");
            assert!(about.contains(word), "{about}");
        }
    }
}
