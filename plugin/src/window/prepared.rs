//! Owns changes that were prepared ahead of their commit, and nothing of the window until then.

use std::sync::Arc;

use super::Window;
use super::batch::Batch;
use super::counters::count;
use super::pins::OnPinned;
use super::prepare::{Placement, Ready, Run, map_elsewhere};
use super::recovery::OnFailure;
use crate::arena::areas::{Areas, Room};
use crate::arena::{Arena, Staged};
use crate::error::Error;

/// Changes of one window that are ready to be made: [`Window::prepare`] made it, and
/// [`Window::commit_prepared`] makes the changes.
///
/// Dropping it undoes the preparation; the window has seen nothing of it. It can be sent to another
/// thread, and it borrows nothing: the descriptors of its sources may be closed. Host memory without
/// a descriptor must stay, see [`Source::host_memory`](crate::Source::host_memory). What it holds
/// counts against `vm.max_map_count` until it is gone.
#[derive(Debug)]
pub struct PreparedBatch {
    ready: Ready<'static>,
    on_pinned: OnPinned,
    _room: Option<Room>,
    /// The window's own, to know it by.
    areas: Arc<Areas>,
}

impl Window {
    /// Does the slow part of [`commit`](Self::commit), and changes nothing: sources are checked and
    /// mapped elsewhere, their pages are brought in or made huge as
    /// [`Source::prefault`](crate::Source::prefault) and
    /// [`Source::collapse`](crate::Source::collapse) ask. It takes no lock of the window, so a
    /// thread of the VMM's own can do it while others use the window; what is left for the thread
    /// that commits is a move of page tables.
    ///
    /// ```
    /// # #[cfg(feature = "kvm")]
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use std::os::fd::AsFd;
    /// # use std::sync::Arc;
    /// # use vm_remap::{Batch, GuestAddress, PageRange, Prefault, Protection, SlotNumbers, Source, WindowOptions};
    /// # let Ok(kvm) = kvm_ioctls::Kvm::new() else { return Ok(()) };
    /// # let vm = Arc::new(kvm.create_vm()?);
    /// # let window = WindowOptions::new(GuestAddress(4 << 30), 1 << 30)
    /// #     .open(vm, SlotNumbers::new(16..32))?;
    /// # let blob = rustix::fs::memfd_create("blob", rustix::fs::MemfdFlags::CLOEXEC)?;
    /// # rustix::fs::ftruncate(&blob, 2 << 20)?;
    /// let window = Arc::new(window);
    /// let helper = std::thread::spawn({
    ///     let window = Arc::clone(&window);
    ///     move || {
    ///         let source = Source::descriptor(blob.as_fd(), 0).prefault(Prefault::HostWrite);
    ///         let range = PageRange::new(0, 2 << 20)?;
    ///         window.prepare(&Batch::new().map(range, &source, Protection::ReadWrite))
    ///     }
    /// });
    /// // This thread goes on; when the pages are there, it puts them in place.
    /// let prepared = helper.join().map_err(|_| "the helper panicked")??;
    /// window.commit_prepared(prepared)?;
    /// # Ok(())
    /// # }
    /// # #[cfg(not(feature = "kvm"))]
    /// # fn main() {}
    /// ```
    ///
    /// # Errors
    /// What is wrong with a source or a range, as [`commit`](Self::commit) has it. What lies in the
    /// window is judged by [`commit_prepared`](Self::commit_prepared), not here.
    pub fn prepare(&self, batch: &Batch<'_>) -> Result<PreparedBatch, Error> {
        let prepared = self.make_ready(&batch.changes).and_then(|(ready, room)| {
            let room = match (room, batch.changes.first()) {
                // One change has none of its own, and this one can be kept for long.
                (None, Some(one)) if one.makes_mapping() => {
                    Some(self.shared.areas.room_for(1, one.range())?)
                }
                (room, _) => room,
            };
            Ok(PreparedBatch {
                ready: own(ready, &self.shared.arena)?,
                on_pinned: batch.on_pinned.unwrap_or(self.shared.on_pinned),
                _room: room,
                areas: Arc::clone(&self.shared.areas),
            })
        });
        if prepared.is_err() {
            count(&self.shared.tally.failures);
        }
        prepared
    }

    /// Makes the changes of `prepared`, all or none, as [`commit`](Self::commit) does: what has
    /// happened to the window since it was prepared counts. The sources are not looked at again: a
    /// file that has shrunk meanwhile has no pages there, as one that shrinks after a `map`.
    ///
    /// # Errors
    /// [`Error::OtherWindow`] where another window prepared it; [`Error::Occupied`] and all others
    /// that depend on what lies in the window, as `commit` has them. The preparation is gone then.
    pub fn commit_prepared(&self, prepared: PreparedBatch) -> Result<(), Error> {
        let made = if Arc::ptr_eq(&prepared.areas, &self.shared.areas) {
            self.finish(prepared.ready, OnFailure::PutBack, prepared.on_pinned)
        } else {
            Err(Error::OtherWindow)
        };
        count(match made {
            Ok(()) => &self.shared.tally.batches,
            Err(_) => &self.shared.tally.failures,
        });
        made
    }
}

/// The same with nothing borrowed: what would be mapped in place is mapped elsewhere.
fn own(ready: Ready<'_>, arena: &Arena) -> Result<Ready<'static>, Error> {
    let own = |run: Run<'_>| {
        let range = run.range;
        let elsewhere = |fd, offset, protection| -> Result<Staged, Error> {
            map_elsewhere(range, fd, offset, protection, arena.site(range))
        };
        let placement = match run.placement {
            Placement::Hole => Placement::Hole,
            Placement::Staged(staged) => Placement::Staged(staged),
            Placement::Direct {
                fd,
                offset,
                protection,
            } => Placement::Staged(elsewhere(fd, offset, protection)?),
        };
        Ok(Run { range, placement })
    };
    Ok(Ready {
        runs: ready.runs.into_iter().map(own).collect::<Result<_, _>>()?,
        changes: ready.changes,
        joined: ready.joined,
    })
}
