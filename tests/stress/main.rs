//! Owns the test that lets everything happen at once, for a while, and watches the promises the
//! whole time: threads that change windows, a guest that touches them, strangers that map memory at
//! random, pins, files that shrink, a dirty log. With and without a resolver of the guest's faults.
//! Counts and compares; nothing is timed but the end.
//!
//! One file for each kind of thread. Another kind is another file, and a line in [`all_at_once`]:
//! each is given the [`Scene`](scene::Scene) and goes on for as long as the scene says.
//!
//! `VM_REMAP_STRESS_SECONDS` lets it run longer than 5 seconds, `VM_REMAP_STRESS_SEED` otherwise.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "tests compute with small figures of their own"
)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../../plugin/tests/faults/eyes.rs"]
#[expect(
    dead_code,
    unreachable_pub,
    clippy::cast_possible_truncation,
    reason = "shared with the tests of the library"
)]
mod eyes;
#[path = "../guest_support/mod.rs"]
#[expect(
    dead_code,
    reason = "slots without a window are for the guest's own tests"
)]
mod guest_support;
mod logger;
mod looker;
mod mapper;
mod pinner;
mod scene;
mod shrinker;
mod stranger;
mod touch;

use std::io::Write;
use std::thread;

use crate::scene::{Scene, Setting, mapped_files};

#[test]
fn everything_at_once_breaks_no_promise() {
    let test = "everything_at_once_breaks_no_promise";
    if !eyes::work() {
        guest_support::skip(test, "process_vm_readv is not allowed here");
        return;
    }
    for setting in Setting::all() {
        let before = mapped_files();
        let Some(scene) = Scene::open(test, setting) else {
            return;
        };
        all_at_once(&scene);
        scene.close();
        assert_eq!(
            mapped_files(),
            before,
            "{setting:?}: mappings are left behind"
        );
    }
}

fn all_at_once(scene: &Scene) {
    scene.start_guest();
    let said = thread::scope(|scope| {
        let mappers: Vec<_> = (0..scene::MAPPERS)
            .map(|thread| scope.spawn(move || mapper::change(scene, thread)))
            .collect();
        let others = [
            scope.spawn(|| stranger::come_and_go(scene)),
            scope.spawn(|| looker::look_for_gaps(scene)),
            scope.spawn(|| touch::read(scene)),
            scope.spawn(|| touch::write(scene)),
            scope.spawn(|| pinner::pin(scene)),
            scope.spawn(|| shrinker::shrink_and_grow(scene)),
            scope.spawn(|| logger::log(scene)),
        ];
        // One that fails ends the others.
        let ended = mappers.into_iter().chain(others).map(|one| one.join());
        ended.collect::<Result<Vec<String>, _>>()
    });
    let said = said.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    scene.stop_guest();
    let mut stderr = std::io::stderr();
    writeln!(stderr, "{:?}: {}", scene.setting, said.join("; ")).unwrap();
}
