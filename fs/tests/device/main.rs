//! Drives the daemon as a process, the way a VMM and its guest would: vhost-user on a socket, FUSE
//! requests in a virtqueue, and a frontend that writes down what it is asked to map. Needs no KVM.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test that cannot go on fails, and says why"
)]

mod daemon;
mod driver;
mod escape;
mod fuse;
mod guest;
mod life;
mod mapping;
mod noise;
mod real;
mod requests;
mod window;
