//! Owns a list of changes that are to be made together. Never makes them.

use super::pins::OnPinned;
use crate::range::PageRange;
use crate::source::{Protection, Source};

/// One change of a window.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Change<'fd> {
    Map {
        range: PageRange,
        source: Source<'fd>,
        protection: Protection,
    },
    Replace {
        range: PageRange,
        source: Source<'fd>,
        protection: Protection,
    },
    Unmap {
        range: PageRange,
    },
}

impl Change<'_> {
    /// Whether it maps something.
    pub(crate) fn makes_mapping(&self) -> bool {
        !matches!(self, Self::Unmap { .. })
    }

    pub(crate) fn range(&self) -> PageRange {
        match *self {
            Self::Map { range, .. } | Self::Replace { range, .. } | Self::Unmap { range } => range,
        }
    }
}

/// Changes of one window that [`Window::commit`](crate::Window::commit) makes in their order, all
/// of them or none. A later one sees what an earlier one did.
#[derive(Clone, Debug, Default)]
pub struct Batch<'fd> {
    pub(crate) changes: Vec<Change<'fd>>,
    pub(crate) on_pinned: Option<OnPinned>,
}

impl<'fd> Batch<'fd> {
    /// No change yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds what [`Window::map`](crate::Window::map) does.
    #[must_use]
    pub fn map(self, range: PageRange, source: &Source<'fd>, protection: Protection) -> Self {
        self.with(Change::Map {
            range,
            source: *source,
            protection,
        })
    }

    /// Adds what [`Window::replace`](crate::Window::replace) does.
    #[must_use]
    pub fn replace(self, range: PageRange, source: &Source<'fd>, protection: Protection) -> Self {
        self.with(Change::Replace {
            range,
            source: *source,
            protection,
        })
    }

    /// Adds what [`Window::unmap`](crate::Window::unmap) does.
    #[must_use]
    pub fn unmap(self, range: PageRange) -> Self {
        self.with(Change::Unmap { range })
    }

    /// What the batch does when it meets a [`Pin`](crate::Pin), in place of what the window was
    /// opened with.
    #[must_use]
    pub fn on_pinned(mut self, on_pinned: OnPinned) -> Self {
        self.on_pinned = Some(on_pinned);
        self
    }

    /// How many changes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    fn with(mut self, change: Change<'fd>) -> Self {
        self.changes.push(change);
        self
    }
}
