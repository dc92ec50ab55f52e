//! Owns the thread that has nothing to do with windows: it maps and unmaps memory wherever the
//! kernel likes, as heaps and stacks do, and looks after what it keeps there.

use vm_memory::{MmapRegion, VolatileMemory};
use vm_remap_cli::guest::PAGE;

use crate::scene::{PAGES, Scene};

/// No word of a blob.
const CANARY: u64 = 0x0bad_cafe_0bad_cafe;
const MOST: u64 = 24;

/// Comes and goes until the end; says how often.
pub(crate) fn come_and_go(scene: &Scene) -> String {
    let _alarm = scene.alarm();
    let mut random = scene.random(1000);
    let mut kept: Vec<MmapRegion> = Vec::new();
    let mut mapped = 0_u64;
    while scene.goes_on() {
        if kept.len() as u64 == MOST {
            let gone = kept.swap_remove(usize::try_from(random(MOST)).unwrap());
            check(&gone);
        }
        let len = (1 + random(64)) * PAGE;
        let region: MmapRegion = MmapRegion::new(usize::try_from(len).unwrap()).unwrap();
        let address = region.as_ptr().addr() as u64;
        for arena in &scene.arenas {
            let apart = address + len <= *arena || arena + PAGES * PAGE <= address;
            assert!(
                apart,
                "a stranger was given {address:#x} of the arena at {arena:#x}"
            );
        }
        for page in words(&region) {
            region.get_ref(page).unwrap().store(CANARY);
        }
        kept.push(region);
        mapped += 1;
    }
    kept.iter().for_each(check);
    assert!(mapped > 0, "no stranger came");
    format!("{mapped} strangers")
}

fn words(region: &MmapRegion) -> impl Iterator<Item = usize> {
    (0..region.size()).step_by(4096)
}

/// What a stranger has kept is what it wrote.
fn check(region: &MmapRegion) {
    for page in words(region) {
        let found: u64 = region.get_ref(page).unwrap().load();
        assert_eq!(found, CANARY, "a stranger's memory was written");
    }
}
