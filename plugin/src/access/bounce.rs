//! Owns copies of window memory that stand in for it where it cannot be touched directly, and the
//! room that they take together. Never lets a guest have it all.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use vm_memory::{Bytes, VolatileSlice};

use super::pin::Pin;
use super::slice::Buffer;
use crate::error::Error;

/// How much is written back at a time, in bytes.
const CHUNK: usize = 4096;

/// A copy of a part of a pin. What is written to it reaches the window at once.
#[derive(Debug)]
pub(super) struct Bounce<'a> {
    pin: Pin<'a>,
    /// Where in the pin it begins, in bytes.
    offset: u64,
    buffer: Buffer,
    _room: Room<'a>,
    copies: &'a Copies,
}

/// What the copies of a region take.
#[derive(Debug)]
pub(super) struct Copies {
    limit: usize,
    used: AtomicUsize,
    lost: AtomicU64,
}

#[derive(Debug)]
struct Room<'a> {
    len: usize,
    used: &'a AtomicUsize,
}

impl<'a> Bounce<'a> {
    /// A copy of `len` bytes of `pin` from `offset` on.
    pub(super) fn new(
        pin: Pin<'a>,
        offset: u64,
        len: usize,
        copies: &'a Copies,
    ) -> Result<Self, Error> {
        let room = copies.take(len)?;
        let buffer = Buffer::filled(len, |bytes| pin.read(offset, bytes))?;
        Ok(Self {
            pin,
            offset,
            buffer,
            _room: room,
            copies,
        })
    }

    pub(super) fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// Writes a part of the copy to the window. A part that cannot be written is lost, as a write
    /// to a file is whose end somebody cuts off: nobody who asks for a slice can be told later.
    pub(super) fn write_back(&self, at: usize, len: usize) {
        let copy = self.buffer.slice();
        let end = at.saturating_add(len).min(copy.len());
        let mut from = at;
        while from < end {
            let next = from.saturating_add(CHUNK).min(end);
            if let Err(error) = self.write_chunk(&copy, from, next) {
                self.copies.lost.fetch_add(1, Ordering::Relaxed);
                log::debug!("cannot write a copy back: {error}");
                return;
            }
            from = next;
        }
    }

    fn write_chunk(&self, copy: &VolatileSlice<'_>, from: usize, to: usize) -> Result<(), Error> {
        let mut bytes = [0; CHUNK];
        let len = to.saturating_sub(from).min(CHUNK);
        let bytes = bytes.get_mut(..len).unwrap_or_default();
        // The bytes lie in the copy, so they are all there.
        let read = copy.read(bytes, from).unwrap_or(0);
        debug_assert_eq!(read, len);
        self.pin
            .write(self.offset.saturating_add(from as u64), bytes)
    }
}

impl Copies {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            used: AtomicUsize::new(0),
            lost: AtomicU64::new(0),
        }
    }

    /// How often something written to a copy did not reach the window.
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    fn take(&self, len: usize) -> Result<Room<'_>, Error> {
        let fits = |used: usize| used.checked_add(len).filter(|sum| *sum <= self.limit);
        let order = Ordering::Relaxed;
        match self.used.fetch_update(order, order, fits) {
            Ok(_) => Ok(Room {
                len,
                used: &self.used,
            }),
            Err(used) => Err(Error::CopyLimit {
                needed: len,
                used,
                limit: self.limit,
            }),
        }
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.used.fetch_sub(self.len, Ordering::Relaxed);
    }
}
