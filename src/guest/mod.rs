//! Owns a tiny real guest on real KVM: RAM, vCPUs in 64-bit ring 3, and a few
//! programs that walk, watch and touch memory. Never registers a slot in the
//! window; that is the caller's, on [`Guest::vm`], with slot numbers from 8 on.
//!
//! ```no_run
//! use vm_remap_cli::guest::{Guest, GuestConfig, Program};
//!
//! # fn main() -> Result<(), vm_remap_cli::guest::GuestError> {
//! let guest = Guest::open(&GuestConfig::default())?;
//! let work = guest.layout().working_set();
//! guest.start(0, Program::Walk { base: work.base, len: 64 << 20 })?;
//! std::thread::sleep(std::time::Duration::from_millis(100));
//! let ran = guest.stop(0)?;
//! println!("{} passes in {:?} of CPU time", ran.passes, ran.cpu);
//! # Ok(())
//! # }
//! ```

mod error;
mod faults;
mod longmode;
mod memory;
mod program;
mod ram;
pub mod stats;
mod stats_fd;
mod thread;
mod vcpu;

use std::sync::Arc;

use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_regs};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_remap::fault::FaultResolver;

pub use self::error::GuestError;
use self::faults::Faults;
pub use self::memory::{BLOCK, GpaRange, Layout, MAX_VCPUS, PAGE, TOP};
use self::memory::{CODE, EXPECTED, OWN_CODE, OWN_CODE_END, PASSES, STALE};
use self::program::Routine;
pub use self::program::{Program, Touch};
use self::ram::Ram;
use self::stats::Stats;
use self::thread::VcpuThread;
pub use self::vcpu::{Access, Ran};

/// How a touch of many pages ended; `Done` carries the number of pages.
pub type Touched = Access<u64>;

/// What guest to make.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct GuestConfig {
    /// RAM at guest-physical 0, in bytes, a multiple of 2 MiB.
    pub ram_len: u64,
    /// How many vCPUs, at most [`MAX_VCPUS`].
    pub vcpus: usize,
    /// A range the guest can reach and the caller registers slots in.
    pub window: Option<GpaRange>,
}

impl Default for GuestConfig {
    /// 80 MiB, one vCPU, no window.
    fn default() -> Self {
        Self {
            ram_len: 80 << 20,
            vcpus: 1,
            window: None,
        }
    }
}

/// A guest. Dropping it stops its vCPUs.
///
/// All methods may be called from any thread; calls that command the same vCPU
/// wait for each other, so a one-shot delays a [`stop`](Guest::stop) behind it.
#[derive(Debug)]
pub struct Guest {
    // Dropped in this order: threads, then what they use.
    vcpus: Vec<Vcpu>,
    vm_stats: Option<Stats>,
    faults: Arc<Faults>,
    ram: Arc<Ram>,
    layout: Layout,
    vm: Arc<VmFd>,
    kvm: Kvm,
}

#[derive(Debug)]
struct Vcpu {
    thread: VcpuThread,
    stats: Option<Stats>,
}

impl Guest {
    /// Makes a guest; its vCPUs wait for a program.
    ///
    /// # Errors
    /// [`GuestError::OpenKvm`] and [`GuestError::CreateVm`] say what the host
    /// lacks and what to do; [`GuestError::Layout`] which figure of `config`
    /// is wrong; the others which step failed.
    pub fn open(config: &GuestConfig) -> Result<Self, GuestError> {
        let layout = Layout::new(config.ram_len, config.window)?;
        if !(1..=MAX_VCPUS).contains(&config.vcpus) {
            let reason = format!("{} vCPUs; it must be 1 to {MAX_VCPUS}", config.vcpus);
            return Err(GuestError::Layout { reason });
        }
        let kvm = Kvm::new().map_err(|e| GuestError::open_kvm(e.errno()))?;
        let vm = kvm
            .create_vm()
            .map_err(|e| GuestError::create_vm(e.errno()))?;
        let vm = Arc::new(vm);
        let ram = Arc::new(Ram::new(Arc::clone(&vm), config.ram_len)?);
        for (gpa, value) in longmode::page_tables(&layout) {
            ram.store(gpa, value)?;
        }
        for (gpa, value) in longmode::gdt() {
            ram.store(gpa, value)?;
        }
        ram.write(CODE, &program::code_page()?)?;
        let cpuid = supported_cpuid(&kvm)?;
        let faults = Arc::<Faults>::default();
        let vcpus = (0..config.vcpus)
            .map(|index| Vcpu::new(index, &vm, &cpuid, &ram, layout.doorbell(), &faults))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            vcpus,
            vm_stats: open_stats(&*vm),
            faults,
            ram,
            layout,
            vm,
            kvm,
        })
    }

    /// The system descriptor, to ask for capabilities.
    #[must_use]
    pub const fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    /// The VM. Slots 0 to 7 are the guest's own.
    #[must_use]
    pub const fn vm(&self) -> &Arc<VmFd> {
        &self.vm
    }

    /// The resolver of the guest's faults; there is one from the first call on, and no fault in its
    /// windows ends a program any more. Windows are the caller's to add.
    #[must_use]
    pub fn resolver(&self) -> &Arc<FaultResolver> {
        self.faults.resolver.get_or_init(|| {
            let ram = Arc::clone(&self.ram);
            FaultResolver::new(Arc::new(
                move |at: vm_remap::GuestAddress, into: &mut [u8]| ram.read(at.0, into).is_ok(),
            ))
        })
    }

    /// Has `tell` called where a vCPU touches what is not there
    /// ([`VcpuFaults::on_absent`](vm_remap::fault::VcpuFaults::on_absent)). It counts from the first
    /// run of a vCPU on that has a resolver, and the first such call is the one that counts.
    pub fn on_absent(
        &self,
        tell: impl Fn(&mut VcpuFd, vm_remap::GuestAddress) -> bool + Send + Sync + 'static,
    ) {
        self.faults.tell.get_or_init(|| Box::new(tell));
    }

    /// A vCPU that no thread runs, with the CPUID of the others, to fill their translations with.
    ///
    /// # Errors
    /// [`GuestError::Kvm`]; also for a second one, since there is one id for it.
    pub fn spare_vcpu(&self) -> Result<VcpuFd, GuestError> {
        let cpuid = supported_cpuid(&self.kvm)?;
        let fd = self
            .vm
            .create_vcpu(self.vcpus.len() as u64)
            .map_err(GuestError::kvm("create a spare vCPU"))?;
        fd.set_cpuid2(&cpuid)
            .map_err(GuestError::kvm("give the spare vCPU its CPUID"))?;
        Ok(fd)
    }

    /// Where everything lies.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// How many vCPUs there are.
    #[must_use]
    pub const fn vcpu_count(&self) -> usize {
        self.vcpus.len()
    }

    /// Starts an endless program; its counters begin at 0.
    ///
    /// # Errors
    /// [`GuestError::Busy`] if the vCPU runs one, [`GuestError::Range`] if the
    /// program may not go where it is sent.
    pub fn start(&self, vcpu: usize, program: Program) -> Result<(), GuestError> {
        let (routine, range) = program.parts();
        self.layout.check(range.0, range.1, PAGE)?;
        let regs = program::registers(routine, vcpu, range, 0, self.layout.doorbell());
        let expected = match program {
            Program::Walk { .. } => 0,
            Program::Watch { expected, .. } => expected,
        };
        self.vcpu(vcpu)?.thread.start(regs, || {
            self.ram.store(counter(vcpu, PASSES), 0)?;
            self.ram.store(counter(vcpu, STALE), 0)?;
            self.ram.store(counter(vcpu, EXPECTED), expected)
        })
    }

    /// Stops an endless program and returns its figures.
    ///
    /// # Errors
    /// [`GuestError::Idle`] if none runs; [`GuestError::Exit`] if the guest
    /// had left its program on its own; [`GuestError::Stuck`] if the vCPU
    /// does not come back, and then it may be asked again.
    pub fn stop(&self, vcpu: usize) -> Result<Ran, GuestError> {
        self.vcpu(vcpu)?.thread.stop()
    }

    /// Passes of the endless program so far, or of the last one.
    ///
    /// # Errors
    /// [`GuestError::NoVcpu`].
    pub fn passes(&self, vcpu: usize) -> Result<u64, GuestError> {
        self.vcpu(vcpu)?;
        self.ram.load(counter(vcpu, PASSES))
    }

    /// Stale reads [`Program::Watch`] has seen so far.
    ///
    /// # Errors
    /// [`GuestError::NoVcpu`].
    pub fn stale(&self, vcpu: usize) -> Result<u64, GuestError> {
        self.vcpu(vcpu)?;
        self.ram.load(counter(vcpu, STALE))
    }

    /// Promises [`Program::Watch`] that its page holds at least `value` from
    /// now on. Call it after the replace returned, never before.
    ///
    /// # Errors
    /// [`GuestError::NoVcpu`].
    pub fn set_expected(&self, vcpu: usize, value: u64) -> Result<(), GuestError> {
        self.vcpu(vcpu)?;
        self.ram.store(counter(vcpu, EXPECTED), value)
    }

    /// Lets the guest load the word at `gpa`, which is 8-byte aligned.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn read_u64(&self, vcpu: usize, gpa: u64) -> Result<Access<u64>, GuestError> {
        self.once(vcpu, Routine::Read, (gpa, 8), 8, 0)
    }

    /// Lets the guest store a word at `gpa`, which is 8-byte aligned.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn write_u64(&self, vcpu: usize, gpa: u64, value: u64) -> Result<Access<()>, GuestError> {
        Ok(match self.once(vcpu, Routine::Write, (gpa, 8), 8, value)? {
            Access::Done(_) => Access::Done(()),
            Access::Fault => Access::Fault,
            Access::Mmio { gpa, write } => Access::Mmio { gpa, write },
            Access::Stopped(report) => Access::Stopped(report),
        })
    }

    /// Lets the guest access each 4 KiB page of the range once, in order, up
    /// to the first that faults or is MMIO. A write stores the page's own
    /// guest-physical address in its first word.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn touch(
        &self,
        vcpu: usize,
        base: u64,
        len: u64,
        kind: Touch,
    ) -> Result<Touched, GuestError> {
        let routine = match kind {
            Touch::Read => Routine::TouchRead,
            Touch::Write => Routine::TouchWrite,
        };
        self.once(vcpu, routine, (base, len), PAGE, 0)
    }

    /// Lets the guest run `body` once, with the ends of a range in rsi and rdi and `value` in rax;
    /// rdx is taken, and `Done` carries rax as the body left it.
    ///
    /// # Errors
    /// As [`start`](Self::start), and [`GuestError::Assemble`].
    pub fn execute(
        &self,
        vcpu: usize,
        range: GpaRange,
        value: u64,
        body: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Result<Access<u64>, GuestError> {
        let range = (range.base, range.len);
        self.layout.check(range.0, range.1, 1)?;
        let entry = OWN_CODE.wrapping_add((vcpu as u64).wrapping_mul(PAGE));
        let code = program::own(body, entry)?;
        if entry >= OWN_CODE_END {
            let count = self.vcpus.len();
            return Err(GuestError::NoVcpu { vcpu, count });
        }
        let doorbell = self.layout.doorbell();
        let regs = kvm_regs {
            rip: entry,
            ..program::registers(Routine::Read, vcpu, range, value, doorbell)
        };
        self.vcpu(vcpu)?
            .thread
            .once_after(regs, || self.ram.write(entry, &code))
    }

    fn once(
        &self,
        vcpu: usize,
        routine: Routine,
        range: (u64, u64),
        align: u64,
        value: u64,
    ) -> Result<Access<u64>, GuestError> {
        self.layout.check(range.0, range.1, align)?;
        let regs = program::registers(routine, vcpu, range, value, self.layout.doorbell());
        self.vcpu(vcpu)?.thread.once(regs)
    }

    /// The VM's statistics; `None` if the kernel has none (before 5.14).
    #[must_use]
    pub fn vm_stats(&self) -> Option<Stats> {
        self.vm_stats.as_ref()?.try_clone().ok()
    }

    /// A vCPU's statistics; `None` if the kernel has none (before 5.14).
    #[must_use]
    pub fn vcpu_stats(&self, vcpu: usize) -> Option<Stats> {
        self.vcpus.get(vcpu)?.stats.as_ref()?.try_clone().ok()
    }

    fn vcpu(&self, vcpu: usize) -> Result<&Vcpu, GuestError> {
        let count = self.vcpus.len();
        self.vcpus
            .get(vcpu)
            .ok_or(GuestError::NoVcpu { vcpu, count })
    }
}

impl Vcpu {
    fn new(
        index: usize,
        vm: &VmFd,
        cpuid: &CpuId,
        ram: &Arc<Ram>,
        doorbell: u64,
        faults: &Arc<Faults>,
    ) -> Result<Self, GuestError> {
        let fd = vm
            .create_vcpu(index as u64)
            .map_err(GuestError::kvm("create a vCPU"))?;
        enter(&fd, cpuid)?;
        let stats = open_stats(&fd);
        let thread = VcpuThread::spawn(index, fd, Arc::clone(ram), doorbell, faults)?;
        Ok(Self { thread, stats })
    }
}

fn supported_cpuid(kvm: &Kvm) -> Result<CpuId, GuestError> {
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(GuestError::kvm("ask which CPUID leaves KVM supports"))
}

/// CPUID first: KVM checks the registers against it.
fn enter(fd: &VcpuFd, cpuid: &CpuId) -> Result<(), GuestError> {
    fd.set_cpuid2(cpuid)
        .map_err(GuestError::kvm("give the vCPU its CPUID"))?;
    let mut sregs = fd
        .get_sregs()
        .map_err(GuestError::kvm("read the vCPU's special registers"))?;
    longmode::enter(&mut sregs);
    longmode::enter_smap(&mut sregs, cpuid);
    let xcrs = longmode::enter_avx(&mut sregs, cpuid);
    fd.set_sregs(&sregs)
        .map_err(GuestError::kvm("put the vCPU into 64-bit ring 3"))?;
    match xcrs {
        Some(xcrs) => fd
            .set_xcrs(&xcrs)
            .map_err(GuestError::kvm("let the vCPU use AVX")),
        None => Ok(()),
    }
}

fn counter(vcpu: usize, offset: u32) -> u64 {
    Layout::counters(vcpu).wrapping_add(offset.into())
}

/// Statistics are for measuring; a kernel without them can still run a guest.
fn open_stats(of: &impl std::os::fd::AsRawFd) -> Option<Stats> {
    Stats::open(of)
        .inspect_err(|error| log::warn!("cannot open KVM statistics: {error}"))
        .ok()
}
