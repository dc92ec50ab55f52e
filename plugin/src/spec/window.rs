//! Owns what can be written about a window: its backend, sizes, holes and zaps. Never opens one.

use std::fmt;
use std::str::FromStr;

use super::error::SpecError;
use super::syntax::fields;
use super::values::{parse_size, size_text, whole_pages};
use crate::backend::BackendKind;
use crate::range::GuestAddress;
use crate::window::holes::HolePolicy;
use crate::window::options::{WindowOptions, Zap};

/// What an operator wrote about a window, key by key. What was not written stays open.
///
/// As text it is `backend=fixed,window=8G,segment=1G,hole=trap,zap=precise`, in any order. With
/// the feature `serde` it is an object with the same keys, of which any can be missing; sizes are
/// numbers of bytes: `{"backend":"fixed","window":8589934592}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct WindowSpec {
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    backend: Option<BackendKind>,
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    #[cfg_attr(feature = "serde", serde(deserialize_with = "read::window"))]
    window: Option<u64>,
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    #[cfg_attr(feature = "serde", serde(deserialize_with = "read::segment"))]
    segment: Option<u64>,
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    hole: Option<HolePolicy>,
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    zap: Option<Zap>,
}

impl WindowSpec {
    /// The keys, in the order in which they are written.
    pub const KEYS: [&'static str; 5] = ["backend", "window", "segment", "hole", "zap"];

    /// The keys and what each can be, in one line for a help text.
    pub const SYNTAX: &'static str = "backend=fixed|memslot,window=<size>,segment=<size>,\
                                      hole=trap|zero|stop,zap=all|precise";

    /// Takes one key and its value, where the key is one of [`KEYS`](Self::KEYS); says whether it
    /// was. A key that is not leaves everything as it is.
    ///
    /// Sizes are numbers of bytes, with `K`, `M` or `G` behind them for binary multiples.
    ///
    /// # Errors
    /// [`SpecError::Twice`] for a key that was taken before, [`SpecError::Backend`] for a backend
    /// that there is none of, [`SpecError::NotPages`] for a size that is 0 or no multiple of 4 KiB,
    /// [`SpecError::Value`] for any other value that cannot be read. Nothing has changed then.
    pub fn set(&mut self, key: &str, value: &str) -> Result<bool, SpecError> {
        match key {
            "backend" => put(&mut self.backend, key, || Ok(value.parse()?))?,
            "window" => put(&mut self.window, key, || pages("window", value))?,
            "segment" => put(&mut self.segment, key, || pages("segment", value))?,
            "hole" => put(&mut self.hole, key, || value.parse())?,
            "zap" => put(&mut self.zap, key, || value.parse())?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// How to open a window of `len` bytes at `base` as this says; what was not written is as
    /// [`WindowOptions::new`] has it. [`window`](Self::window) is not looked at: the caller, who
    /// knows what the window is for, decides on `len`.
    #[must_use]
    pub fn options(&self, base: GuestAddress, len: u64) -> WindowOptions {
        let options = WindowOptions::new(base, len)
            .backend(self.backend.unwrap_or_default())
            .holes(self.hole.unwrap_or_default())
            .zap(self.zap.unwrap_or_default());
        match self.segment {
            Some(bytes) => options.segment_size(bytes),
            None => options,
        }
    }

    /// Whether nothing was written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The backend, if one was written.
    #[must_use]
    pub fn backend(&self) -> Option<BackendKind> {
        self.backend
    }

    /// The size of the window in bytes, if one was written: a multiple of 4 KiB, above 0.
    #[must_use]
    pub fn window(&self) -> Option<u64> {
        self.window
    }

    /// The size of a segment in bytes, if one was written: a multiple of 4 KiB, above 0.
    #[must_use]
    pub fn segment(&self) -> Option<u64> {
        self.segment
    }

    /// What the guest is to find in a hole, if that was written.
    #[must_use]
    pub fn holes(&self) -> Option<HolePolicy> {
        self.hole
    }

    /// What deleting a memslot is to drop, if that was written.
    #[must_use]
    pub fn zap(&self) -> Option<Zap> {
        self.zap
    }
}

fn put<T>(
    place: &mut Option<T>,
    key: &str,
    value: impl FnOnce() -> Result<T, SpecError>,
) -> Result<(), SpecError> {
    if place.is_some() {
        let key = key.to_owned();
        return Err(SpecError::Twice { key });
    }
    *place = Some(value()?);
    Ok(())
}

fn pages(key: &'static str, value: &str) -> Result<u64, SpecError> {
    whole_pages(key, parse_size(key, value)?)
}

impl FromStr for WindowSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let mut spec = Self::default();
        for field in fields(text, &Self::KEYS)? {
            spec.set(field.key, &field.value)?;
        }
        Ok(spec)
    }
}

impl fmt::Display for WindowSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values = [
            self.backend.map(|backend| backend.to_string()),
            self.window.map(size_text),
            self.segment.map(size_text),
            self.hole.map(|hole| hole.to_string()),
            self.zap.map(|zap| zap.to_string()),
        ];
        let mut comma = "";
        for (key, value) in Self::KEYS.iter().zip(values) {
            if let Some(value) = value {
                write!(f, "{comma}{key}={value}")?;
                comma = ",";
            }
        }
        Ok(())
    }
}

/// Sizes that come as numbers, with the same checks.
#[cfg(feature = "serde")]
mod read {
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer};

    use super::whole_pages;

    pub(super) fn window<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
        pages("window", from)
    }

    pub(super) fn segment<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
        pages("segment", from)
    }

    fn pages<'de, D: Deserializer<'de>>(
        key: &'static str,
        from: D,
    ) -> Result<Option<u64>, D::Error> {
        let bytes: Option<u64> = Option::deserialize(from)?;
        let checked = bytes.map(|bytes| whole_pages(key, bytes)).transpose();
        checked.map_err(D::Error::custom)
    }
}
