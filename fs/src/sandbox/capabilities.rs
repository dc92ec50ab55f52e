//! Owns which of root's capabilities the daemon keeps. Never asks for more.

use std::io;

use caps::{CapSet, Capability, CapsHashSet};

use super::step;
use crate::error::ServeError;

/// What acting for the users of the guest takes: owning and opening their files, and linking one by
/// its descriptor (`CAP_DAC_READ_SEARCH`, which Linux asks for before 6.10).
const NEEDED: [Capability; 7] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_DAC_READ_SEARCH,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
];

/// Drops every capability but the needed ones, for the calling thread and what it starts.
///
/// # Errors
/// What the kernel refused.
pub(super) fn drop_needless() -> Result<(), ServeError> {
    keep()
        .map_err(io::Error::other)
        .map_err(step::<io::Error>("drop capabilities"))
}

fn keep() -> Result<(), caps::errors::CapsError> {
    let needed = CapsHashSet::from(NEEDED);
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        for capability in caps::runtime::thread_all_supported().difference(&needed) {
            caps::drop(None, CapSet::Bounding, *capability)?;
        }
    }
    caps::clear(None, CapSet::Inheritable)?;
    for set in [CapSet::Effective, CapSet::Permitted] {
        let kept = caps::read(None, set)?
            .intersection(&needed)
            .copied()
            .collect();
        caps::set(None, set, &kept)?;
    }
    Ok(())
}
