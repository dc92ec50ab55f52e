//! cloud-hypervisor's own `Hypervisor` and `Vm`, decorated: its memory changes while the memslots
//! rest.
//!
//! [`RemapHypervisor`] stands around the hypervisor that `hypervisor::new()` returns, and each VM
//! that it makes is a [`RemapVm`]. Everything passes to the decorated ones, until the VMM opens a
//! window with [`RemapVm::open_window`]: what `create_user_memory_region` puts inside it from then
//! on becomes a mapping of the window, and `remove_user_memory_region` takes it out again, both
//! without a memslot call. With [`RemapOptions::vm_descriptor`], precise slot zapping is switched
//! on where KVM offers it, so that regions outside windows stop emptying the guest as well.
//!
//! ```no_run
//! use vm_remap::{BackendKind, GuestAddress};
//! use vm_remap_cloud_hypervisor::{RemapHypervisor, RemapOptions, RemapVm};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use hypervisor::Hypervisor;
//!
//! let options = RemapOptions::new(BackendKind::Fixed);
//! let hypervisor = RemapHypervisor::wrap(hypervisor::new()?, options)?;
//! let vm = hypervisor.create_vm(hypervisor::HypervisorVmConfig::default())?;
//!
//! // Later, with nothing but the VMM's `Arc<dyn Vm>`:
//! if let Some(remap) = RemapVm::of(vm.as_ref()) {
//!     let window = remap.open_window(GuestAddress(64 << 30), 4 << 30)?;
//!     // vm.create_user_memory_region(...) inside it maps.
//!     remap.close_window(window)?;
//! }
//! # Ok(())
//! # }
//! ```
//!
//! With [`BackendKind::Memslot`](vm_remap::BackendKind::Memslot) and no window, a decorated VM is
//! what it was. A guest access inside a window that KVM cannot serve does not end the vCPU: the
//! library's fault resolver answers it ([`RemapVm::resolver`]); only where the window's policy is to
//! stop, or the address cannot be found, `Vcpu::run` returns an error that prints the
//! [`Report`](vm_remap::fault::Report). A [`SigbusHook`](vm_remap::fault::SigbusHook) finds addresses
//! that cannot be computed; it is the VMM's choice, and this crate installs none.
//!
//! It is for KVM on x86-64. Where the hypervisor crate is built with `tdx` or `sev_snp`, this crate
//! does not compile: memory that is the guest's alone cannot be exchanged behind it.

#[cfg(not(target_arch = "x86_64"))]
compile_error!("vm-remap-cloud-hypervisor decorates KVM on x86-64 only");
#[cfg(any(feature = "tdx", feature = "sev_snp"))]
compile_error!(
    "vm-remap-cloud-hypervisor cannot be built with tdx or sev_snp: a window cannot hold memory \
     that is the guest's alone; build cloud-hypervisor without them, or without this crate"
);

mod dirty;
mod error;
mod hypervisor;
mod numbers;
mod ops;
mod options;
mod provider;
mod registry;
mod vcpu;
mod vm;
mod zap;

pub use crate::error::RemapError;
pub use crate::hypervisor::RemapHypervisor;
pub use crate::options::RemapOptions;
pub use crate::vm::RemapVm;
