//! Owns the single step that an instruction makes while pages stand in for what it writes to, from its
//! begin to its end. Never decides what stands in.

use super::exit::After;
use super::report::Report;
use super::tally::count;
use super::vcpu::{FaultedVcpu, Registers, StepEnd};
use super::vcpu_faults::VcpuFaults;
use crate::window::touch::Obstacle;

/// How often one instruction can fault anew, while no window changes, before it is given up: it
/// touches at most a few pages, and each fault deals with all that are known.
const ROUNDS: u32 = 16;

/// A step that has begun.
pub(super) struct Step<V: FaultedVcpu> {
    stepping: V::Stepping,
    end: StepEnd,
    from: Registers,
    repeats: bool,
    /// Whether a repeating instruction has done a piece since its last fault.
    moved_on: bool,
    rounds: u32,
    /// The resolver's number of changes in the last round.
    changes: u64,
}

impl<V: FaultedVcpu> VcpuFaults<V> {
    /// Whether a step has begun that has not ended.
    pub(super) fn steps(&self) -> bool {
        self.step.is_some()
    }

    /// Whether a run that ended like this was a step.
    pub(super) fn is_step_end(&self, how: StepEnd) -> bool {
        self.step.as_ref().is_some_and(|step| step.end == how)
    }

    /// Before a fault is dealt with: gives up the pages that no step needs, and a step whose
    /// instruction is not the one that faults: a handler of the guest's has taken its place.
    pub(super) fn drop_what_is_over(
        &mut self,
        vcpu: &mut V,
        now: &Registers,
    ) -> Result<(), Report> {
        let elsewhere = |step: &Step<V>| step.from.rip != now.rip;
        if self.step.as_ref().is_some_and(elsewhere) {
            return self.finish(vcpu);
        }
        let goes_on = |step: &mut Step<V>| !std::mem::take(&mut step.moved_on);
        if !self.step.as_mut().is_some_and(goes_on) {
            // Pages of an access before, or of a piece before: what is still needed comes again.
            self.give_up_pages();
        }
        Ok(())
    }

    /// Makes the next run a single step.
    pub(super) fn step(&mut self, vcpu: &mut V, from: Registers, repeats: bool) -> After {
        let changes = self.resolver.changes();
        if let Some(step) = &mut self.step {
            // What stood in has had to go where a window has changed, so it is touched again.
            if std::mem::replace(&mut step.changes, changes) != changes {
                step.rounds = 0;
            }
            step.rounds = step.rounds.saturating_add(1);
            if step.rounds > ROUNDS {
                return self.stop(vcpu, Some(&from), None, Obstacle::Unknown);
            }
            return After::RunAgain;
        }
        match vcpu.begin_step() {
            Ok((stepping, end)) => {
                count(&self.resolver.tally.steps);
                self.step = Some(Step {
                    stepping,
                    end,
                    from,
                    repeats,
                    moved_on: false,
                    rounds: 0,
                    changes,
                });
                After::RunAgain
            }
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                self.stop(vcpu, Some(&from), None, Obstacle::Substitute { errno })
            }
        }
    }

    /// A run ended as steps end.
    pub(super) fn stepped(&mut self, vcpu: &mut V, how: StepEnd) -> After {
        if !self.is_step_end(how) {
            return self.not_ours(vcpu);
        }
        let Some(step) = &mut self.step else {
            return self.not_ours(vcpu);
        };
        if !step.repeats && how == StepEnd::Debug {
            return match self.finish(vcpu) {
                Ok(()) => After::RunAgain,
                Err(report) => After::Stop(report),
            };
        }
        let moved = vcpu.registers().ok().filter(|now| *now != step.from);
        match moved {
            // A repeating instruction is not over: its next piece most likely lies beside this one.
            Some(now) if step.repeats && now.rip == step.from.rip => {
                step.from = now;
                step.moved_on = true;
                step.rounds = 0;
                count(&self.resolver.tally.steps);
                return After::RunAgain;
            }
            // Instead of a step, the guest's own handler is wanted: it runs without, and the pages
            // stay until the next exit, since the instruction needs them first of all.
            None if how == StepEnd::Shutdown => return self.end_step(vcpu),
            _ => {}
        }
        match self.finish(vcpu) {
            Ok(()) => After::RunAgain,
            Err(report) => After::Stop(report),
        }
    }

    pub(super) fn end_step(&mut self, vcpu: &mut V) -> After {
        let ended = self.step.take().map(|step| vcpu.end_step(step.stepping));
        match ended {
            None | Some(Ok(())) => After::RunAgain,
            Some(Err(error)) => {
                self.give_up_pages();
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                After::Stop(self.report(None, None, Obstacle::Substitute { errno }))
            }
        }
    }
}
