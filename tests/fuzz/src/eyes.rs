//! Owns looking at the memory of this process by address, and at what is mapped, without a
//! reference and without a fault. Never changes a mapping.

use std::io::{IoSlice, IoSliceMut};

use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;

/// The word at `address`, or `None` where the guest's read of it would not be satisfied.
pub(crate) fn peek(address: u64) -> Option<u64> {
    let mut word = [0; 8];
    let remote = RemoteIoVec {
        base: address as usize,
        len: 8,
    };
    let mut local = [IoSliceMut::new(&mut word)];
    let read = process_vm_readv(Pid::this(), &mut local, &[remote]);
    (read == Ok(8)).then(|| u64::from_ne_bytes(word))
}

/// Writes a word as the guest would; whether that was possible.
pub(crate) fn poke(address: u64, word: u64) -> bool {
    let word = word.to_ne_bytes();
    let remote = RemoteIoVec {
        base: address as usize,
        len: 8,
    };
    process_vm_writev(Pid::this(), &[IoSlice::new(&word)], &[remote]) == Ok(8)
}

/// Whether every page of the range is mapped.
pub(crate) fn is_mapped(start: u64, len: u64) -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let hex = |digits| u64::from_str_radix(digits, 16).unwrap();
    let mut covered = start;
    for line in maps.lines() {
        let (range, _) = line.split_once(' ').unwrap();
        let (from, to) = range.split_once('-').unwrap();
        if hex(from) <= covered {
            covered = covered.max(hex(to));
        }
    }
    covered >= start + len
}
