//! The command `vm-remap`.

fn main() {}
