//! Owns the resolver of guest faults: what a VMM calls so that a touch of a hole, of a read-only
//! mapping or of a page that has gone never takes the VM down. Never emulates an instruction.
//!
//! A guest access that its hypervisor cannot serve ends `KVM_RUN` with `EFAULT`, and KVM does not
//! tell the address. The resolver finds it (in the exit, where a kernel tells; else by decoding the
//! instruction at RIP), looks at what lies there, and either makes it right or lets the instruction
//! run on a page that *stands in*: all ones for a hole, a copy for a read-only page. For a read, the
//! page cannot be written and stays until the vCPU's next exit. For a write, the vCPU makes a single
//! step, and what was there is put back. So every instruction does what it would do on an open bus:
//! reads give ones, writes are dropped.
//!
//! [`VcpuFaults`] is the part for one vCPU. With `kvm_ioctls`, [`VcpuFaults::run`] takes the place
//! of `VcpuFd::run` in the VMM's loop, and there is nothing else to get right:
//!
//! ```no_run
//! # #[cfg(feature = "kvm")]
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//! use kvm_ioctls::VcpuExit;
//! use vm_remap::GuestAddress;
//! use vm_remap::fault::FaultResolver;
//! # use vm_remap::{SlotNumbers, WindowOptions};
//! # let vm = Arc::new(kvm_ioctls::Kvm::new()?.create_vm()?);
//! # let mut vcpu = vm.create_vcpu(0)?;
//! # let window = Arc::new(WindowOptions::new(GuestAddress(4 << 30), 1 << 30)
//! #     .open(vm, SlotNumbers::new(16..32))?);
//! # fn ram(_: GuestAddress, _: &mut [u8]) -> bool { false }
//!
//! // One for each VM. `ram` copies an instruction out of guest RAM.
//! let resolver = FaultResolver::new(Arc::new(ram));
//! resolver.add(&window);
//!
//! // One for each vCPU, on its thread.
//! let mut faults = resolver.vcpu();
//! loop {
//!     let go_on = faults.run(&mut vcpu, |exit| match exit {
//!         Ok(VcpuExit::MmioRead(_address, _data)) => true, // a device's; never a window's
//!         Ok(VcpuExit::Hlt) => false,
//!         Ok(_) => true,
//!         Err(error) => error.kind() == std::io::ErrorKind::Interrupted,
//!     });
//!     match go_on {
//!         Ok(true) => {}
//!         Ok(false) => break,
//!         Err(report) => { eprintln!("{report}"); break }
//!     }
//!     for event in resolver.events() { println!("{event:?}"); }
//! }
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "kvm"))]
//! # fn main() {}
//! ```
//!
//! Some addresses cannot be computed: those of a gather, for instance. With a
//! [`SigbusHook`], the touch itself tells them; without, they stop the vCPU.
//!
//! With another hypervisor's crate, implement [`FaultedVcpu`] and call [`VcpuFaults::after_run`]
//! once after *every* run of the vCPU, whatever ended it.

mod absent;
mod decode;
mod exit;
mod find;
mod hunt;
#[cfg(feature = "kvm")]
mod kvm;
mod mmio;
mod rate;
pub(crate) mod report;
mod sigbus;
mod step;
mod tally;
mod vcpu;
mod vcpu_faults;

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak};

pub use self::exit::{After, Exit};
#[cfg(feature = "kvm")]
pub use self::kvm::KvmStepping;
pub use self::report::{Event, FaultCounters, Report};
pub use self::sigbus::SigbusHook;
pub use self::vcpu::{CodeSize, FaultedVcpu, GuestCode, Registers, StepEnd};
pub use self::vcpu_faults::VcpuFaults;

use crate::range::GuestAddress;
use crate::window::Window;
use tally::{Tally, count};

/// The most events that wait to be taken.
const EVENTS: usize = 1024;

/// The resolver of a VM's faults: its windows, and what happened to them.
///
/// It holds no window open, but for the moment in which a fault is dealt with: one that is closed is
/// forgotten.
pub struct FaultResolver {
    code: Arc<dyn GuestCode>,
    windows: RwLock<Vec<Arc<Watched>>>,
    events: Mutex<VecDeque<Event>>,
    tally: Tally,
}

/// A window, and what was told of it already.
#[derive(Debug)]
struct Watched {
    window: Weak<Window>,
    hole_told: AtomicBool,
    write_told: AtomicBool,
    /// That touches of its armed holes are taken, or that they cannot be.
    guarded: OnceLock<Option<sigbus::Guarded>>,
}

/// A place in a window.
#[derive(Clone, Debug)]
struct Place {
    watched: Arc<Watched>,
    window: Arc<Window>,
    offset: u64,
}

impl Place {
    fn base(&self) -> GuestAddress {
        self.window.base()
    }

    fn address(&self) -> GuestAddress {
        GuestAddress(self.base().0.wrapping_add(self.offset))
    }
}

impl fmt::Debug for FaultResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultResolver")
            .field("windows", &self.windows)
            .field("tally", &self.tally)
            .finish_non_exhaustive()
    }
}

impl FaultResolver {
    /// A resolver that knows no window yet and reads instructions from `code`.
    #[must_use]
    pub fn new(code: Arc<dyn GuestCode>) -> Arc<Self> {
        Arc::new(Self {
            code,
            windows: RwLock::default(),
            events: Mutex::default(),
            tally: Tally::default(),
        })
    }

    /// From now on faults in `window` are this resolver's.
    pub fn add(&self, window: &Arc<Window>) {
        let mut windows = self.windows.write().unwrap_or_else(PoisonError::into_inner);
        windows.retain(|watched| watched.window.strong_count() > 0);
        windows.push(Arc::new(Watched {
            window: Arc::downgrade(window),
            hole_told: AtomicBool::new(false),
            write_told: AtomicBool::new(false),
            guarded: OnceLock::new(),
        }));
    }

    /// The part for one vCPU.
    #[must_use]
    pub fn vcpu<V: FaultedVcpu>(self: &Arc<Self>) -> VcpuFaults<V> {
        VcpuFaults::new(Arc::clone(self))
    }

    /// Takes what has happened since the last call; it has been logged already. At most 1024 events wait; what comes after is
    /// counted in [`FaultCounters::events_dropped`].
    pub fn events(&self) -> Vec<Event> {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.drain(..).collect()
    }

    /// What it has done.
    #[must_use]
    pub fn counters(&self) -> FaultCounters {
        self.tally.read()
    }

    fn tell(&self, event: Event) {
        let losses = self.tally.lost.load(Ordering::Relaxed);
        log::log!(event.level(losses), "{event}");
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        if events.len() < EVENTS {
            events.push_back(event);
        } else {
            count(&self.tally.events_dropped);
        }
    }

    /// Tells of the first touch of a hole, or write to read-only memory, of a window.
    fn tell_once(&self, place: &Place, read_only: bool) {
        let (window, address) = (place.base(), place.address());
        let (told, event) = if read_only {
            let event = Event::ReadOnlyWritten { window, address };
            (&place.watched.write_told, event)
        } else {
            let event = Event::HoleTouched { window, address };
            (&place.watched.hole_told, event)
        };
        if !told.swap(true, Ordering::Relaxed) {
            self.tell(event);
        }
    }

    fn place(&self, inside: impl Fn(&Window) -> Option<u64>) -> Option<Place> {
        let windows = self.windows.read().unwrap_or_else(PoisonError::into_inner);
        windows.iter().find_map(|watched| {
            let window = watched.window.upgrade()?;
            let offset = inside(&window)?;
            Some(Place {
                watched: Arc::clone(watched),
                window,
                offset,
            })
        })
    }
}
