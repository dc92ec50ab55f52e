//! Owns the thread that looks for gaps in the arenas, over and over.

use vm_remap_cli::guest::PAGE;

use crate::eyes::is_mapped;
use crate::scene::{PAGES, Scene};

/// Looks until the end; says how often.
pub(crate) fn look_for_gaps(scene: &Scene) -> String {
    let _alarm = scene.alarm();
    let mut looks = 0_u64;
    while scene.goes_on() {
        for arena in &scene.arenas {
            assert!(is_mapped(*arena, PAGES * PAGE), "a gap, at look {looks}");
            looks += 1;
        }
    }
    assert!(looks > 0, "nobody looked");
    format!("{looks} looks for gaps")
}
