//! Owns how the daemon is kept inside the shared directory. Never serves it.
//!
//! That the passthrough file system names files by descriptor and follows no link is the first wall.
//! This is the second, for the day when the first has a hole.

mod capabilities;
mod landlocked;
mod namespace;

use std::path::Path;

use crate::error::ServeError;

/// How the daemon is kept inside the shared directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Sandbox {
    /// A mount namespace for root, else Landlock; no sandbox is an error
    Auto,
    /// A mount namespace with the directory for its root; for root
    Namespace,
    /// Landlock: no file outside the directory can be opened (Linux 5.13)
    Landlock,
    /// Only the rule that files are named by descriptor
    None,
}

/// A sandbox that this host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Confinement {
    Namespace,
    Landlock,
    None,
}

impl Confinement {
    /// Decides before anything is served.
    ///
    /// # Errors
    /// A sandbox that was asked for and that this host or user does not have; any at all, if none
    /// was named.
    pub(crate) fn choose(asked: Sandbox, directory: &Path) -> Result<Self, ServeError> {
        match asked {
            Sandbox::None => Ok(Self::None),
            Sandbox::Namespace => namespace::is_possible(directory).map(|()| Self::Namespace),
            Sandbox::Landlock => landlocked::is_possible().map(|()| Self::Landlock),
            Sandbox::Auto => namespace::is_possible(directory)
                .map(|()| Self::Namespace)
                .or_else(|_| landlocked::is_possible().map(|()| Self::Landlock))
                .map_err(|_| ServeError::Confine {
                    reason: "only root can make a mount namespace, and this kernel has no \
                             Landlock; run as root, or say --sandbox none if the guest is trusted"
                        .to_owned(),
                }),
        }
    }

    /// What the operator is told.
    pub(crate) fn description(self) -> &'static str {
        match self {
            Self::Namespace => "a mount namespace of its own",
            Self::Landlock => "Landlock",
            Self::None => "no sandbox",
        }
    }

    /// Confines the calling thread, and all that it starts from now on, to `directory`, which is the
    /// working directory afterwards. There is no way back.
    ///
    /// # Errors
    /// What the kernel refused. The process is confined in part then, and should end.
    pub(crate) fn enter(self, directory: &Path, readonly: bool) -> Result<(), ServeError> {
        rustix::process::chdir(directory).map_err(step("enter the directory"))?;
        rustix::thread::set_no_new_privs(true).map_err(step("give up new privileges"))?;
        match self {
            Self::Namespace => namespace::enter(directory, readonly)?,
            Self::Landlock => landlocked::enter(directory, readonly)?,
            Self::None => {}
        }
        capabilities::drop_needless()
    }
}

/// Names the step that the kernel refused.
fn step<E: Into<std::io::Error>>(step: &'static str) -> impl FnOnce(E) -> ServeError {
    move |error| ServeError::ConfineStep {
        step,
        source: error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_is_none_only_if_asked_for() {
        assert_eq!(
            Confinement::choose(Sandbox::None, Path::new("/srv")).unwrap(),
            Confinement::None
        );
        if let Ok(chosen) = Confinement::choose(Sandbox::Auto, Path::new("/srv")) {
            assert_ne!(chosen, Confinement::None);
        }
    }
}
