//! Owns the test that runs every kept input through its target: seeds, and what once broke
//! something. Never looks for new ones.

use std::fs;
use std::path::Path;

use vm_remap_fuzz::TARGETS;

#[test]
fn kept_inputs_break_nothing() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    let mut runs = 0;
    for (name, target) in TARGETS {
        for entry in fs::read_dir(seeds.join(name)).unwrap() {
            let path = entry.unwrap().path();
            target(&fs::read(&path).unwrap());
            runs += 1;
        }
    }
    assert!(runs >= TARGETS.len(), "no inputs: {runs}");
}
