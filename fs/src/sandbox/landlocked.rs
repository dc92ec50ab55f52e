//! Owns the sandbox of everybody: Landlock rules that let only files of the directory be opened.
//! Never asks for a right.

use std::io;
use std::path::Path;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, PathBeneath, PathFd,
    Ruleset, RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, RulesetError,
    RulesetStatus,
};

use super::step;
use crate::error::ServeError;

/// The newest rules that are asked for; an older kernel enforces those that it knows.
const NEWEST: ABI = ABI::V5;

/// Whether the kernel has Landlock, and it is switched on.
///
/// # Errors
/// It does not, or it is not.
pub(super) fn is_possible() -> Result<(), ServeError> {
    let probe = || {
        Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(ABI::V1))?
            .create()
    };
    probe().map(drop).map_err(|_: RulesetError| missing())
}

fn missing() -> ServeError {
    ServeError::Confine {
        reason: "this kernel has no Landlock (Linux 5.13, and `landlock` in the boot parameter \
                 `lsm`); run as root, or say --sandbox none if the guest is trusted"
            .to_owned(),
    }
}

/// Keeps the calling thread from opening anything outside `directory`, and from TCP.
///
/// # Errors
/// What the kernel refused; that it enforced nothing.
pub(super) fn enter(directory: &Path, readonly: bool) -> Result<(), ServeError> {
    let beneath = PathFd::new(directory)
        .map_err(io::Error::other)
        .map_err(step("open the directory"))?;
    let allowed = if readonly {
        AccessFs::from_read(NEWEST)
    } else {
        AccessFs::from_all(NEWEST)
    };
    let restrict = || {
        rules()?
            .add_rule(PathBeneath::new(beneath, allowed))?
            .restrict_self()
    };
    let status = restrict()
        .map_err(io::Error::other)
        .map_err(step("set Landlock rules"))?;
    match status.ruleset {
        RulesetStatus::NotEnforced => Err(missing()),
        _ => Ok(()),
    }
}

fn rules() -> Result<RulesetCreated, RulesetError> {
    Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .create()
}
