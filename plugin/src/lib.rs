//! Change what host memory stands behind a guest-physical range while the guest runs, and leave
//! the memslot alone.
//!
//! A VMM maps and unmaps memory under a running guest all the time: virtio-gpu blobs, a virtio-fs
//! DAX window, ivshmem, pmem. The default path deletes a KVM memslot and creates another, and
//! KVM then drops every translation of the VM. A [`Window`] keeps its memslots registered and
//! changes the host mapping under them with `mmap(MAP_FIXED)` or `mremap`: KVM drops exactly the
//! changed range, synchronously, in the calling task. The default path is here too, as the
//! backend [`memslot`](BackendKind::Memslot), for comparison and as a fallback.
//!
//! The rules that every part of the library keeps:
//!
//! 1. **The arena has no gap.** Each page of the address space behind a window is a mapping or a
//!    hole at every instant, also while a system call fails.
//! 2. **Slots rest.** With [`fixed`](BackendKind::Fixed), map, replace and unmap make no memslot
//!    call once a segment is registered.
//! 3. **When a call returns, the old memory is out of reach** of every vCPU and every DMA listener,
//!    and the new one is visible.
//! 4. **Replace is atomic for the guest**, with `fixed`.
//! 5. **A failed call changes nothing**, or its error names the state: [`StateAfter`].
//! 6. **Nobody outside the VMM is believed**: not a length, not a descriptor.
//! 7. **No reference into guest memory**: the library hands out no `&[u8]` of it. It reads and
//!    writes guest memory through a [`Pin`] only, which also keeps it mapped.
//! 8. **No signal**: memory that has vanished under an access is an error.
//!
//! Features: `kvm` implements [`SlotProvider`] for `kvm_ioctls::VmFd`; `fault` resolves what a guest
//! touches where it should not; `vfio` has a [`DmaListener`] for `vfio_ioctls::VfioContainer`;
//! `vm-memory` makes a window a region of vm-memory's guest memory, so that devices find buffers
//! inside it; `vhost-user` maps what vhost-user backends ask for, and `event-manager` drives that in
//! event-manager's loop; `serde` makes [`LayoutRecord`] and others serialisable. The library logs through the
//! `log` facade.
//!
//! The files lie in floors, each importing only downward: `range`, `error`, `host` and `sync`;
//! `source` and `layout`; `arena`, `slots` and `dma`; `backend`; `window`; `access`; `fault`; `vhost_user`.

#![cfg_attr(
    test,
    expect(
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        reason = "tests compute with small figures of their own"
    )
)]

#[cfg(test)]
extern crate self as vm_remap;

mod access;
mod arena;
mod backend;
mod dma;
mod error;
#[cfg(feature = "fault")]
pub mod fault;
pub mod host;
mod layout;
mod range;
mod slots;
mod source;
mod sync;
#[cfg(feature = "vhost-user")]
pub mod vhost_user;
mod window;

pub use access::pin::Pin;
#[cfg(feature = "vm-memory")]
pub use access::region::{Indirect, WindowRegion};
#[cfg(feature = "vm-memory")]
pub use access::{
    mixed::MixedRegion,
    tracking::{Pinning, PinningSlice},
};
pub use backend::BackendKind;
#[cfg(feature = "vfio")]
pub use dma::vfio::VfioDma;
pub use dma::{DmaListener, DmaListenerId, DmaMapping};
pub use error::{Error, StateAfter};
pub use layout::record::{LayoutRecord, MappingRecord};
pub use layout::{Mapping, Origin};
pub use range::{GuestAddress, PAGE_SIZE, PageRange};
#[cfg(feature = "kvm")]
pub use slots::kvm_prefault::KvmSlots;
pub use slots::{Slot, SlotNumbers, SlotProvider};
pub use source::descriptor::DescriptorKind;
pub use source::policy::DescriptorPolicy;
pub use source::prefault::Prefault;
pub use source::{Protection, Source};
pub use window::batch::Batch;
pub use window::counters::Counters;
pub use window::dirty::SlotDirtyLog;
pub use window::holes::HolePolicy;
#[cfg(feature = "fault")]
pub use window::holes::ReadOnlyWrites;
pub use window::options::{WindowOptions, Zap};
pub use window::pins::OnPinned;
pub use window::prepared::PreparedBatch;
#[cfg(feature = "fault")]
pub use window::touch::{Lost, Obstacle};
pub use window::{Found, OnWorkers, Window};
