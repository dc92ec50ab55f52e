//! Owns a vhost-user device that maps and unmaps memory of its own in a guest's view, and the
//! program in that guest that says what it sees there. Never takes the word of either side for it:
//! the device looks into its own memory for what the guest wrote.
//!
//! `vm-remap-peer` is the device, a process of the host: it listens on a socket, offers a VMM one
//! shared-memory region, and changes what lies there some thousand times. `vm-remap-bar` runs in
//! the guest: it finds the region among the BARs of the PCI devices and looks. The two speak
//! through a mailbox, a page that the device maps at the region's start before all else.

#![expect(
    clippy::missing_errors_doc,
    reason = "every error here ends the program, with what it says"
)]
#![cfg_attr(
    test,
    expect(
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        reason = "tests compute with small figures of their own"
    )
)]

pub mod bar;
pub mod blob;
pub mod channel;
pub mod device;
pub mod guest;
pub mod look;
pub mod mailbox;
pub mod peer;
pub mod play;
pub mod script;
pub mod sizes;
pub mod stamp;
pub mod tally;
pub mod words;

/// The page that everything here is counted in, in bytes.
pub const PAGE: u64 = 4096;
