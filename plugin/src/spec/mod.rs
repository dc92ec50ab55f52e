//! Owns what an operator writes to say how memory and windows are to be: `key=value` texts, read
//! and written. Never opens a window, and never judges what a VMM supports.
//!
//! A VMM that has its own `--memory` hands the keys that it does not know to [`WindowSpec::set`]:
//!
//! ```
//! use vm_remap::GuestAddress;
//! use vm_remap::spec::WindowSpec;
//!
//! let mut spec = WindowSpec::default();
//! for (key, value) in [("size", "4G"), ("backend", "fixed"), ("zap", "precise")] {
//!     let ours = spec.set(key, value)?;
//!     assert_eq!(ours, WindowSpec::KEYS.contains(&key));
//! }
//! assert_eq!(spec.to_string(), "backend=fixed,zap=precise");
//! let _options = spec.options(GuestAddress(4 << 30), 1 << 30);
//! # Ok::<(), vm_remap::spec::SpecError>(())
//! ```
//!
//! A VMM without one reads all of it as a [`MemorySpec`]. Other options of the same form can be
//! taken apart with [`fields`].

mod error;
mod memory;
mod syntax;
mod values;
mod window;
mod words;

#[cfg(test)]
mod tests;

pub use error::SpecError;
pub use memory::{HotplugMethod, MemorySpec};
pub use syntax::{Field, fields, unknown};
pub use values::{parse_size, parse_toggle, size_text};
pub use window::WindowSpec;
