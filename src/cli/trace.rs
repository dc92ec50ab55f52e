//! Owns the arguments of `vm-remap trace`. Never decides what is in a trace.

use std::process::ExitCode;

use crate::trace::{Client, Recipe};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "The same client, length and seed always give the same trace. Replay it with:\n\n  \
                  vm-remap trace game | vm-remap bench --trace -"
)]
pub(super) struct Arguments {
    /// Whose trace
    client: Client,
    /// How long it is, in seconds
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=i64::from(Recipe::MAX_SECONDS)))]
    seconds: u32,
    /// Another number gives another trace of the same kind
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let recipe = Recipe {
        client: arguments.client,
        seconds: arguments.seconds,
        seed: arguments.seed,
    };
    let mut text = Vec::new();
    recipe.trace().write(&recipe.about(), &mut text)?;
    super::write(&text)?;
    Ok(ExitCode::SUCCESS)
}
