//! Owns the program that fuzzes [`vm_remap_fuzz::specs`]. Never does anything else.

#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| vm_remap_fuzz::specs::run(data));

#[cfg(not(fuzzing))]
fn main() {
    vm_remap_fuzz::reproduce(vm_remap_fuzz::specs::run);
}
