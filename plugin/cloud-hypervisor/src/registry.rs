//! Owns which windows a VM has and which regions lie in them, by the numbers that the VMM gave them.
//! Never registers a slot itself, and never decides what happens outside windows.

// UNSAFETY: the memory of a region is the VMM's, and only its word says how long it stays.
#![expect(unsafe_code, reason = "host memory as a source is an unsafe function")]

use std::collections::BTreeMap;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use vm_remap::{GuestAddress, PAGE_SIZE, PageRange, Protection, Source, Window};

use crate::dirty::Pending;
use crate::error::RemapError;
use crate::numbers::Numbers;
use crate::provider::VmSlots;

/// How long closing a window waits for others to let go of it: a vCPU in a fault holds it for that
/// moment.
const PATIENCE: u32 = 200;
const PAUSE: Duration = Duration::from_millis(1);

/// A region as the `Vm` trait speaks of one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region {
    pub(crate) slot: u32,
    pub(crate) guest: GuestAddress,
    pub(crate) len: u64,
    pub(crate) host: *mut u8,
    pub(crate) read_only: bool,
}

#[derive(Debug)]
pub(crate) struct Registry {
    windows: Vec<Declared>,
    by_slot: BTreeMap<u32, Mapped>,
    numbers: Numbers,
}

#[derive(Debug)]
struct Declared {
    window: Arc<Window>,
    numbers: Range<u32>,
    pending: Pending,
}

/// A region that is a mapping of a window.
#[derive(Debug)]
struct Mapped {
    window: Arc<Window>,
    range: PageRange,
    host: usize,
    read_only: bool,
}

impl Mapped {
    /// The window can have been moved since.
    fn guest(&self) -> GuestAddress {
        GuestAddress(self.window.base().0.saturating_add(self.range.start()))
    }

    fn check(&self, verb: &'static str, region: &Region) -> Result<(), RemapError> {
        let own = self.guest();
        let same = (own, self.range.len()) == (region.guest, region.len);
        if same && self.host == region.host.addr() && self.read_only == region.read_only {
            return Ok(());
        }
        Err(RemapError::OtherFigures {
            verb,
            slot: region.slot,
            guest: region.guest,
            len: region.len,
            own,
            own_len: self.range.len(),
        })
    }
}

impl Registry {
    pub(crate) fn new(numbers: Numbers) -> Self {
        Self {
            windows: Vec::new(),
            by_slot: BTreeMap::new(),
            numbers,
        }
    }

    pub(crate) fn windows(&self) -> Vec<Arc<Window>> {
        let windows = self.windows.iter();
        windows.map(|own| Arc::clone(&own.window)).collect()
    }

    /// Opens a window by `open`, with `count` memslot numbers.
    pub(crate) fn open(
        &mut self,
        base: GuestAddress,
        len: u64,
        count: u32,
        open: impl FnOnce(Range<u32>) -> Result<Window, vm_remap::Error>,
    ) -> Result<Arc<Window>, RemapError> {
        self.is_free(base, len, None)?;
        let numbers = self.numbers.take(count)?;
        let window = match open(numbers.clone()) {
            Ok(window) => Arc::new(window),
            Err(error) => {
                self.numbers.give_back(&numbers);
                return Err(error.into());
            }
        };
        self.windows.push(Declared {
            window: Arc::clone(&window),
            numbers,
            pending: Pending::default(),
        });
        Ok(window)
    }

    /// Whether no window but `but` lies there.
    fn is_free(
        &self,
        base: GuestAddress,
        len: u64,
        but: Option<&Arc<Window>>,
    ) -> Result<(), RemapError> {
        let itself = |own: &Declared| but.is_some_and(|but| Arc::ptr_eq(&own.window, but));
        let mut others = self.windows.iter().filter(|own| !itself(own));
        others
            .find(|own| meets(own, base, len))
            .map_or(Ok(()), |other| {
                Err(RemapError::Overlaps {
                    base,
                    len,
                    other: other.window.base(),
                    other_len: other.window.len(),
                })
            })
    }

    pub(crate) fn relocate(
        &self,
        window: &Arc<Window>,
        base: GuestAddress,
    ) -> Result<(), RemapError> {
        let is_own = |own: &Declared| Arc::ptr_eq(&own.window, window);
        if !self.windows.iter().any(is_own) {
            let base = window.base();
            return Err(RemapError::NoWindow { base });
        }
        self.is_free(base, window.len(), Some(window))?;
        Ok(window.relocate(base)?)
    }

    /// Closes `window`, the last handle but the registry's own.
    pub(crate) fn close(&mut self, window: Arc<Window>) -> Result<(), RemapError> {
        let base = window.base();
        let at = self
            .windows
            .iter()
            .position(|own| Arc::ptr_eq(&own.window, &window));
        let at = at.ok_or(RemapError::NoWindow { base })?;
        let inside = |mapped: &&Mapped| Arc::ptr_eq(&mapped.window, &window);
        let regions = self.by_slot.values().filter(inside).count();
        if regions > 0 {
            return Err(RemapError::RegionsLeft { base, regions });
        }
        let Declared {
            window: mut own,
            numbers,
            pending,
        } = self.windows.swap_remove(at);
        drop(window);
        for _ in 0..PATIENCE {
            match Arc::try_unwrap(own) {
                Ok(window) => {
                    // Where the hypervisor keeps a slot, its number stays taken.
                    window.close()?;
                    self.numbers.give_back(&numbers);
                    return Ok(());
                }
                Err(held) => own = held,
            }
            thread::sleep(PAUSE);
        }
        self.windows.push(Declared {
            window: own,
            numbers,
            pending,
        });
        Err(RemapError::WindowHeld { base })
    }

    /// The window that `region` lies in, with its place there; `None` outside of all.
    fn place(
        &self,
        guest: GuestAddress,
        len: u64,
    ) -> Result<Option<(&Declared, PageRange)>, RemapError> {
        let Some(own) = self.windows.iter().find(|own| meets(own, guest, len)) else {
            return Ok(None);
        };
        let (base, window) = (own.window.base(), own.window.len());
        let straddles = RemapError::Straddles {
            guest,
            len,
            base,
            window,
        };
        let Some(start) = guest.0.checked_sub(base.0) else {
            return Err(straddles);
        };
        if start.checked_add(len).is_none_or(|end| end > window) {
            return Err(straddles);
        }
        Ok(Some((own, PageRange::new(start, len)?)))
    }

    /// Makes `region` a mapping of the window that it lies in. `false` where it lies in none: it is
    /// the hypervisor's then.
    ///
    /// # Safety
    /// The region's memory must be mapped, with no Rust reference into it, until
    /// [`unmap`](Self::unmap) has returned `Ok` for it or its window is closed.
    pub(crate) unsafe fn map(&mut self, region: &Region) -> Result<bool, RemapError> {
        let Region {
            slot, guest, len, ..
        } = *region;
        if let Some(other) = self.by_slot.get(&slot) {
            return Err(RemapError::SlotInUse {
                slot,
                guest: other.guest(),
                len: other.range.len(),
            });
        }
        let Some((own, range)) = self.place(guest, len)? else {
            self.numbers.pass(slot)?;
            return Ok(false);
        };
        let window = Arc::clone(&own.window);
        let host = NonNull::new(region.host).ok_or(RemapError::NoHostMemory { guest, len })?;
        // SAFETY: the caller promises that the memory stays until `unmap` returns `Ok`, which
        // calls the window's.
        let source = unsafe { Source::host_memory(host) }.label(slot.into());
        window.map(range, &source, protection(region.read_only))?;
        let mapped = Mapped {
            window,
            range,
            host: region.host.addr(),
            read_only: region.read_only,
        };
        self.by_slot.insert(slot, mapped);
        Ok(true)
    }

    /// Takes `region` out of its window. `false` where it is in none.
    pub(crate) fn unmap(&mut self, region: &Region) -> Result<bool, RemapError> {
        let Region {
            slot, guest, len, ..
        } = *region;
        let Some(mapped) = self.by_slot.get(&slot) else {
            let inside = self.windows.iter().find(|own| meets(own, guest, len));
            if let Some(own) = inside {
                let base = own.window.base();
                return Err(RemapError::NoRegion {
                    slot,
                    guest,
                    len,
                    base,
                });
            }
            self.numbers.check(slot)?;
            return Ok(false);
        };
        mapped.check("remove", region)?;
        mapped.window.unmap(mapped.range)?;
        self.by_slot.remove(&slot);
        Ok(true)
    }

    /// Fetches the dirty pages of the region with this number; `None` where it is in no window.
    pub(crate) fn dirty_of(
        &mut self,
        slot: u32,
        guest: GuestAddress,
        len: u64,
        slots: &VmSlots,
    ) -> Result<Option<Vec<u64>>, RemapError> {
        let Some(mapped) = self.by_slot.get(&slot) else {
            self.numbers.check(slot)?;
            return Ok(None);
        };
        let asked = Region {
            slot,
            guest,
            len,
            host: std::ptr::without_provenance_mut(mapped.host),
            read_only: mapped.read_only,
        };
        mapped.check("take the dirty log of", &asked)?;
        let (window, range) = (Arc::clone(&mapped.window), mapped.range);
        self.dirty_in(&window, range, slots).map(Some)
    }

    /// Fetches the dirty pages of `range`, and keeps those of the rest of the window.
    pub(crate) fn dirty_in(
        &mut self,
        window: &Arc<Window>,
        range: PageRange,
        slots: &VmSlots,
    ) -> Result<Vec<u64>, RemapError> {
        let base = window.base();
        let mut all = self.windows.iter_mut();
        let own = all.find(|own| Arc::ptr_eq(&own.window, window));
        let own = own.ok_or(RemapError::NoWindow { base })?;
        if !slots.log_is_on() {
            return Err(RemapError::DirtyLogOff { base });
        }
        for log in own
            .window
            .take_dirty_log_with(|slot| slots.fetch_log(slot))?
        {
            for address in log.addresses() {
                if let Some(offset) = address.0.checked_sub(base.0) {
                    own.pending.mark(offset);
                }
            }
        }
        Ok(own.pending.take(range))
    }

    /// The window and the place in it of `len` bytes at `guest`.
    pub(crate) fn find(
        &self,
        guest: GuestAddress,
        len: u64,
    ) -> Result<(Arc<Window>, PageRange), RemapError> {
        let (own, range) = self
            .place(guest, len)?
            .ok_or(RemapError::NoWindow { base: guest })?;
        Ok((Arc::clone(&own.window), range))
    }

    /// Forgets the dirty pages that nobody has asked for.
    pub(crate) fn forget_dirty(&mut self) {
        for own in &mut self.windows {
            own.pending.clear();
        }
    }
}

fn protection(read_only: bool) -> Protection {
    if read_only {
        Protection::ReadOnly
    } else {
        Protection::ReadWrite
    }
}

/// Whether any byte of `len` at `guest` lies in the window.
fn meets(own: &Declared, guest: GuestAddress, len: u64) -> bool {
    let base = own.window.base().0;
    let end = base.saturating_add(own.window.len());
    guest.0 < end && base < guest.0.saturating_add(len.max(PAGE_SIZE))
}
