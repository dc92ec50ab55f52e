//! Owns the threads that let the guest touch any page of any window, one at a time, and judge what
//! comes of it. A hole ends in an exit, and the guest goes on with the next page.

use vm_remap_cli::guest::Access;

use crate::scene::{PAGES, READER, Scene, WINDOWS, WRITER, blob_of};

/// What the guest writes into the second word of a page.
pub(crate) fn written(page: u64) -> u64 {
    (0x17e << 48) | page
}

/// What the guest finds where nothing is, when its faults are resolved.
pub(crate) const ONES: u64 = u64::MAX;

fn place(random: &mut impl FnMut(u64) -> u64) -> (usize, u64) {
    (
        usize::try_from(random(WINDOWS as u64)).unwrap(),
        random(PAGES),
    )
}

/// Whether a word is one that a page can show: that of some blob for that very page, what a guest
/// has written behind it, or nothing where a file has just grown.
fn is_known(window: usize, page: u64, second: bool, word: u64) -> bool {
    let grown = Scene::shrinks(window, page) && word == 0;
    match second {
        false => grown || blob_of(word, page).is_some(),
        true => word == 0 || word == written(page),
    }
}

/// Reads until the end: each word is one of the page that it was read from, or of a hole.
pub(crate) fn read(scene: &Scene) -> String {
    let _alarm = scene.alarm();
    let mut random = scene.random(2000);
    let resolved = scene.setting.resolved;
    let (mut reads, mut holes) = (0_u64, 0_u64);
    while scene.goes_on_with(reads) {
        let (window, page) = place(&mut random);
        let second = random(2) == 1;
        let gpa = scene.guest_address(window, page) + 8 * u64::from(second);
        let may_be_hole = !scene.never_a_hole(window, page);
        match scene.guest.read_u64(READER, gpa).unwrap() {
            Access::Done(word) if is_known(window, page, second, word) => reads += 1,
            Access::Done(ONES) if resolved && may_be_hole => holes += 1,
            Access::Fault | Access::Mmio { .. } if !resolved && may_be_hole => holes += 1,
            other => panic!("window {window}, page {page}, {second}: the guest read {other:x?}"),
        }
    }
    format!("{reads} words read, {holes} holes met")
}

/// Writes until the end: what is written lands in the page that it was meant for, or nowhere.
pub(crate) fn write(scene: &Scene) -> String {
    let _alarm = scene.alarm();
    let mut random = scene.random(3000);
    let (mut writes, mut refused) = (0_u64, 0_u64);
    while scene.goes_on_with(writes) {
        let (window, page) = place(&mut random);
        let gpa = scene.guest_address(window, page) + 8;
        match scene.guest.write_u64(WRITER, gpa, written(page)).unwrap() {
            Access::Done(()) => writes += 1,
            Access::Fault | Access::Mmio { .. } if !scene.setting.resolved => refused += 1,
            other => panic!("window {window}, page {page}: the guest's write ended in {other:x?}"),
        }
    }
    format!("{writes} words written, {refused} refused")
}
