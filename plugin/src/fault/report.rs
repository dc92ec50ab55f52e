//! Owns what the VMM is told: the report that stops a guest, and the events. Never decides
//! anything.

use std::fmt;

use crate::range::GuestAddress;
use crate::window::touch::{Lost, Obstacle};

/// Why a vCPU cannot go on. Nothing has been changed for it, and it may be run again once what is
/// in the way has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// The guest-physical address that was touched, if it is known.
    pub address: Option<GuestAddress>,
    /// Guest address of the window that it lies in, if it is known.
    pub window: Option<GuestAddress>,
    /// What was there.
    pub obstacle: Obstacle,
    /// Whether it was, or may have been, a write.
    pub write: bool,
    /// RIP of the vCPU, if it could be read.
    pub rip: Option<u64>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.write { "write" } else { "read" };
        f.write_str("cannot go on with the guest's ")?;
        match (self.address, self.window) {
            (Some(address), Some(window)) => {
                write!(f, "{what} at {address} in the window at {window}: ")?;
            }
            _ => f.write_str("access: ")?,
        }
        match self.obstacle {
            Obstacle::Hole => f.write_str("nothing is mapped there, and holes are to stop it")?,
            Obstacle::ReadOnly { label } => write!(
                f,
                "the mapping with the label {label} is read-only, and writes to it are to stop it"
            )?,
            Obstacle::Mapping { label, errno } => write!(
                f,
                "the page of the mapping with the label {label} cannot be made present (error \
                 {errno}); unmap or replace it"
            )?,
            Obstacle::Substitute { errno } => write!(
                f,
                "no page could be put there for it (error {errno}); free memory or memory areas"
            )?,
            Obstacle::Poisoned => f.write_str("the window is poisoned; close it")?,
            Obstacle::Unknown => f.write_str(
                "the hypervisor does not tell the address; a SigbusHook would, if it lies in a hole",
            )?,
        }
        match self.rip {
            Some(rip) => write!(f, " (rip {rip:#x})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Report {}

/// What a VMM should hear of once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The first touch of a hole of this window.
    HoleTouched {
        /// Guest address of the window.
        window: GuestAddress,
        /// The address that was touched.
        address: GuestAddress,
    },
    /// The first write to a read-only mapping of this window.
    ReadOnlyWritten {
        /// Guest address of the window.
        window: GuestAddress,
        /// The address that was touched.
        address: GuestAddress,
    },
    /// A mapping has lost its pages, from here to its end. Once for each loss.
    Lost(Lost),
    /// A vCPU is being slowed because it faults without end. Once for each vCPU.
    Slowed,
}

/// How many losses are warned of: a guest that may cut files can have any number.
const LOUD_LOSSES: u64 = 32;

impl Event {
    /// How loudly it is logged, where mappings have lost pages `losses` times by now.
    pub(super) fn level(&self, losses: u64) -> log::Level {
        match self {
            Self::Lost(_) if losses > LOUD_LOSSES => log::Level::Debug,
            _ => log::Level::Warn,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HoleTouched { window, address } => write!(
                f,
                "the guest touched a hole of the window at {window}, at {address}; more are counted"
            ),
            Self::ReadOnlyWritten { window, address } => write!(
                f,
                "the guest wrote to a read-only mapping of the window at {window}, at {address}; \
                 more are counted"
            ),
            Self::Lost(lost) => write!(
                f,
                "the mapping with the label {} in the window at {} has lost its pages: {} is a \
                 hole now",
                lost.label, lost.window, lost.range
            ),
            Self::Slowed => f.write_str("a vCPU faults without end and is slowed"),
        }
    }
}

/// What a resolver has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct FaultCounters {
    /// Faults that it was given.
    pub faults: u64,
    /// MMIO exits inside a window.
    pub mmio: u64,
    /// Touches where nothing was in the way any more.
    pub present: u64,
    /// Touches of holes that were answered.
    pub holes: u64,
    /// Touches of holes that the guest was told of, or that were mapped meanwhile, and so were not
    /// answered: see [`VcpuFaults::on_absent`](super::VcpuFaults::on_absent).
    pub told: u64,
    /// Writes to read-only mappings that were dropped.
    pub dropped_writes: u64,
    /// Mappings that had lost pages.
    pub lost: u64,
    /// Times that holes were armed, to learn an address.
    pub armed: u64,
    /// Single steps.
    pub steps: u64,
    /// Faults that ended in a report.
    pub stops: u64,
    /// Pauses given to vCPUs that fault too often.
    pub slowed: u64,
    /// Events that nobody took in time.
    pub events_dropped: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::range::PageRange;

    #[test]
    fn guest_that_cuts_files_without_end_does_not_fill_the_log() {
        let lost = Event::Lost(Lost {
            window: GuestAddress(4 << 30),
            range: PageRange::new(0, 4096).unwrap(),
            label: 1,
        });
        assert_eq!(lost.level(32), log::Level::Warn);
        assert_eq!(lost.level(33), log::Level::Debug);
        assert_eq!(
            Event::Slowed.level(33),
            log::Level::Warn,
            "once for each vCPU"
        );
    }
}
