//! Owns the copies to and from a region: each is made through a pin, with the kernel's copy.
//! Never touches window memory directly but for an atomic access to stable memory.

use std::io::{self, ErrorKind};
use std::sync::atomic::Ordering;

use vm_memory::bitmap::Bitmap;
use vm_memory::{
    Address, AtomicAccess, Bytes, GuestMemoryError, GuestMemoryRegion, MemoryRegionAddress,
    ReadVolatile, VolatileSlice, WriteVolatile,
};

use super::pin::Pin;
use super::region::{WindowRegion, not_direct, outward};
use crate::error::Error;

/// The most that is on its way between a stream and a window, in bytes.
const CHUNK: usize = 64 << 10;

type Result<T> = std::result::Result<T, GuestMemoryError>;

impl<B: Bitmap> WindowRegion<B> {
    /// How many of `count` bytes lie in the region.
    fn room(&self, at: MemoryRegionAddress, count: usize) -> Result<usize> {
        let room = self.len().checked_sub(at.raw_value());
        let room = room.filter(|room| *room > 0 || count == 0);
        let room = room.ok_or(GuestMemoryError::InvalidBackendAddress)?;
        Ok(usize::try_from(room).unwrap_or(usize::MAX).min(count))
    }

    fn mark(&self, at: MemoryRegionAddress, len: usize) {
        // An offset of the window fits, or the pin would have been refused.
        let at = usize::try_from(at.raw_value()).unwrap_or(usize::MAX);
        self.tracking().mark_dirty(at, len);
    }

    /// Moves up to `count` bytes from `src` into the window, in pieces, until `src` gives less than
    /// it is asked for.
    fn fill<F: ReadVolatile>(
        &self,
        at: MemoryRegionAddress,
        src: &mut F,
        count: usize,
    ) -> Result<usize> {
        if count == 0 {
            return Ok(0);
        }
        let (pin, inside) = self.pin(at, count)?;
        // Before anything is taken out of the stream.
        pin.check_writable(inside, count).map_err(outward)?;
        let mut buffer = vec![0; count.min(CHUNK)];
        let mut done = 0;
        while done < count {
            let len = count.saturating_sub(done).min(CHUNK);
            let piece = buffer.get_mut(..len).unwrap_or_default();
            let got = match retried(|| src.read_volatile(&mut VolatileSlice::from(&mut *piece))) {
                Ok(got) => got.min(len),
                Err(_) if done > 0 => break,
                Err(error) => return Err(error.into()),
            };
            let piece = piece.get(..got).unwrap_or_default();
            let to = inside.saturating_add(done as u64);
            let written = pin.write(to, piece);
            // A write that fails may have written some of it.
            self.mark(at.unchecked_add(done as u64), got);
            written.map_err(outward)?;
            done = done.saturating_add(got);
            if got < len {
                break;
            }
        }
        Ok(done)
    }

    /// Moves up to `count` bytes out of the window into `dst`, in pieces, until `dst` takes less
    /// than it is given.
    fn drain<F: WriteVolatile>(
        &self,
        at: MemoryRegionAddress,
        dst: &mut F,
        count: usize,
    ) -> Result<usize> {
        if count == 0 {
            return Ok(0);
        }
        let (pin, inside) = self.pin(at, count)?;
        let mut buffer = vec![0; count.min(CHUNK)];
        let mut done = 0;
        while done < count {
            let len = count.saturating_sub(done).min(CHUNK);
            let piece = buffer.get_mut(..len).unwrap_or_default();
            let from = inside.saturating_add(done as u64);
            pin.read(from, piece).map_err(outward)?;
            let took = match retried(|| dst.write_volatile(&VolatileSlice::from(&mut *piece))) {
                Ok(took) => took.min(len),
                Err(_) if done > 0 => break,
                Err(error) => return Err(error.into()),
            };
            done = done.saturating_add(took);
            if took < len {
                break;
            }
        }
        Ok(done)
    }

    /// Has `access` at the one object of `len` bytes at `at`, which must lie in stable memory.
    fn atomically<T>(
        &self,
        at: MemoryRegionAddress,
        len: usize,
        access: impl FnOnce(VolatileSlice<'_>, usize) -> vm_memory::VolatileMemoryResult<T>,
    ) -> Result<T> {
        let (pin, inside) = self.pin(at, len)?;
        let refused = |pin: &Pin<'_>| Error::NotDirect {
            range: pin.range(),
            reason: not_direct(pin),
        };
        let slice = pin.slice().ok_or_else(|| outward(refused(&pin)))?;
        // It lies within the first page of the pin.
        let inside = usize::try_from(inside).unwrap_or(usize::MAX);
        Ok(access(slice, inside)?)
    }
}

impl<B: Bitmap> Bytes<MemoryRegionAddress> for WindowRegion<B> {
    type E = GuestMemoryError;

    fn write(&self, buf: &[u8], addr: MemoryRegionAddress) -> Result<usize> {
        let len = self.room(addr, buf.len())?;
        let buf = buf.get(..len).unwrap_or_default();
        self.write_slice(buf, addr).map(|()| len)
    }

    fn read(&self, buf: &mut [u8], addr: MemoryRegionAddress) -> Result<usize> {
        let len = self.room(addr, buf.len())?;
        let buf = buf.get_mut(..len).unwrap_or_default();
        self.read_slice(buf, addr).map(|()| len)
    }

    fn write_slice(&self, buf: &[u8], addr: MemoryRegionAddress) -> Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        let (pin, inside) = self.pin(addr, buf.len())?;
        let written = pin.write(inside, buf);
        // A write that fails may have written some of it.
        self.mark(addr, buf.len());
        written.map_err(outward)
    }

    fn read_slice(&self, buf: &mut [u8], addr: MemoryRegionAddress) -> Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        let (pin, inside) = self.pin(addr, buf.len())?;
        pin.read(inside, buf).map_err(outward)
    }

    fn read_volatile_from<F: ReadVolatile>(
        &self,
        addr: MemoryRegionAddress,
        src: &mut F,
        count: usize,
    ) -> Result<usize> {
        self.fill(addr, src, self.room(addr, count)?)
    }

    fn read_exact_volatile_from<F: ReadVolatile>(
        &self,
        addr: MemoryRegionAddress,
        src: &mut F,
        count: usize,
    ) -> Result<()> {
        whole(count, |done, left| {
            self.fill(addr.unchecked_add(done), src, left)
        })
    }

    fn write_volatile_to<F: WriteVolatile>(
        &self,
        addr: MemoryRegionAddress,
        dst: &mut F,
        count: usize,
    ) -> Result<usize> {
        self.drain(addr, dst, self.room(addr, count)?)
    }

    fn write_all_volatile_to<F: WriteVolatile>(
        &self,
        addr: MemoryRegionAddress,
        dst: &mut F,
        count: usize,
    ) -> Result<()> {
        whole(count, |done, left| {
            self.drain(addr.unchecked_add(done), dst, left)
        })
    }

    fn store<T: AtomicAccess>(
        &self,
        val: T,
        addr: MemoryRegionAddress,
        order: Ordering,
    ) -> Result<()> {
        let len = size_of::<T>();
        self.atomically(addr, len, |slice, at| slice.store(val, at, order))?;
        self.mark(addr, len);
        Ok(())
    }

    fn load<T: AtomicAccess>(&self, addr: MemoryRegionAddress, order: Ordering) -> Result<T> {
        self.atomically(addr, size_of::<T>(), |slice, at| slice.load(at, order))
    }
}

/// Calls `step` with bytes done and bytes left until none is left, or no step is made.
fn whole(count: usize, mut step: impl FnMut(u64, usize) -> Result<usize>) -> Result<()> {
    let mut done = 0;
    while done < count {
        match step(done as u64, count.saturating_sub(done))? {
            0 => {
                return Err(GuestMemoryError::PartialBuffer {
                    expected: count,
                    completed: done,
                });
            }
            more => done = done.saturating_add(more),
        }
    }
    Ok(())
}

/// Calls again what a signal has interrupted.
fn retried<T>(
    mut call: impl FnMut() -> vm_memory::VolatileMemoryResult<T>,
) -> vm_memory::VolatileMemoryResult<T> {
    let interrupted = |error: &io::Error| error.kind() == ErrorKind::Interrupted;
    loop {
        match call() {
            Err(vm_memory::VolatileMemoryError::IOError(error)) if interrupted(&error) => {}
            outcome => return outcome,
        }
    }
}
