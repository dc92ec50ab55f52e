//! Owns the decorated VM: its windows, and what a VMM does with them. Never stands in the way of
//! what lies in none.

mod passed;

use std::any::Any;
use std::fmt;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hypervisor::{HypervisorVmError, Vm};
use vm_remap::fault::FaultResolver;
use vm_remap::{BackendKind, GuestAddress, SlotNumbers, SlotProvider, Window, Zap};

use crate::error::RemapError;
use crate::numbers::{MEMSLOTS, Numbers};
use crate::ops::GuestRam;
use crate::options::RemapOptions;
use crate::provider::VmSlots;
use crate::registry::Registry;
use crate::zap;

/// A VM whose memory can change while its memslots rest.
///
/// It is a `hypervisor::Vm`, and everything passes to the decorated one, but for this:
///
/// * A region that lies wholly inside a [window](Self::open_window) becomes a mapping of it:
///   `create_user_memory_region` maps and `remove_user_memory_region` unmaps, without a memslot
///   call once the segment is registered. One that reaches over the border of a window is refused,
///   and so is a removal with other figures than the creation's. `log_dirty_pages` makes no
///   difference there: the log of a window covers all of it.
/// * The dirty log covers the windows; see [`take_dirty_log`](Self::take_dirty_log).
/// * Its vCPUs hand guest accesses that cannot be served, inside windows, to the
///   [resolver](Self::resolver).
///
/// `as_any` gives the decorated VM, so that a downcast to `KvmVm` finds it;
/// [`of`](Self::of) finds this one.
///
/// One region is created or removed at a time. All calls can come from any thread, that of a vCPU
/// inside its run among them.
pub struct RemapVm {
    inner: Arc<dyn Vm>,
    options: RemapOptions,
    slots: Arc<VmSlots>,
    zap: Zap,
    registry: Mutex<Registry>,
    faults: Arc<Faults>,
}

/// What the vCPUs of a VM share.
#[derive(Debug)]
pub(crate) struct Faults {
    pub(crate) resolver: Arc<FaultResolver>,
    pub(crate) ram: Arc<GuestRam>,
    windows: AtomicUsize,
}

impl Faults {
    /// Whether a fault can be a window's at all.
    pub(crate) fn matter(&self) -> bool {
        self.windows.load(Ordering::Acquire) > 0
    }
}

impl fmt::Debug for RemapVm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemapVm")
            .field("options", &self.options)
            .field("zap", &self.zap)
            .field("registry", &self.registry)
            .finish_non_exhaustive()
    }
}

impl RemapVm {
    /// Decorates `inner`, a VM of KVM's. Do it before the VM has vCPUs: those that it has already
    /// know of no window. Windows take memslot numbers from KVM's highest downwards, from the
    /// upper half only.
    ///
    /// # Errors
    /// [`RemapError::PreciseZap`] where KVM offers precise zapping and refused it.
    pub fn wrap(inner: Arc<dyn Vm>, options: RemapOptions) -> Result<Arc<Self>, RemapError> {
        let descriptor = options.descriptor_of(inner.as_ref());
        let descriptor = descriptor.as_ref().map(AsFd::as_fd);
        let mut precise = false;
        if options.wants_precise_zap()
            && let Some(vm) = descriptor
        {
            precise = zap::enable(vm).map_err(|source| RemapError::PreciseZap { source })?;
        }
        let memslots = descriptor.and_then(zap::memslots).unwrap_or(MEMSLOTS);
        let ram = Arc::new(GuestRam::default());
        Ok(Arc::new(Self {
            slots: Arc::new(VmSlots::new(Arc::clone(&inner), precise)),
            zap: if precise { Zap::Precise } else { Zap::All },
            registry: Mutex::new(Registry::new(Numbers::new(memslots))),
            faults: Arc::new(Faults {
                resolver: FaultResolver::new(Arc::clone(&ram) as _),
                ram,
                windows: AtomicUsize::new(0),
            }),
            options,
            inner,
        }))
    }

    /// The decorator around `vm`, if it has this one.
    #[must_use]
    pub fn of(vm: &dyn Vm) -> Option<&Self> {
        (vm as &dyn Any).downcast_ref()
    }

    /// The VM that is decorated.
    #[must_use]
    pub fn inner(&self) -> &Arc<dyn Vm> {
        &self.inner
    }

    /// The backend that windows are opened with.
    #[must_use]
    pub fn backend(&self) -> BackendKind {
        self.options.backend()
    }

    /// What deleting a memslot of the VM drops, as far as this decorator knows:
    /// [`Zap::Precise`] only where it was asked for, [`RemapOptions::vm_descriptor`] gave a
    /// descriptor and KVM offers it (Linux 6.12 on).
    #[must_use]
    pub fn zap(&self) -> Zap {
        self.zap
    }

    /// The resolver of faults in the windows: its counters and events.
    #[must_use]
    pub fn resolver(&self) -> &Arc<FaultResolver> {
        &self.faults.resolver
    }

    /// Opens a window of `len` bytes at the guest address `base`, both multiples of 4 KiB: regions
    /// that are created inside become mappings of it, and the VMM can change it directly as well.
    /// No region may be there yet, or the first mapping is refused.
    ///
    /// # Errors
    /// [`RemapError::Overlaps`], [`RemapError::SlotNumbers`], [`RemapError::SlotReserved`] where the VMM itself
    /// uses numbers that windows need, and what [`vm_remap::WindowOptions::open`] returns.
    pub fn open_window(&self, base: GuestAddress, len: u64) -> Result<Arc<Window>, RemapError> {
        let mut registry = self.registry();
        let options = self.options.window(base, len, self.zap);
        let provider = Arc::clone(&self.slots) as Arc<dyn SlotProvider>;
        let logs = self.slots.log_is_on();
        let window = registry.open(base, len, self.options.numbers(len), |numbers| {
            let window = options.open(provider, SlotNumbers::new(numbers))?;
            if logs {
                window.start_dirty_log()?;
            }
            Ok(window)
        })?;
        self.faults.resolver.add(&window);
        self.faults.windows.fetch_add(1, Ordering::AcqRel);
        Ok(window)
    }

    /// Moves a window to another guest address, as when the guest moves a BAR, by
    /// [`Window::relocate`]. Its regions move with it: they are removed at the address where they
    /// lie then. Use this and not the window's own, which knows of no other window, and would let
    /// the dirty log of that moment miss pages.
    ///
    /// # Errors
    /// [`RemapError::NoWindow`], [`RemapError::Overlaps`], and what [`Window::relocate`] returns.
    pub fn relocate_window(
        &self,
        window: &Arc<Window>,
        base: GuestAddress,
    ) -> Result<(), RemapError> {
        self.registry().relocate(window, base)
    }

    /// Closes a window; all other handles to it must be gone, and all regions be removed. It waits
    /// for a fifth of a second for handles that go.
    ///
    /// # Errors
    /// [`RemapError::NoWindow`], [`RemapError::RegionsLeft`] and [`RemapError::WindowHeld`] leave it
    /// open: [`windows`](Self::windows) still has it. What
    /// [`Window::close`] returns leaves it closed, and the numbers of its memslots taken.
    pub fn close_window(&self, window: Arc<Window>) -> Result<(), RemapError> {
        let mut registry = self.registry();
        let before = registry.windows().len();
        let closed = registry.close(window);
        if registry.windows().len() < before {
            self.faults.windows.fetch_sub(1, Ordering::AcqRel);
        }
        closed
    }

    /// The windows that are open.
    #[must_use]
    pub fn windows(&self) -> Vec<Arc<Window>> {
        self.registry().windows()
    }

    /// The pages of `len` bytes at `guest`, inside a window, that have changed since they were
    /// taken the last time, or since the log was started: written by the guest, changed by a remap,
    /// or marked with [`Window::mark_dirty`]. Bit `n % 64` of word `n / 64` stands for page `n`.
    ///
    /// `get_dirty_log` of a region inside a window is the same call. It is for what the VMM maps
    /// directly, with no region. Pages that are not asked for are kept. Do not take the log from
    /// the [`Window`] beside it.
    ///
    /// # Errors
    /// [`RemapError::NoWindow`], [`RemapError::Straddles`], [`RemapError::DirtyLogOff`], and what
    /// [`Window::take_dirty_log_with`] returns.
    pub fn take_dirty_log(&self, guest: GuestAddress, len: u64) -> Result<Vec<u64>, RemapError> {
        let mut registry = self.registry();
        let (window, range) = registry.find(guest, len)?;
        registry.dirty_in(&window, range, &self.slots)
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the VM's log, then each window's; after a failure none is on. A log that is on stays
    /// on, and the VM's is started again, as it has it, for regions that have come since.
    fn start_logs(&self) -> Result<(), HypervisorVmError> {
        let registry = self.registry();
        let was_on = self.slots.log_is_on();
        self.slots.start_log()?;
        if was_on {
            return Ok(());
        }
        let windows = registry.windows();
        for (at, window) in windows.iter().enumerate() {
            let Err(error) = window.start_dirty_log() else {
                continue;
            };
            let started = windows.iter().take(at);
            let undone = started.map(|window| window.stop_dirty_log());
            if let Some(error) = undone.filter_map(Result::err).next() {
                log::warn!("cannot put a window's dirty log back: {error}");
            }
            if let Err(error) = self.slots.stop_log() {
                log::warn!("cannot put the dirty log back: {error}");
            }
            return Err(HypervisorVmError::StartDirtyLog(error.into()));
        }
        Ok(())
    }

    /// Stops every log that lets itself be stopped. The first failure is reported.
    fn stop_logs(&self) -> Result<(), HypervisorVmError> {
        let mut registry = self.registry();
        let mut first = Ok(());
        if self.slots.log_is_on() {
            registry.forget_dirty();
            for window in registry.windows() {
                let stopped = window.stop_dirty_log();
                first = first.and(stopped.map_err(|e| HypervisorVmError::StopDirtyLog(e.into())));
            }
        }
        first.and(self.slots.stop_log())
    }
}
