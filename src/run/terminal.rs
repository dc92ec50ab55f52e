//! Owns the terminal on standard input while a guest has it: raw, and as it was when this goes.
//! Never reads from it.

use std::io::IsTerminal as _;

use anyhow::{Context as _, Result};
use rustix::stdio::stdin;
use rustix::termios::{OptionalActions, OutputModes, Termios, tcgetattr, tcsetattr};

/// The terminal, in raw mode until this is dropped.
#[derive(Debug)]
pub(super) struct Raw {
    was: Termios,
}

impl Raw {
    /// Puts the terminal on standard input into raw mode; `None` where there is none.
    pub(super) fn enter() -> Result<Option<Self>> {
        if !std::io::stdin().is_terminal() {
            return Ok(None);
        }
        let was = tcgetattr(stdin()).context("cannot read the settings of the terminal")?;
        let mut raw = was.clone();
        raw.make_raw();
        // Messages of this process have no carriage returns; the guest's do not mind a second.
        raw.output_modes |= was.output_modes & OutputModes::OPOST;
        tcsetattr(stdin(), OptionalActions::Now, &raw)
            .context("cannot put the terminal into raw mode")?;
        Ok(Some(Self { was }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(stdin(), OptionalActions::Now, &self.was) {
            log::warn!("cannot restore the terminal ({error}); type `reset`");
        }
    }
}
